"""Aggregation as a pure function over named tensors."""

from collections.abc import Iterable

import torch

from engine.federation.updates import Update
from engine.training.networks import Tensors


def federated_average(updates: Iterable[Update]) -> Tensors | None:
    """FedAvg: the mean of the updates' tensors, weighted by n_images, summed in float64.

    Updates are consumed one at a time, so a stream of them needs the memory of one. Integer tensors (BatchNorm's
    `num_batches_tracked`) count something and have no mean: the largest value stands.
    None when there is no update.

    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
    """
    total = 0
    sums: Tensors = {}
    dtypes: dict[str, torch.dtype] = {}
    for update in updates:
        total += update.n_images
        for name, tensor in update.tensors.items():
            dtypes[name] = tensor.dtype
            if not tensor.is_floating_point():
                sums[name] = torch.maximum(sums[name], tensor) if name in sums else tensor.clone()
            elif name in sums:
                sums[name].add_(tensor.double(), alpha=update.n_images)
            else:
                sums[name] = tensor.double() * update.n_images
    if total == 0:
        return None
    return {
        name: (value / total).to(dtypes[name]) if value.is_floating_point() else value for name, value in sums.items()
    }
