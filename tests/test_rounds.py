"""The rounds, over a transport whose hospitals do what the test says."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pytest
import torch

from engine.errors import RunError
from engine.federation.rounds import TrainingState, choose_hospitals, run_rounds
from engine.federation.transports import ValidationReply
from engine.federation.updates import HospitalFailure, Update
from engine.results.rounds import ALL, Epoch, RoundLine
from engine.sections import TrainingConfig
from engine.training.networks import Tensors

EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
BAD = torch.tensor([float("nan")])


class Scripted:
    """Hospital i adds its own step to the weight; `broken` ones fail; validation hits follow `hits` by round."""

    def __init__(
        self, steps: dict[str, float], broken: dict[str, object] | None = None, hits: Sequence[int] = ()
    ) -> None:
        self.trainers = tuple(steps)
        self._steps = steps
        self._broken = broken or {}
        self._hits = hits

    def train(
        self, weights: Tensors, round_number: int, hospitals: Sequence[str]
    ) -> Iterator[Update | HospitalFailure]:
        for hospital in hospitals:
            fault = self._broken.get(hospital)
            if fault == "fails":
                yield HospitalFailure(hospital, "no power")
            elif fault == "nan":
                yield Update(hospital, {"w": BAD}, 10, EPOCHS, 0.1)
            else:
                yield Update(hospital, {"w": weights["w"] + self._steps[hospital]}, 10, EPOCHS, 0.1)

    def settle(self, refused: Collection[str]) -> None:
        pass

    def validate(self, weights: Tensors, round_number: int) -> Iterator[ValidationReply | HospitalFailure]:
        if self._hits:
            hits = self._hits[round_number - 1]
            yield ValidationReply("a", 1.0, np.array([[hits, 10 - hits], [10 - hits, hits]]))

    def kept(self) -> dict[str, Tensors]:
        return {}


class Kept:
    def __init__(self) -> None:
        self.lines: list[RoundLine] = []

    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None:
        self.lines += lines


def start() -> TrainingState:
    weights = {"w": torch.zeros(1)}
    return TrainingState(weights, weights)


def train(transport: Scripted, **settings: object) -> tuple[TrainingState, list[RoundLine]]:
    kept = Kept()
    config = TrainingConfig(**{"rounds": 1, **settings})  # type: ignore[arg-type]
    return run_rounds("federated", "global", config, transport, start(), kept), kept.lines


def test_each_round_starts_from_the_average_of_the_last() -> None:
    state, _ = train(Scripted({"a": 1.0, "b": 3.0}), rounds=3)
    assert state.weights["w"].item() == pytest.approx(6.0)
    assert state.round == 3


@pytest.mark.parametrize(("fault", "reason"), [("fails", "no power"), ("nan", "tensor w holds NaN or infinity")])
def test_a_hospital_that_fails_is_reported_and_the_round_goes_on(fault: str, reason: str) -> None:
    state, lines = train(Scripted({"a": 1.0, "b": 3.0}, {"b": fault}))
    assert state.weights["w"].item() == 1.0
    failed = next(line for line in lines if line.hospital == "b")
    assert failed.fit is None
    assert reason in (failed.failure or "")
    whole = next(line for line in lines if line.hospital == ALL)
    assert whole.fit is not None
    assert (whole.fit.bytes_up, whole.fit.bytes_down) == (4, 4), "neither way of b's counts"


@pytest.mark.parametrize("fault", ["fails", "nan"])
def test_who_watches_hears_who_was_asked_and_how_each_answered(fault: str) -> None:
    heard: list[object] = []

    class Ear:
        def asked(self, hospitals: Sequence[str]) -> None:
            heard.append(list(hospitals))

        def answered(self, hospital: str, *, usable: bool) -> None:
            heard.append((hospital, usable))

    transport = Scripted({"a": 1.0, "b": 3.0, "c": 1.0}, {"b": fault})
    run_rounds("federated", "global", TrainingConfig(rounds=2), transport, start(), watcher=Ear())
    assert heard == 2 * [["a", "b", "c"], ("a", True), ("b", False), ("c", True)]


def test_too_few_usable_updates_stop_the_run_with_the_reasons() -> None:
    with pytest.raises(RunError, match=r"1 of at least 2 hospitals.*b: no power"):
        train(Scripted({"a": 1.0, "b": 3.0}, {"b": "fails"}), min_hospitals=2)


def test_no_usable_update_stops_the_run() -> None:
    with pytest.raises(RunError, match="0 of at least 1"):
        train(Scripted({"a": 1.0}, {"a": "fails"}))


def test_best_round_is_the_one_with_the_best_validation() -> None:
    state, lines = train(Scripted({"a": 1.0}, hits=(5, 9, 7)), rounds=3)
    assert state.best_round == 2
    assert state.best_weights["w"].item() == 2.0
    assert state.weights["w"].item() == 3.0
    assert [line.is_best_so_far for line in lines if line.hospital == ALL] == [True, True, False]


def test_without_validation_images_the_last_round_stands() -> None:
    state, _ = train(Scripted({"a": 1.0}), rounds=3)
    assert state.best_round == 3


class Diverging(Scripted):
    """In round 2 the model fails on the images of `lost`."""

    def __init__(self, lost: Sequence[str]) -> None:
        super().__init__({"a": 1.0}, hits=(5, 9, 4))
        self._lost = lost

    def validate(self, weights: Tensors, round_number: int) -> Iterator[ValidationReply | HospitalFailure]:
        for hospital in ("a", "b"):
            for reply in super().validate(weights, round_number):
                assert isinstance(reply, ValidationReply)
                lost = round_number == 2 and hospital in self._lost
                yield ValidationReply(hospital, float("inf") if lost else reply.loss, reply.confusion_matrix)


def test_a_round_whose_model_fails_somewhere_is_never_the_best() -> None:
    state, lines = train(Diverging(["b"]), rounds=3)
    assert state.best_round == 1
    failed = next(line for line in lines if line.round == 2 and line.hospital == "b")
    assert failed.failure == "its validation loss is no finite number"


def test_a_model_that_fails_everywhere_ends_the_training() -> None:
    with pytest.raises(RunError, match=r"no model any more .*lower learning rate"):
        train(Diverging(["a", "b"]), rounds=3)


def test_a_round_writes_one_line_per_hospital_and_one_that_sums_up() -> None:
    _, lines = train(Scripted({"a": 1.0, "b": 3.0}, hits=(8,)))
    assert [line.hospital for line in lines] == ["a", "b", ALL]
    whole = lines[-1]
    assert whole.fit is not None
    assert whole.fit.n_images == 20
    assert whole.fit.bytes_up == 8
    assert whole.validation is not None
    assert whole.validation.accuracy == pytest.approx(0.8)


def test_sampling_is_seeded_by_round_and_keeps_the_order() -> None:
    hospitals = [f"h{number}" for number in range(10)]
    config = TrainingConfig(hospital_fraction=0.4, seed=5)
    rounds = [choose_hospitals(hospitals, config, number) for number in range(1, 30)]
    assert rounds == [choose_hospitals(hospitals, config, number) for number in range(1, 30)]
    assert all(len(chosen) == 4 and chosen == sorted(chosen) for chosen in rounds)
    assert {hospital for chosen in rounds for hospital in chosen} == set(hospitals)


def test_sampling_never_falls_below_the_minimum() -> None:
    assert len(choose_hospitals(["a", "b", "c"], TrainingConfig(hospital_fraction=0.1, min_hospitals=2), 1)) == 2
