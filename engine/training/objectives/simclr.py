"""SimCLR: find the other view of the same picture among all views of the batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.pretext_config import PretextConfig
from engine.sections import ViewsConfig
from engine.training.images import TrainingSet
from engine.training.objectives.objective import Score
from engine.training.views import draw_pairs


class SimCLR:
    """NT-Xent over two views of each image, behind a head of two layers. Large batches have more to tell apart.

    The share is that of views whose nearest other view of the batch is their partner.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
    """

    def __init__(self, config: PretextConfig, views: ViewsConfig) -> None:
        self._config = config
        self._views = views

    def head(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self._config.projection))

    def inputs(
        self, images: TrainingSet, positions: Tensor, device: torch.device, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        return draw_pairs(images, positions, device, self._views, generator)

    def score(self, outputs: Tensor, targets: Tensor) -> Score:
        """Of projections (2 n, width): the n first views, then the n second ones; `targets` is each one's partner."""
        similar = cosines(outputs)
        found = (similar.detach().argmax(1) == targets).sum() / 2
        return Score(functional.cross_entropy(similar / self._config.temperature, targets), found)


def cosines(projections: Tensor) -> Tensor:
    """Of every view with every other (n, n); of a view with itself minus infinity, so that it is never chosen."""
    unit = functional.normalize(projections, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T).masked_fill(itself, -torch.inf)
