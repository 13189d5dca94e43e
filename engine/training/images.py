"""Labelled images as training sees them: uint8 batches drawn from the hospitals' caches, never copied whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.data.images import Pixels


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
