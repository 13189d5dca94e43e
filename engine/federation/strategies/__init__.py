"""One class per way to make hospitals' updates into new weights. docs/aggregation.md says when to take which."""

from collections.abc import Mapping
from typing import Any

from engine.aggregation_config import StrategyConfig
from engine.federation.strategies.fedavg import FedAvg, LocalRule, Strategy
from engine.federation.strategies.fedprox import FedProx
from engine.federation.strategies.private import FedBN, FedPer
from engine.federation.strategies.robust import Krum, Median, TrimmedMean
from engine.federation.strategies.scaffold import Scaffold
from engine.federation.strategies.server_optimizers import FedAdam, FedAvgM

__all__ = ["AnyStrategy", "FedAvg", "LocalRule", "make_strategy"]

AnyStrategy = Strategy[Any]
KINDS: dict[str, type[AnyStrategy]] = {
    "fedavg": Strategy,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "scaffold": Scaffold,
    "fedbn": FedBN,
    "fedper": FedPer,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
}


def make_strategy(config: StrategyConfig, n_hospitals: int, group_of: Mapping[str, str] | None = None) -> AnyStrategy:
    """`n_hospitals` is the federation's, not a round's sample; `group_of` makes groups of hospitals weigh the same."""
    return KINDS[config.strategy](config, n_hospitals, group_of)
