"""Hospitals on other machines: each round's questions and answers, whatever carries them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from engine.config import Federation
from engine.federation.conversation import Compared, Declined, Exchanged, Kind, Question, Saying, Trained, Validated
from engine.federation.rounds import Rules, TrainingState
from engine.federation.secure_aggregation import KEY_BYTES, PublicKeys, Reply, Request
from engine.federation.transports import AnyReply, PretextReply, ValidationReply
from engine.federation.updates import HospitalFailure, Update, count_bytes
from engine.training.networks import Tensors

ACCEPTED = "accepted/round"
LARGEST = 1e9  # of a loss; a mean of larger ones may be no number


class Link(Protocol):
    """Carries questions to hospitals at once, and gives their answers in the order of the questions."""

    def ask(self, asked: Sequence[tuple[Question, Tensors]]) -> Iterator[tuple[Saying, Tensors] | HospitalFailure]: ...


class NetworkTransport:
    """`state` is the one that the rounds go on from; `trainers` are the hospitals that joined, with the
    training images they joined with, `validators` those of them that have validation images."""

    def __init__(
        self,
        link: Link,
        federation: Federation,
        training: str,
        rules: Rules,
        state: TrainingState,
        trainers: Mapping[str, int],
        validators: Sequence[str],
    ) -> None:
        self.trainers = tuple(trainers)
        self._n_images = trainers
        self._link = link
        self._federation = federation.model_dump(mode="json")
        self._classes = federation.classes
        self._training = training
        self._rules = rules
        self._state = state
        self._validators = validators
        self._accepted = accepted_rounds(state.hospitals)
        self._new: dict[str, int] = {}

    def question(
        self,
        kind: Kind,
        hospital: str,
        round_number: int = 0,
        *,
        request: Request | None = None,
        peers: Sequence[str] = (),
    ) -> Question:
        return Question(
            kind=kind,
            training=self._training,
            hospital=hospital,
            federation=self._federation,
            round=round_number,
            accepted=self._accepted.get(hospital, 0),
            best=accepted_rounds(self._state.best_hospitals).get(hospital, 0),
            request=request,
            peers=tuple(peers),
        )

    def train(self, sent: Tensors, round_number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        peers = hospitals if self._rules.secure_aggregation else ()
        asked = [
            (self.question("train", one, round_number, peers=peers), self._rules.message(sent, one))
            for one in hospitals
        ]
        for hospital, reply in zip(hospitals, self._link.ask(asked), strict=True):
            match reply:
                case (Trained() as said, _) if said.n_images > self._n_images[hospital]:
                    reason = f"says {said.n_images:,} images, and joined with {self._n_images[hospital]:,}"
                    yield HospitalFailure(hospital, reason)
                case (Trained() as said, _) if any(abs(epoch.loss) > LARGEST for epoch in said.epochs):
                    yield HospitalFailure(hospital, "its training loss is no loss")
                case (Trained() as said, tensors):
                    self._new[hospital] = round_number
                    yield Update(hospital, tensors, said.n_images, said.epochs, said.seconds, said.epsilon)
                case _:
                    yield failure(hospital, reply)

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | HospitalFailure]:
        asked: list[tuple[Question, Tensors]] = [
            (self.question("exchange", one, request=request), {}) for one, request in requests.items()
        ]
        replies: dict[str, Reply | HospitalFailure] = {}
        for hospital, reply in zip(requests, self._link.ask(asked), strict=True):
            match reply:
                case (Exchanged(reply=PublicKeys() as keys), _) if {len(keys.cipher), len(keys.mask)} != {KEY_BYTES}:
                    replies[hospital] = HospitalFailure(hospital, "its keys are no keys")
                case (Exchanged() as said, _):
                    replies[hospital] = said.reply
                case _:
                    replies[hospital] = failure(hospital, reply)
        return replies

    def settle(self, refused: Collection[str]) -> None:
        self._accepted |= {hospital: number for hospital, number in self._new.items() if hospital not in refused}
        self._new = {}

    def validate(self, weights: Tensors, round_number: int) -> Iterator[AnyReply]:
        asked = [(self.question("validate", one, round_number), weights) for one in self._validators]
        n_bytes = count_bytes(weights)
        for hospital, reply in zip(self._validators, self._link.ask(asked), strict=True):
            match reply:
                case (Validated() as said, _):
                    loss = float("nan") if said.loss is None else said.loss
                    if matrix := square(said.confusion_matrix, len(self._classes)):
                        yield ValidationReply(hospital, loss, np.array(matrix, np.int64), n_bytes)
                    else:
                        yield HospitalFailure(hospital, "its confusion matrix is none of these classes")
                case (Compared() as said, _):
                    loss = float("nan") if said.loss is None else said.loss
                    yield PretextReply(hospital, loss, said.share, said.n_images, n_bytes)
                case _:
                    yield failure(hospital, reply)

    def kept(self) -> dict[str, Tensors]:
        """Hospitals keep their tensors; the coordinator keeps the round that they stand at."""
        return {hospital: {ACCEPTED: torch.tensor(number)} for hospital, number in self._accepted.items()}


def accepted_rounds(kept: Mapping[str, Tensors]) -> dict[str, int]:
    return {hospital: int(tensors[ACCEPTED]) for hospital, tensors in kept.items()}


def square(rows: Sequence[Sequence[int]], n: int) -> Sequence[Sequence[int]] | None:
    """The rows if they are n x n counts of one image or more, else None."""
    counts = [value for row in rows for value in row]
    fits = len(rows) == n and all(len(row) == n for row in rows)
    return rows if fits and min(counts) >= 0 and sum(counts) > 0 else None


def failure(hospital: str, reply: tuple[Saying, Tensors] | HospitalFailure) -> HospitalFailure:
    """Of any answer that is none to the question."""
    if isinstance(reply, HospitalFailure):
        return reply
    said, _ = reply
    reason = said.reason if isinstance(said, Declined) else f"answered '{said.said}', which was not asked"
    return HospitalFailure(hospital, reason)
