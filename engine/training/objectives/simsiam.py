"""SimSiam: say from one view of a picture what the encoder says of the other. No negatives, so small batches do."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.pretext_config import PretextConfig
from engine.sections import ViewsConfig
from engine.training.images import TrainingSet
from engine.training.objectives.objective import Score
from engine.training.views import draw_pairs


class SimSiam:
    """Minus the cosine between one view's prediction and the other's projection, which is held still.

    The share is that of predictions whose nearest projection, among the other views of the batch, is their own
    image's. It tells a collapse, where all cosines are 1 and the loss looks best: then the share is chance.

    Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021.
    """

    def __init__(self, config: PretextConfig, views: ViewsConfig) -> None:
        self._config = config
        self._views = views

    def head(self, width: int) -> nn.Module:
        return SimSiamHead(width, self._config.projection)

    def inputs(
        self, images: TrainingSet, positions: Tensor, device: torch.device, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        return draw_pairs(images, positions, device, self._views, generator)

    def score(self, outputs: Tensor, targets: Tensor) -> Score:
        """Of (2 n, 2, width): projections and predictions of the n first views, then of the second ones."""
        projected = functional.normalize(outputs[:, 0].detach(), dim=1)
        predicted = functional.normalize(outputs[:, 1], dim=1)
        loss = -(predicted * projected[targets]).sum(1).mean()
        n = len(outputs) // 2
        similar = torch.stack([predicted.detach()[:n] @ projected[n:].T, predicted.detach()[n:] @ projected[:n].T])
        found = (similar.argmax(2) == torch.arange(n, device=similar.device)).sum() / 2
        return Score(loss, found)


class SimSiamHead(nn.Module):
    """Features (n, width) -> (n, 2, projection): the projection and, from it, the prediction."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(width, projection, bias=False),
            nn.BatchNorm1d(projection),
            nn.ReLU(),
            nn.Linear(projection, projection, bias=False),
            nn.BatchNorm1d(projection, affine=False),
        )
        narrow = projection // 4  # the paper's bottleneck
        self.predictor = nn.Sequential(
            nn.Linear(projection, narrow, bias=False),
            nn.BatchNorm1d(narrow),
            nn.ReLU(),
            nn.Linear(narrow, projection),
        )

    def forward(self, features: Tensor) -> Tensor:
        projected = self.projector(features)
        return torch.stack([projected, self.predictor(projected)], dim=1)
