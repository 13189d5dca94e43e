"""Named tensors: which of them are learned, and one dictionary for several kinds of them ("kind/name")."""

from collections.abc import Mapping

from torch import Tensor

from engine.training.networks import Tensors

STATISTICS = ("running_mean", "running_var")  # BatchNorm measures these, nothing learns them


def is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


def is_learned(name: str, tensor: Tensor) -> bool:
    """Weights and biases; neither BatchNorm's statistics nor its integer counter, which no optimiser may touch."""
    return tensor.is_floating_point() and not is_statistic(name)


def label(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """{"fc.bias": t} -> {"kind/fc.bias": t}"""
    return {f"{kind}/{name}": tensor for name, tensor in tensors.items()}


def of_kind(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The inverse of `label`: the tensors of one kind, under their own names."""
    start = f"{kind}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
