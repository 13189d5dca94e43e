"""What a hospital returns from a round, and the check that stands before every average."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import UpdateError
from engine.results.rounds import Epoch
from engine.training.networks import Tensors


@dataclass(frozen=True)
class Update:
    """Named tensors after local training, as they travel (see compression.py), counts and means; never images.

    `epsilon` is what the hospital has spent of its images' privacy so far, this update included.
    The tensors may be the transport's working copy: they are valid until the next reply is drawn.
    """

    hospital: str
    tensors: Tensors
    n_images: int
    epochs: tuple[Epoch, ...]
    seconds: float
    epsilon: float | None = None

    @property
    def n_bytes(self) -> int:
        return count_bytes(self.tensors)


@dataclass(frozen=True)
class HospitalFailure:
    """A hospital that could not answer, and why."""

    hospital: str
    reason: str


def count_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def keep(update: Update) -> Update:
    """A copy that outlives the next reply."""
    return replace(update, tensors={name: tensor.clone() for name, tensor in update.tensors.items()})


def check_update(update: Update, like: Tensors) -> None:
    """Raise UpdateError, naming hospital and tensor, for anything that must not reach an average."""

    def refuse(what: str) -> UpdateError:
        return UpdateError(f"update of {update.hospital}: {what}")

    if update.n_images <= 0:
        raise refuse(f"n_images is {update.n_images}; it must be positive")
    if not all(math.isfinite(epoch.loss) for epoch in update.epochs):
        raise refuse("its training loss is no finite number")
    missing, foreign = like.keys() - update.tensors.keys(), update.tensors.keys() - like.keys()
    if missing:
        raise refuse(f"tensor {min(missing)} is missing")
    if foreign:
        raise refuse(f"tensor {min(foreign)} is unknown")
    for name, tensor in update.tensors.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            raise refuse(
                f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"not {like[name].dtype} {tuple(like[name].shape)}"
            )
        if tensor.is_floating_point() and not all_finite(tensor):
            raise refuse(f"tensor {name} holds NaN or infinity")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise refuse(f"tensor {name} is a variance and holds negative values")


def all_finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms and costs a fifth of looking at each; an infinite one may be mere overflow."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
