"""The images whose update is attacked, and what they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.federation_data import FederationData
from engine.data.splits import SplitImage
from engine.federation.arms import image_sets
from engine.training.images import ImageSet

AT_ONCE = 64


@dataclass(frozen=True)
class Batch:
    """Some images of one hospital: floats in 0..1 (n, channels, side, side), and class indices."""

    pixels: Tensor
    labels: Tensor

    def part(self, start: int, end: int) -> "Batch":
        return Batch(self.pixels[start:end], self.labels[start:end])


@dataclass(frozen=True)
class Targets:
    """The images that are attacked, by hospital, the attacked hospital's first; and what a guess would be."""

    batches: Mapping[str, Batch]
    mean: Tensor  # (1, channels, side, side): of all training images
    others: Sequence[Tensor]  # by image of the attacked hospital: others of its class and no group of its own

    @property
    def hospital(self) -> str:
        return next(iter(self.batches))

    def seen(self, start: int, size: int, *, of_all: bool) -> Batch:
        """The images behind one update of the attacked hospital, or behind the sum of all hospitals' updates.

        Those of all hospitals are one batch, whose gradient is the sum of theirs, each weighted by its images:
        BatchNorm stands still, so no image's part depends on another's.
        """
        batches = list(self.batches.values()) if of_all else [self.batches[self.hospital]]
        parts = [batch.part(start, start + size) for batch in batches]
        return Batch(torch.cat([one.pixels for one in parts]), torch.cat([one.labels for one in parts]))


def choose_targets(data: FederationData, n_images: int, side_px: int, device: torch.device) -> Targets:
    """At most `n_images` training images of each hospital, seeded, of as many groups as it has, scaled to `side_px`.

    The first hospital of the federation is the attacked one.
    """
    sets = image_sets(data, "train")
    dealt = {one.id: data.images_used("train", one) for one in data.federation.hospital if one.id in sets}
    chosen = {
        hospital: _of_many_groups(images, n_images, seed=data.federation.split.seed + place)
        for place, (hospital, images) in enumerate(dealt.items())
    }
    scale = partial(functional.adaptive_avg_pool2d, output_size=side_px)
    batches = {}
    for hospital, rows in chosen.items():
        pixels, labels = sets[hospital].batch(torch.tensor(rows), device)
        batches[hospital] = Batch(scale(pixels), labels)
    first = next(iter(batches))
    wanted = sum(len(rows) for rows in chosen.values())
    others = [_others(data, sets, dealt, dealt[first][row], wanted, device) for row in chosen[first]]
    return Targets(batches, scale(_mean_image(sets, device)), [scale(one) for one in others])


def _of_many_groups(images: Sequence[SplitImage], n_images: int, seed: int) -> list[int]:
    """At most `n_images` positions in random order, the first of each group before any second."""
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    firsts = list({images[row].group: row for row in reversed(order)}.values())
    return [*firsts, *(row for row in order if row not in firsts)][:n_images]


def _others(
    data: FederationData,
    sets: Mapping[str, ImageSet],
    dealt: Mapping[str, Sequence[SplitImage]],
    target: SplitImage,
    n_images: int,
    device: torch.device,
) -> Tensor:
    """At most `n_images` random training images of the target's class and of other groups, of all hospitals."""
    alike = [
        (hospital, row)
        for hospital, images in dealt.items()
        for row, one in enumerate(images)
        if one.image.label == target.image.label and one.group != target.group
    ]
    generator = np.random.default_rng([data.federation.split.seed, len(alike)])
    drawn = [alike[place] for place in generator.permutation(len(alike))[:n_images]]
    if not drawn:
        return torch.empty(0, 1, 1, 1)
    return torch.cat([sets[hospital].batch(torch.tensor([row]), device)[0] for hospital, row in drawn])


def _mean_image(sets: Mapping[str, ImageSet], device: torch.device) -> Tensor:
    sums = [
        images.batch(rows, device)[0].sum(0, keepdim=True)
        for images in sets.values()
        for rows in torch.arange(len(images)).split(AT_ONCE)
    ]
    return torch.stack(sums).sum(0) / sum(map(len, sets.values()))
