"""One hospital's part of one round: take the message, train, keep what is private, send the rest."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.config import Federation
from engine.errors import UpdateError
from engine.federation.audited import fingerprint
from engine.federation.compression import encode
from engine.federation.named_tensors import label, of_kind
from engine.federation.privacy import Account, plan_noise, spent_epsilon
from engine.federation.rounds import Rules
from engine.federation.seeds import derive_seed
from engine.federation.updates import Update, all_finite
from engine.results.rounds import Epoch
from engine.sections import TrainingConfig
from engine.training.images import TrainingSet
from engine.training.local import train_locally
from engine.training.networks import Network, Tensors
from engine.training.objectives import Objective
from engine.training.private import Noise


@dataclass(frozen=True)
class Message:
    """What a hospital is asked. `sent` are the strategy's tensors of the round."""

    sent: Tensors
    round_number: int
    hospital: str


def train_one_round(
    network: Network,
    federation: Federation,
    rules: Rules,
    images: TrainingSet,
    message: Message,
    kept: Tensors,
    *,
    device: torch.device,
    on_images: Callable[[int], None],
    objective: Objective | None = None,
) -> tuple[Update, Tensors]:
    """The update, and what the hospital keeps for its next round: "private/", "residual/" and its rule's tensors.

    `kept` is what the last round left. Without an `objective` the hospital learns its labels. Raises UpdateError where
    training left no finite numbers.
    """
    started = time.perf_counter()
    load_model(network, message.sent, kept)
    rule = rules.strategy.local_rule(network, message.sent, kept)
    training: TrainingConfig = federation.training
    seed, noise, privacy = derive_seed(training.seed, message.round_number, message.hospital), None, federation.privacy
    if privacy is not None:
        plan, account = plan_noise(privacy, len(images), training), Account.of(kept)
        asked = fingerprint(message.sent)  # two questions under one noise would show their difference
        seed = account.seed(message.round_number, f"draws {asked}")
        noise_seed = account.seed(message.round_number, f"noise {asked}")
        noise = Noise(plan.sample_rate, plan.multiplier, privacy.max_grad_norm, noise_seed)
    scores = train_locally(
        network,
        images,
        federation.model,
        training,
        round_number=message.round_number,
        seed=seed,
        device=device,
        objective=objective,
        on_images=on_images,
        on_gradients=rule.adjust_gradients if rule else lambda: None,
        noise=noise,
    )
    if not all(math.isfinite(score.loss) for score in scores):
        raise UpdateError("the loss is no longer a finite number; train anew with a lower training.learning_rate")
    epochs = tuple(Epoch(loss=s.loss, accuracy=s.accuracy, seconds=s.seconds) for s in scores)
    beside, own = rule.finish() if rule else ({}, {})
    trained = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    private = {name: trained.pop(name).clone() for name in rules.private(network)}
    payload, residual = encode({**trained, **beside}, message.sent, of_kind("residual", kept), rules.communication)
    after = {**own, **label("private", private), **label("residual", residual)}
    epsilon = None
    if privacy is not None:
        account = account.after(plan, plan.steps_per_epoch * training.local_epochs)
        after |= account.kept()
        epsilon = spent_epsilon(account.history, privacy.delta)
    if not all(all_finite(tensor) for tensor in after.values() if tensor.is_floating_point()):
        # Nobody else would notice, and this hospital would carry it into every later round.
        raise UpdateError("its private tensors are no longer finite; train anew with a lower training.learning_rate")
    seconds = time.perf_counter() - started
    return Update(message.hospital, payload, len(images), epochs, seconds, epsilon), after


def load_model(network: Network, sent: Tensors, kept: Tensors) -> None:
    """The network as one hospital has it: the message's tensors and its own private ones."""
    own = of_kind("private", kept)
    network.load_state_dict({name: own[name] if name in own else sent[name] for name in network.state_dict()})
