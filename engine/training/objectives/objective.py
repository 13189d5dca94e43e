"""What the local loop asks of every objective."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from engine.pretext_config import PretextConfig
from engine.sections import ViewsConfig
from engine.training.images import TrainingSet


class Score(NamedTuple):
    """Of one batch: the mean loss to learn from, and the sum over images of a share in 0..1; both scalars."""

    loss: Tensor
    hits: Tensor


class Objective(Protocol):
    def inputs(
        self, images: TrainingSet, positions: Tensor, device: torch.device, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """What the network sees of the images at these positions, before it normalises, and what it should answer.

        `generator` lives on the CPU; `epoch` counts from 0 over all rounds.
        """
        ...

    def score(self, outputs: Tensor, targets: Tensor) -> Score:
        """Of the network's float32 outputs for `inputs`."""
        ...


class PretextObjective(Objective, Protocol):
    """One that needs no labels and brings its own head."""

    def __init__(self, config: PretextConfig, views: ViewsConfig) -> None: ...

    def head(self, width: int) -> nn.Module:
        """A new head with weights from torch's global generator: features (n, width) -> outputs (n, ...)."""
        ...
