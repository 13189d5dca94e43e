"""Aggregation as a pure function over named tensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from engine.federation.updates import Update
from engine.training.networks import Tensors


def federated_average(updates: Iterable[Update], group_of: Mapping[str, str] | None = None) -> Tensors | None:
    """FedAvg: the mean of each tensor over the updates that hold it, weighted by n_images, summed in float64.

    Updates are consumed one at a time, so a stream of them needs the memory of one for each group. Integer tensors
    (BatchNorm's `num_batches_tracked`) count something and have no mean: the largest value stands.
    `group_of`, by hospital, makes it the plain mean of the groups' own means, so that all groups weigh the same.
    None when there is no update.

    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """
    totals: dict[tuple[str, str], int] = {}  # by tensor and group
    sums: dict[tuple[str, str], Tensor] = {}
    largest: Tensors = {}
    dtypes: dict[str, torch.dtype] = {}
    for update in updates:
        group = group_of[update.hospital] if group_of else ""
        for name, tensor in update.tensors.items():
            dtypes[name] = tensor.dtype
            place = name, group
            totals[place] = totals.get(place, 0) + update.n_images
            if not tensor.is_floating_point():
                largest[name] = torch.maximum(largest[name], tensor) if name in largest else tensor.clone()
            elif place in sums:
                sums[place].add_(tensor.double(), alpha=update.n_images)
            else:
                sums[place] = tensor.double() * update.n_images
    if not any(totals.values()):
        return None
    means: dict[str, list[Tensor]] = {}  # by tensor those of the groups
    for (name, group), value in sums.items():
        means.setdefault(name, []).append(value.div_(totals[name, group]))
    return {
        name: largest[name] if name in largest else _plain_mean(means[name]).to(dtype) for name, dtype in dtypes.items()
    }


def _plain_mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
