"""Coordinate median, trimmed mean and Krum: means that a few wrong hospitals cannot carry away.

They compare updates, so all of a round are in memory at once. None weighs by n_images: a liar names its own. All of
them look at BatchNorm's statistics as at weights.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from engine.aggregation_config import KrumConfig, MedianConfig, TrimmedMeanConfig
from engine.federation.aggregation import federated_average
from engine.federation.strategies.fedavg import Config, Strategy
from engine.federation.updates import Update, keep
from engine.training.networks import Tensors


class _Trimmed(Strategy[Config]):
    """Per coordinate the mean of the sorted values without `n_cut` at each end."""

    def n_cut(self, n_updates: int) -> int:
        raise NotImplementedError

    def aggregate(self, updates: Iterable[Update], sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors] | None:
        kept = [keep(update).tensors for update in updates]
        if not kept:
            return None
        cut = self.n_cut(len(kept))
        return {name: _trimmed_mean(torch.stack([one[name] for one in kept]), cut) for name in sent}, state


class Median(_Trimmed[MedianConfig]):
    """Coordinate median. Holds while fewer than half of the hospitals are wrong.

    Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
    """

    def n_cut(self, n_updates: int) -> int:
        return (n_updates - 1) // 2


class TrimmedMean(_Trimmed[TrimmedMeanConfig]):
    """Coordinate mean without the `trim` largest and smallest shares; holds while fewer than that are wrong.

    Yin et al., as above.
    """

    def n_cut(self, n_updates: int) -> int:
        return int(self.config.trim * n_updates)


class Krum(Strategy[KrumConfig]):
    """The update that lies nearest to its neighbours: the least sum of squared distances to its n - f - 2 closest,
    over all tensors but counters. `keep` of more than one averages the best (Multi-Krum).

    Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017.
    """

    def aggregate(self, updates: Iterable[Update], sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors] | None:
        kept = sorted((keep(update) for update in updates), key=lambda update: update.hospital)  # ties: by name
        if not kept:
            return None
        scores = krum_scores([update.tensors for update in kept], self.config.n_malicious)
        best = torch.argsort(scores, stable=True)[: self.config.keep]
        average = federated_average(replace(kept[index], n_images=1) for index in best.tolist())
        return None if average is None else (average, state)


def krum_scores(updates: list[Tensors], n_malicious: int) -> Tensor:
    """One score per update, the lower the more trusted; float64."""
    n = len(updates)
    distances = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            distances[i, j] = distances[j, i] = sum(
                float((tensor.double() - updates[j][name].double()).square().sum())
                for name, tensor in updates[i].items()
                if tensor.is_floating_point()
            )
    nearest = distances.sort(dim=1).values[:, 1 : 1 + max(1, n - n_malicious - 2)]  # the first is its own zero
    return nearest.sum(dim=1)


def _trimmed_mean(values: Tensor, cut: int) -> Tensor:
    """(hospitals, ...) -> (...). Integers have no mean: of those left the largest stands, as in FedAvg."""
    left = values.sort(dim=0).values[cut : len(values) - cut]
    return left.double().mean(dim=0).to(values.dtype) if values.is_floating_point() else left[-1]
