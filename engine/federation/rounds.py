"""The rounds of one training: the story of federated learning, as short as it is.

Every arm runs these same rounds. "federated" has all hospitals, "local" one, "central" one that holds the pooled
images; the average of a single update is that update. So the arms differ in who trains, and in nothing else.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.errors import RunError, UpdateError
from engine.federation.aggregation import federated_average
from engine.federation.report import RoundReport
from engine.federation.seeds import derive_seed
from engine.federation.transports import Transport
from engine.federation.updates import HospitalFailure, Update, check_update, count_bytes
from engine.results.rounds import RoundLine
from engine.sections import Arm, TrainingConfig
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
        for reply in transport.validate(state.weights, number):
            report.add_validation(reply)
        state.round = number
        is_best = keep_if_best(state, report)
        seconds = time.perf_counter() - started
        recorder.write_round(state, report.lines(arm, model, number, seconds=seconds, is_best=is_best))
    return state


def choose_hospitals(hospitals: Sequence[str], config: TrainingConfig, round_number: int) -> list[str]:
    """A seeded sample of `hospital_fraction` of the hospitals (at least min_hospitals), in their own order."""
    wanted = max(1, config.min_hospitals, round(config.hospital_fraction * len(hospitals)))
    generator = np.random.default_rng(derive_seed(config.seed, round_number, "choose hospitals"))
    chosen = generator.choice(len(hospitals), min(wanted, len(hospitals)), replace=False)
    return [hospitals[index] for index in sorted(chosen)]


def average_usable(
    replies: Iterable[Update | HospitalFailure], weights: Tensors, report: RoundReport, *, needed: int
) -> Tensors:
    """Average the updates that pass the check, as they arrive; a hospital that fails is reported and left out."""

    def usable() -> Iterator[Update]:
        for reply in replies:
            if isinstance(reply, HospitalFailure):
                report.add_failure(reply.hospital, reply.reason)
                continue
            try:
                check_update(reply, like=weights)
            except UpdateError as error:
                report.add_failure(reply.hospital, str(error))
                continue
            report.add_update(reply, bytes_down=count_bytes(weights))
            yield reply

    average = federated_average(usable())
    if average is None or len(report.fits) < needed:
        reasons = "; ".join(f"{hospital}: {reason}" for hospital, reason in report.failures.items())
        raise RunError(f"{len(report.fits)} of at least {needed} hospitals returned a usable update ({reasons})")
    return average


def keep_if_best(state: TrainingState, report: RoundReport) -> bool:
    """Keep this round's weights if they are the best by validation macro-F1 so far, ties to the lower loss.

    Without validation images the last round stands.
    """
    seen = report.validation()
    if seen is not None:
        if (seen.macro_f1, -seen.loss) <= (state.best_macro_f1, -state.best_loss):
            return False
        state.best_macro_f1, state.best_loss = seen.macro_f1, seen.loss
    state.best_weights, state.best_round = state.weights, state.round
    return True
