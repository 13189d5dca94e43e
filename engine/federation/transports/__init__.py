"""How weights reach hospitals and updates come back. The algorithm in rounds.py knows only `Transport`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.federation.secure_aggregation import Reply, Request
from engine.federation.updates import HospitalFailure, Update
from engine.training.networks import Tensors


@dataclass(frozen=True)
class ValidationReply:
    """The round's weights on one hospital's validation images: mean loss and counts (true class, predicted class).

    `bytes_down` are the tensors that were sent for it, where the hospital has not got them anyway.
    """

    hospital: str
    loss: float
    confusion_matrix: npt.NDArray[np.int64]
    bytes_down: int = 0


@dataclass(frozen=True)
class PretextReply:
    """The same where nobody has labels: means of the hospital's objective over its `n_images` validation images."""

    hospital: str
    loss: float
    share: float
    n_images: int
    bytes_down: int = 0


AnyReply = ValidationReply | PretextReply | HospitalFailure


class Transport(Protocol):
    """Carries messages between the coordinator and hospitals. Replies come in the order of the hospitals asked."""

    @property
    def trainers(self) -> Sequence[str]: ...

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | HospitalFailure]:
        """One exchange of secure aggregation beside the training; `Advertise` begins a round anew at its hospital."""
        ...

    def train(self, sent: Tensors, round_number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        """With secure aggregation updates come masked (see `mask_update`), and `hospitals` are the masks' peers."""
        ...

    def settle(self, refused: Collection[str]) -> None:
        """A round's updates are all in. A hospital whose update was refused keeps what it kept before the round."""
        ...

    def validate(self, weights: Tensors, round_number: int) -> Iterator[AnyReply]: ...

    def kept(self) -> dict[str, Tensors]:
        """What hospitals keep between rounds, for a checkpoint: only hospitals in this process have any to show."""
        ...
