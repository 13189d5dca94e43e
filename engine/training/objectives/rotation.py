"""Rotation: by how much was this picture turned?"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.pretext_config import PretextConfig
from engine.sections import ViewsConfig
from engine.training.images import TrainingSet
from engine.training.objectives.objective import Score
from engine.training.views import draw_views, picture_squares

TURNS = 4


class Rotation:
    """Each image in all four orientations, as in the paper. The share is that of orientations named rightly.

    The view is drawn first and then turned, exactly, by moving pixels: label k is k quarter turns whatever the view
    did. A mirrored picture is still upright; mirrored after its turn, one turned by 90 degrees would be one of 270.
    Views are drawn from the square in the middle of the picture: the bars that pad a wide picture to a square would say
    by which axis it was turned.

    Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018.
    """

    def __init__(self, config: PretextConfig, views: ViewsConfig) -> None:
        self._views = views

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, TURNS)

    def inputs(
        self, images: TrainingSet, positions: Tensor, device: torch.device, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """(4 n, channels, side, side), all images unturned, then all by 90 degrees, ...; and 0, 1, 2 or 3 (4 n,)."""
        pixels, _ = images.batch(positions, device)
        return turn_all(draw_views(pixels, self._views, generator, picture_squares(pixels)))

    def score(self, outputs: Tensor, targets: Tensor) -> Score:
        right = (outputs.detach().argmax(1) == targets).sum()
        return Score(functional.cross_entropy(outputs, targets), right / TURNS)


def turn_all(images: Tensor) -> tuple[Tensor, Tensor]:
    """Square images (n, channels, side, side) in four orientations, counter-clockwise, and their quarter turns."""
    turned = torch.cat([torch.rot90(images, quarter, (2, 3)) for quarter in range(TURNS)])
    turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return turned.contiguous(memory_format=torch.channels_last), turns
