"""The rounds of one training: the story of federated learning, as short as it is.

Every arm runs these same rounds. "federated" has all hospitals, "local" one, "central" one that holds the pooled
images; the average of a single update is that update. So the arms differ in who trains, and in nothing else.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch

from engine.aggregation_config import CommunicationConfig
from engine.errors import RunError, UpdateError
from engine.federation.compression import decode
from engine.federation.report import RoundReport
from engine.federation.secure_round import SecureRound, masked_like
from engine.federation.seeds import derive_seed
from engine.federation.strategies import AnyStrategy, FedAvg
from engine.federation.training_log import log
from engine.federation.transports import Transport
from engine.federation.updates import HospitalFailure, Update, check_update, count_bytes
from engine.results.rounds import RoundLine
from engine.sections import Arm, TrainingConfig
from engine.secure_aggregation_config import SecureAggregationConfig
from engine.training.networks import Network, Tensors
from engine.training.pretext import HEADS

OnUpdate = Callable[[Update], None]


@dataclass
class TrainingState:
    """Where the rounds of one model stand; what a checkpoint holds and a resume begins from.

    `server` is the strategy's state, `hospitals` what each keeps between rounds (see `Transport.kept`).
    """

    weights: Tensors
    best_weights: Tensors
    round: int = 0
    best_round: int = 0
    best_macro_f1: float = -1.0
    best_loss: float = float("inf")
    server: Tensors = field(default_factory=dict)
    hospitals: dict[str, Tensors] = field(default_factory=dict)
    best_hospitals: dict[str, Tensors] = field(default_factory=dict)

    def to(self, device: torch.device) -> Self:
        """All that training goes on from, on the device; what is only kept stays where it is."""

        def moved(tensors: Tensors) -> Tensors:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        hospitals = {hospital: moved(kept) for hospital, kept in self.hospitals.items()}
        return replace(self, weights=moved(self.weights), server=moved(self.server), hospitals=hospitals)


class Recorder(Protocol):
    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None: ...


class Watcher(Protocol):
    """Hears how a round goes while it goes."""

    def asked(self, hospitals: Sequence[str]) -> None: ...

    def answered(self, hospital: str, *, usable: bool) -> None: ...


@dataclass(frozen=True)
class Rules:
    """How the federated arm aggregates, and how its updates travel; the defaults are every other arm's.

    Where hospitals learn without labels, `objectives` says which of them learns what, and `private_heads` whether the
    heads stay at the hospitals. With `secure_aggregation` the coordinator opens the sum of a round's updates alone.
    """

    strategy: AnyStrategy = field(default_factory=FedAvg)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    objectives: Mapping[str, str] = field(default_factory=dict)
    private_heads: bool = False
    secure_aggregation: SecureAggregationConfig | None = None

    def message(self, sent: Tensors, hospital: str) -> Tensors:
        """What of a round's tensors this hospital gets and must answer with: all but heads of others' objectives."""
        if hospital not in self.objectives:
            return sent
        own = f"{HEADS}.{self.objectives[hospital]}."
        return {n: tensor for n, tensor in sent.items() if n.startswith(own) or not n.startswith(f"{HEADS}.")}

    def answer(self, message: Tensors) -> Tensors:
        """What an update looks like that answers this message."""
        return message if self.secure_aggregation is None else masked_like(message)

    def private(self, network: Network) -> frozenset[str]:
        """Names of the network's tensors that never leave a hospital."""
        heads = [name for name in network.state_dict() if self.private_heads and name.startswith(f"{HEADS}.")]
        return self.strategy.private(network).union(heads)


def run_rounds(
    arm: Arm,
    model: str,
    config: TrainingConfig,
    transport: Transport,
    state: TrainingState,
    recorder: Recorder | None = None,
    rules: Rules | None = None,
    watcher: Watcher | None = None,
    on_update: OnUpdate = lambda update: None,
) -> TrainingState:
    """Train to the last round, from wherever `state` stands. Every round is written before the next begins,
    where there is a `recorder`; `on_update` sees each update as it arrives, before it is judged.

    Raises RunError when fewer of a round's hospitals return a usable update than `min_hospitals` and the strategy ask.
    """
    rules = rules or Rules()
    for number in range(state.round + 1, config.rounds + 1):
        started = time.perf_counter()
        report = RoundReport()
        sent = rules.strategy.sends(state.weights, state.server)
        chosen = choose_hospitals(transport.trainers, config, number)
        if watcher is not None:
            watcher.asked(chosen)
        secure = SecureRound(rules.secure_aggregation, transport, chosen) if rules.secure_aggregation else None
        replies = secure.train(sent, number) if secure else transport.train(sent, number, chosen)
        updates = usable(replies, sent, rules, report, watcher, on_update)
        if secure:
            updates = secure.opened(updates, sent, report)
        aggregated = rules.strategy.aggregate(updates, sent, state.server)
        needed = max(min(config.min_hospitals, len(chosen)), rules.strategy.config.minimum())
        if aggregated is None or len(report.fits) < needed:
            raise too_few(report, needed)
        new, state.server = aggregated
        state.weights = {**state.weights, **new}  # a head that nobody sent stays as it was
        transport.settle(refused=report.failures.keys())
        state.hospitals = transport.kept()
        for reply in transport.validate(state.weights, number):
            report.add_validation(reply)
        if report.has_diverged and not report.validations:
            raise diverged(report)
        state.round = number
        is_best = keep_if_best(state, report)
        seconds = time.perf_counter() - started
        if recorder is not None:
            recorder.write_round(state, report.lines(arm, model, number, seconds=seconds, is_best=is_best))
        for hospital, reason in report.failures.items():
            log.warning("%s: round %d: %s failed: %s", model, number, hospital, reason)
        log.info("%s: round %d of %d took %.1f s", model, number, config.rounds, seconds)
    return state


def choose_hospitals(hospitals: Sequence[str], config: TrainingConfig, round_number: int) -> list[str]:
    """A seeded sample of `hospital_fraction` of the hospitals (at least min_hospitals), in their own order."""
    generator = np.random.default_rng(derive_seed(config.seed, round_number, "choose hospitals"))
    chosen = generator.choice(len(hospitals), config.hospitals_per_round(len(hospitals)), replace=False)
    return [hospitals[index] for index in sorted(chosen)]


def usable(
    replies: Iterable[Update | HospitalFailure],
    sent: Tensors,
    rules: Rules,
    report: RoundReport,
    watcher: Watcher | None = None,
    on_update: OnUpdate = lambda update: None,
) -> Iterator[Update]:
    """The updates that can be read and pass the check, as they arrive; a hospital that fails is reported, left out."""
    for reply in replies:
        if isinstance(reply, Update):
            on_update(reply)
        try:
            if isinstance(reply, HospitalFailure):
                raise UpdateError(reply.reason)
            message = rules.message(sent, reply.hospital)
            update = decode(reply, message, rules.communication)
            check_update(update, like=rules.answer(message))
        except UpdateError as error:
            report.add_failure(reply.hospital, str(error))
        else:
            report.add_update(reply, bytes_down=count_bytes(message))
            yield update
        if watcher is not None:
            watcher.answered(reply.hospital, usable=reply.hospital not in report.failures)


def too_few(report: RoundReport, needed: int) -> RunError:
    reasons = "; ".join(f"{hospital}: {reason}" for hospital, reason in report.failures.items())
    return RunError(f"{len(report.fits)} of at least {needed} hospitals returned a usable update ({reasons})")


def diverged(report: RoundReport) -> RunError:
    reasons = "; ".join(f"{hospital}: {reason}" for hospital, reason in report.failures.items())
    return RunError(f"the round's model is no model any more ({reasons}); train anew with a lower learning rate")


def keep_if_best(state: TrainingState, report: RoundReport) -> bool:
    """Keep this round's weights if they are the best by validation macro-F1 so far, ties to the lower loss; where
    nobody has labels, by the lower loss alone.

    Without validation images the last round stands. A round whose model fails on some hospital's images never does.
    """
    if report.has_diverged:
        return False
    seen = report.validation()
    if seen is not None:
        score = 0.0 if seen.macro_f1 is None else seen.macro_f1
        if (score, -seen.loss) <= (state.best_macro_f1, -state.best_loss):
            return False
        state.best_macro_f1, state.best_loss = score, seen.loss
    state.best_weights, state.best_round, state.best_hospitals = state.weights, state.round, state.hospitals
    return True
