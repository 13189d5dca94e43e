"""What a calibration is fitted with: temperatures, set thresholds, and Gaussians from sums that hospitals may share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np

from engine.data.statistics import Vector
from engine.inference.calibration import set_scores
from engine.inference.gate import Gaussian
from engine.results.metrics import Floats, Integers, softmax

HOTTEST, STEPS = 20.0, 60
DRAWS = 200
DIRECTIONS = 64
SMALLEST_VARIANCE = 1e-3


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """The temperature in 1/HOTTEST..HOTTEST of least cross-entropy (Guo et al., ICML 2017); 1 without images.

    Cross-entropy is convex in 1/temperature, so its slope is bisected. Each label counts as all but certain, short of
    1 by 1 / (n + 2) (Platt, Probabilistic Outputs for Support Vector Machines, 1999): a model without an error on few
    images would otherwise be told to be as sure as it can.
    """
    n_images = len(labels)
    if n_images == 0:
        return 1.0
    doubt = 1 / (n_images + 2)
    wanted = (1 - doubt) * logits[np.arange(n_images), labels] + doubt * logits.mean(axis=1)
    low, high = 1 / HOTTEST, HOTTEST
    for _ in range(STEPS):
        coldness = math.sqrt(low * high)
        expected = (softmax(logits * coldness) * logits).sum(axis=1)
        slope = float((expected - wanted).mean())
        low, high = (coldness, high) if slope < 0 else (low, coldness)
    return 1 / math.sqrt(low * high)


def fit_threshold(probabilities: Floats, labels: Integers, coverage: float, seed: int = 0) -> float:
    """The split-conformal quantile of the APS scores; 1 (all classes) where there are too few images to promise.

    The mean over DRAWS of the scores' randomness: one draw promises as much and differs from seed to seed.
    """
    n_images = len(labels)
    rank = math.ceil((n_images + 1) * coverage)
    if rank > n_images:
        return 1.0
    rng = np.random.default_rng(seed)
    drawn = [np.sort(set_scores(probabilities, labels, rng))[rank - 1] for _ in range(DRAWS)]
    return float(min(1.0, np.mean(drawn)))


@dataclass(frozen=True)
class Sums:
    """All that a hospital shares of its vectors (n, d) of one class: their number, sum, and sum of outer products."""

    n: int
    total: Vector
    outer: Vector

    @classmethod
    def of(cls, vectors: Vector) -> Self:
        return cls(len(vectors), vectors.sum(axis=0), vectors.T @ vectors)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Vector:
        result: Vector = self.total / self.n
        return result


def fit_gaussian(groups: Iterable[Sums], directions: int = DIRECTIONS) -> Gaussian:
    """Centres are the groups' means; one covariance of what lies around them, pooled.

    Beyond the widest `directions` all variances count as their mean: there are fewer images than features.
    """
    groups = [group for group in groups if group.n]
    whole = reduce(Sums.__add__, groups)
    between = sum((group.n * np.outer(group.mean, group.mean) for group in groups), np.zeros_like(whole.outer))
    values, vectors = np.linalg.eigh((whole.outer - between) / max(1, whole.n - len(groups)))
    values = np.maximum(values[::-1], SMALLEST_VARIANCE)
    kept = min(directions, len(values))
    rest = float(values[kept:].mean()) if kept < len(values) else float(values[-1])
    return Gaussian(
        centres=np.stack([group.mean for group in groups]),
        directions=np.ascontiguousarray(vectors[:, ::-1][:, :kept].T),
        variances=values[:kept],
        rest=rest,
    )
