"""Labelled images as training sees them: uint8 batches drawn from the hospitals' caches, never copied whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.data.images import Pixels
from engine.sections import AugmentConfig
from engine.training.augment import augment


class TrainingSet(Protocol):
    """What the local loop trains on: images, or their cached features (features.py)."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The plain inputs at these positions, and their labels."""
        ...

    def training_batch(
        self, positions: Tensor, device: torch.device, config: AugmentConfig, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """The inputs as training sees them in local epoch `epoch`, counted from 0 over all rounds."""
        ...

    def join(self, others: Sequence[Self]) -> "TrainingSet":
        """This set and others of its kind as one, in order."""
        ...


@dataclass(frozen=True)
class Portion:
    """Some rows of one hospital's cache: `pixels[rows[i]]` (side, side, channels) has class index `labels[i]`."""

    pixels: Pixels
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


class ImageSet:
    """One or several portions as one data set (pooling adds portions, it moves no pixels)."""

    def __init__(self, portions: Sequence[Portion]) -> None:
        self._portions = list(portions)
        self._starts = np.cumsum([0, *(len(portion.rows) for portion in portions)])
        self.labels = torch.from_numpy(np.concatenate([portion.labels for portion in portions]))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images as floats in 0..1 (n, channels, side, side), channels-last, and their labels, on the device."""
        wanted = positions.numpy()
        first = self._portions[0].pixels
        pixels = np.empty((len(wanted), *first.shape[1:]), np.uint8)
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        for number, portion in enumerate(self._portions):
            mine = owner == number
            pixels[mine] = portion.pixels[portion.rows[wanted[mine] - self._starts[number]]]
        images = torch.from_numpy(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
        return images.float().div_(255), self.labels[positions].to(device, non_blocking=True)

    def training_batch(
        self, positions: Tensor, device: torch.device, config: AugmentConfig, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """As `batch`, augmented anew."""
        images, labels = self.batch(positions, device)
        return augment(images, config, generator), labels

    def join(self, others: Sequence[Self]) -> "ImageSet":
        return ImageSet([portion for images in (self, *others) for portion in images._portions])
