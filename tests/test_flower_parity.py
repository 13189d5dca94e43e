"""Our strategies against Flower's own, on the same updates over several rounds.

Flower computes in float32 and we sum in float64, hence the tolerance. Where the rules themselves differ, the test says
how: FedAdam (Flower adds Adam's bias correction, which the paper has not, and starts the second moment at zero, where
the paper asks for tau^2 or more) and integers (Flower averages counters).
"""

from typing import Any

import numpy as np
import pytest
import torch

from engine.aggregation_config import (
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedProxConfig,
    KrumConfig,
    MedianConfig,
    StrategyConfig,
    TrimmedMeanConfig,
)
from engine.federation.strategies import make_strategy
from engine.federation.updates import Update
from engine.results.rounds import Epoch
from engine.training.networks import Tensors

flower = pytest.importorskip("flwr.server.strategy", reason="needs flwr; see requirements-flower.txt")

NAMES = ("conv.weight", "fc.bias")
SIZES = (30, 10, 50, 20, 40)
ROUNDS = 4
ETA, BETA_1, BETA_2, TAU = 0.05, 0.9, 0.99, 1e-3


def start() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.randn(6, 5, generator=generator), "fc.bias": torch.randn(6, generator=generator)}


def trained(weights: Tensors, round_number: int) -> list[Tensors]:
    generator = torch.Generator().manual_seed(round_number)
    steps = [{n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in weights.items()} for _ in SIZES]
    return [{name: weights[name] + step[name] for name in NAMES} for step in steps]


def theirs(strategy: Any) -> list[Tensors]:
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

    weights, rounds = start(), []
    for number in range(1, ROUNDS + 1):
        results = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([t[n].numpy() for n in NAMES]), size, {}))
            for t, size in zip(trained(weights, number), SIZES, strict=True)
        ]
        parameters, _ = strategy.aggregate_fit(number, results, [])
        arrays = parameters_to_ndarrays(parameters)
        weights = {name: torch.from_numpy(np.array(array)).float() for name, array in zip(NAMES, arrays, strict=True)}
        rounds.append(weights)
    return rounds


def ours(*configs: StrategyConfig) -> list[Tensors]:
    """One configuration for all rounds, or one for each."""
    weights, state, rounds = start(), {}, []
    for number in range(1, ROUNDS + 1):
        strategy = make_strategy(configs[min(number, len(configs)) - 1], len(SIZES))
        epochs = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
        updates = [
            Update(f"h{place}", tensors, SIZES[place], epochs, 0.1)
            for place, tensors in enumerate(trained(weights, number))
        ]
        done = strategy.aggregate(updates, strategy.sends(weights, state), state)
        assert done is not None
        weights, state = done
        rounds.append(weights)
    return rounds


def initial() -> Any:
    from flwr.common import ndarrays_to_parameters

    return ndarrays_to_parameters([start()[name].numpy() for name in NAMES])


def corrected(number: int) -> FedAdamConfig:
    """Flower's bias correction as our learning rate of one round (its exponent is the round plus one)."""
    factor = np.sqrt(1 - BETA_2 ** (number + 1)) / (1 - BETA_1 ** (number + 1))
    return FedAdamConfig(server_learning_rate=ETA * float(factor), beta_1=BETA_1, beta_2=BETA_2, tau=TAU)


@pytest.mark.parametrize(
    ("name", "settings", "configs"),
    [
        ("FedAvg", {}, [FedAvgConfig()]),
        ("FedProx", {"proximal_mu": 0.1}, [FedProxConfig(mu=0.1)]),  # the server's half; the term is the hospitals'
        ("FedAvgM", {"server_learning_rate": 0.7, "server_momentum": 0.9}, [FedAvgMConfig(server_learning_rate=0.7)]),
        (
            "FedAdam",
            {"eta": ETA, "beta_1": BETA_1, "beta_2": BETA_2, "tau": TAU},
            [corrected(number) for number in range(1, ROUNDS + 1)],
        ),
        ("FedMedian", {}, [MedianConfig()]),
        ("FedTrimmedAvg", {"beta": 0.2}, [TrimmedMeanConfig(trim=0.2)]),
        ("Krum", {"num_malicious_clients": 1}, [KrumConfig(n_malicious=1)]),
    ],
)
def test_ours_is_flowers(name: str, settings: dict[str, Any], configs: list[StrategyConfig]) -> None:
    if name in ("FedAvgM", "FedAdam"):
        settings = {**settings, "initial_parameters": initial()}
    strategy = getattr(flower, name)(**settings)
    if name == "FedAdam":
        strategy.v_t = [np.full(start()[tensor].shape, TAU**2, np.float32) for tensor in NAMES]  # the paper's start
    reference = theirs(strategy)
    mine = ours(*configs)
    for theirs_now, ours_now in zip(reference, mine, strict=True):
        for tensor in NAMES:
            torch.testing.assert_close(ours_now[tensor], theirs_now[tensor], rtol=1e-5, atol=1e-6)
    assert not torch.equal(mine[-1]["conv.weight"], start()["conv.weight"])
