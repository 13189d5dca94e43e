"""What a hospital spends of its images' privacy, round by round, and the noise that keeps it within the budget.

Every step is a sampled Gaussian mechanism (engine/training/private.py); Opacus' accountant adds the steps up by their
Renyi divergences: Mironov, Talwar & Zhang, Renyi Differential Privacy of the Sampled Gaussian Mechanism, 2019. What it
says is an upper bound. docs/privacy.md says of what.
"""

import hashlib
import math
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from engine.config import Federation
from engine.errors import ConfigError
from engine.federation.named_tensors import label, of_kind
from engine.privacy_config import PrivacyConfig
from engine.sections import TrainingConfig
from engine.training.images import TrainingSet
from engine.training.networks import Tensors

KIND = "privacy"  # of the tensors that a hospital keeps: its key and its history
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 257))  # of the divergences; the best one counts


@dataclass(frozen=True)
class Plan:
    """One hospital's steps, the same in every round."""

    sample_rate: float
    steps_per_epoch: int
    multiplier: float


def plan_noise(privacy: PrivacyConfig, n_images: int, training: TrainingConfig) -> Plan:
    """The noise with which all rounds together spend `epsilon`, should the hospital be asked in each of them.

    Raises ConfigError where no noise can keep the promise.
    """
    if privacy.delta * n_images >= 1:
        raise ConfigError(
            f"privacy.delta = {privacy.delta:g} promises nothing to one of {n_images:,} images; it must be below "
            f"1 / {n_images:,}"
        )
    rate = min(1.0, training.batch_size / n_images)
    steps = math.ceil(n_images / training.batch_size)
    total = steps * training.local_epochs * training.rounds
    return Plan(rate, steps, _multiplier(privacy.epsilon, privacy.delta, rate, total))


def require_noise(privacy: PrivacyConfig, federation: Federation, training_sets: Mapping[str, TrainingSet]) -> None:
    """Raise ConfigError where a trainer of the federation could not keep the promise."""
    sizes = [len(images) for images in training_sets.values()]
    if "central" in federation.arms:
        sizes.append(sum(sizes))
    for n_images in sizes:
        plan_noise(privacy, n_images, federation.training)


@lru_cache
def _multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier  # here: who trains without privacy needs no Opacus

    with _quiet_about_orders():
        try:
            multiplier = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=epsilon / 1000,
                alphas=ORDERS,
            )
        except ValueError:
            raise ConfigError(
                f"privacy.epsilon = {epsilon:g}: no noise is enough for {steps:,} steps at {sample_rate:.3g} of the "
                "images; take a larger epsilon, a smaller batch_size or fewer rounds"
            ) from None
    return float(multiplier)


def spent_epsilon(history: Tensor, delta: float) -> float:
    """Of a history (k, 3): noise multiplier, sample rate and number of steps by row."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(multiplier, rate, int(steps)) for multiplier, rate, steps in history.tolist()]
    with _quiet_about_orders():
        return float(accountant.get_epsilon(delta, alphas=ORDERS))


@dataclass(frozen=True)
class Account:
    """What one hospital keeps for its privacy: a key that nobody else has, and what it has done so far.

    The key makes a round's noise and draws the same when the round is trained again after a kill, so that it is not
    paid for twice. It is no part of the run's seed: whoever reads config.json would know the noise. A finished run has
    it no more.
    """

    key: Tensor
    history: Tensor

    @classmethod
    def of(cls, kept: Tensors) -> "Account":
        own = of_kind(KIND, kept)
        if not own:
            key = torch.tensor(list(secrets.token_bytes(32)), dtype=torch.uint8)
            return cls(key, torch.zeros(0, 3, dtype=torch.float64))
        return cls(own["key"], own["history"])

    def seed(self, round_number: int, what: str) -> int:
        """63 bits that nobody can guess who has not the key."""
        material = bytes(self.key.tolist()) + f"{round_number} {what}".encode()
        return int.from_bytes(hashlib.sha256(material).digest()[:8]) >> 1

    def after(self, plan: Plan, n_steps: int) -> "Account":
        rows = self.history.tolist()
        if rows and rows[-1][:2] == [plan.multiplier, plan.sample_rate]:
            rows[-1][2] += n_steps
        else:
            rows.append([plan.multiplier, plan.sample_rate, n_steps])
        return Account(self.key, torch.tensor(rows, dtype=torch.float64))

    def kept(self) -> Tensors:
        return label(KIND, {"key": self.key, "history": self.history})


def describe_privacy(
    federation: Federation,
    privacy: PrivacyConfig,
    models: Mapping[str, tuple[Mapping[str, int], Mapping[str, Tensors]]],
) -> dict[str, Any]:
    """`privacy.json`. `models` has, by model, the trainers' numbers of images and what each of them keeps."""

    def spent(n_images: int, kept: Tensors) -> dict[str, Any]:
        history = Account.of(kept).history
        return {
            "n_images": n_images,
            "epsilon": spent_epsilon(history, privacy.delta),
            "history": [
                {"noise_multiplier": multiplier, "sample_rate": rate, "steps": int(steps)}
                for multiplier, rate, steps in history.tolist()
            ],
        }

    return {
        "schema_version": 1,
        "mechanism": "DP-SGD with Poisson sampling; neighbours differ in one training image of one hospital",
        "accountant": "Opacus RDP",
        "delta": privacy.delta,
        "max_grad_norm": privacy.max_grad_norm,
        "norm": federation.model.norm,
        "models": {
            model: {trainer: spent(n_images, kept.get(trainer, {})) for trainer, n_images in sizes.items()}
            for model, (sizes, kept) in models.items()
        },
    }


@contextmanager
def _quiet_about_orders() -> Iterator[None]:
    """The search for a noise begins with far too much of it, where the best order is the largest: no news."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is")
        yield
