"""The rounds of one training: the story of federated learning, as short as it is.

Every arm runs these same rounds. "federated" has all hospitals, "local" one, "central" one that holds the pooled
images; the average of a single update is that update. So the arms differ in who trains, and in nothing else.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine.config import Arm, TrainingConfig
from engine.errors import RunError, UpdateError
from engine.federation.aggregation import federated_average
from engine.federation.seeds import derive_seed
from engine.federation.transports import Transport, ValidationReply
from engine.federation.updates import HospitalFailure, Update, check_update, count_bytes
from engine.results.metrics import macro_f1
from engine.results.rounds import ALL, Fit, RoundLine, Validation
from engine.training.networks import Tensors


@dataclass
class TrainingState:
    """Where the rounds of one model stand; what a checkpoint holds and a resume begins from."""

    weights: Tensors
    best_weights: Tensors
    round: int = 0
    best_round: int = 0
    best_macro_f1: float = -1.0
    best_loss: float = float("inf")


@dataclass
class RoundReport:
    """What happened in one round, hospital by hospital."""

    fits: dict[str, Fit] = field(default_factory=dict)
    validations: dict[str, Validation] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Recorder(Protocol):
    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None: ...


def run_rounds(
    arm: Arm, model: str, config: TrainingConfig, transport: Transport, state: TrainingState, recorder: Recorder
) -> TrainingState:
    """Train to the last round, from wherever `state` stands. Every round is written before the next begins.

    Raises RunError when fewer than `min_hospitals` of a round's hospitals return a usable update.
    """
    for number in range(state.round + 1, config.rounds + 1):
        started = time.perf_counter()
        report = RoundReport()
        chosen = choose_hospitals(transport.trainers, config, number)
        replies = transport.train(state.weights, number, chosen)
        state.weights = average_usable(replies, state.weights, report, needed=min(config.min_hospitals, len(chosen)))
        for answer in transport.validate(state.weights, number):
            note_validation(answer, report)
        state.round = number
        is_best = keep_best(state, report)
        seconds = time.perf_counter() - started
        recorder.write_round(state, round_lines(arm, model, number, report, seconds=seconds, is_best=is_best))
    return state


def choose_hospitals(hospitals: Sequence[str], config: TrainingConfig, round_number: int) -> list[str]:
    """A seeded sample of `hospital_fraction` of the hospitals (at least min_hospitals), in their own order."""
    n_chosen = min(len(hospitals), max(config.min_hospitals, round(config.hospital_fraction * len(hospitals)), 1))
    generator = np.random.default_rng(derive_seed(config.seed, round_number, "choose hospitals"))
    return [hospitals[i] for i in sorted(generator.choice(len(hospitals), n_chosen, replace=False))]


def average_usable(
    replies: Iterable[Update | HospitalFailure], weights: Tensors, report: RoundReport, *, needed: int
) -> Tensors:
    """Average the updates that pass the check, as they arrive; a hospital that fails is reported and left out."""

    def usable() -> Iterator[Update]:
        for reply in replies:
            if isinstance(reply, HospitalFailure):
                report.failures[reply.hospital] = reply.reason
                continue
            try:
                check_update(reply, like=weights)
            except UpdateError as error:
                report.failures[reply.hospital] = str(error)
                continue
            report.fits[reply.hospital] = Fit(
                n_images=reply.n_images,
                loss=reply.epochs[-1].loss,
                accuracy=reply.epochs[-1].accuracy,
                epochs=reply.epochs,
                seconds=reply.seconds,
                bytes_down=count_bytes(weights),
                bytes_up=reply.n_bytes,
            )
            yield reply

    try:
        average = federated_average(usable())
    except UpdateError:
        average = {}
    if len(report.fits) < needed or not average:
        reasons = "; ".join(f"{hospital}: {reason}" for hospital, reason in report.failures.items())
        raise RunError(
            f"{len(report.fits)} of at least {max(needed, 1)} hospitals returned a usable update ({reasons})"
        )
    return average


def note_validation(answer: ValidationReply | HospitalFailure, report: RoundReport) -> None:
    if isinstance(answer, HospitalFailure):
        report.failures[answer.hospital] = answer.reason
        return
    report.validations[answer.hospital] = _validation(answer.loss, answer.confusion_matrix)


def keep_best(state: TrainingState, report: RoundReport) -> bool:
    """Keep this round's weights if they are the best by validation macro-F1 so far, ties to the lower loss."""
    whole = _sum_validations(report.validations.values())
    if whole is not None and (whole.macro_f1, -whole.loss) <= (state.best_macro_f1, -state.best_loss):
        return False
    state.best_weights = state.weights
    state.best_round = state.round
    if whole is not None:
        state.best_macro_f1, state.best_loss = whole.macro_f1, whole.loss
    return True


def round_lines(
    arm: Arm, model: str, number: int, report: RoundReport, *, seconds: float, is_best: bool
) -> list[RoundLine]:
    """One line per hospital that had a part in the round, then the line that sums it up."""
    hospitals = dict.fromkeys([*report.fits, *report.validations, *report.failures])
    lines = [
        RoundLine(
            arm=arm,
            model=model,
            round=number,
            hospital=hospital,
            fit=report.fits.get(hospital),
            validation=report.validations.get(hospital),
            failure=report.failures.get(hospital),
        )
        for hospital in hospitals
    ]
    whole = RoundLine(
        arm=arm,
        model=model,
        round=number,
        hospital=ALL,
        fit=_sum_fits(report.fits.values()),
        validation=_sum_validations(report.validations.values()),
        seconds=seconds,
        is_best_so_far=is_best,
    )
    return [*lines, whole]


def _sum_fits(fits: Iterable[Fit]) -> Fit:
    fits = list(fits)
    n_images = sum(fit.n_images for fit in fits)
    return Fit(
        n_images=n_images,
        loss=sum(fit.loss * fit.n_images for fit in fits) / n_images,
        accuracy=sum(fit.accuracy * fit.n_images for fit in fits) / n_images,
        epochs=(),
        seconds=sum(fit.seconds for fit in fits),
        bytes_down=sum(fit.bytes_down for fit in fits),
        bytes_up=sum(fit.bytes_up for fit in fits),
    )


def _sum_validations(validations: Iterable[Validation]) -> Validation | None:
    """The hospitals' counts added up; None when no hospital holds validation images."""
    validations = list(validations)
    n_images = sum(validation.n_images for validation in validations)
    if n_images == 0:
        return None
    matrix = np.sum([validation.confusion_matrix for validation in validations], axis=0)
    return _validation(sum(v.loss * v.n_images for v in validations) / n_images, matrix)


def _validation(loss: float, matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Validation:
    n_images = int(matrix.sum())
    return Validation(
        n_images=n_images,
        loss=loss,
        accuracy=float(np.trace(matrix) / n_images),
        macro_f1=macro_f1(matrix),
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in matrix),
    )
