"""FedAvg, and with it what every strategy answers; the others say only where they differ."""

from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from engine.aggregation_config import FedAvgConfig, StrategyConfig
from engine.federation.aggregation import federated_average
from engine.federation.updates import Update
from engine.training.networks import Network, Tensors

Config = TypeVar("Config", bound=StrategyConfig)


class LocalRule(Protocol):
    """What a strategy changes in one hospital's training of one round."""

    def adjust_gradients(self) -> None:
        """Called between the backward pass and the optimiser's step of every batch."""

    def finish(self) -> tuple[Tensors, Tensors]:
        """After training: tensors that travel beside the weights, and tensors that the hospital keeps."""


class Strategy(Generic[Config]):
    """FedAvg: hospitals train as they are, everything travels, and the new weights are the mean by n_images.

    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.

    A strategy holds no state. The coordinator's is named tensors that go in and come out; a hospital's are the
    tensors that its rule keeps. Both are in the checkpoint. `group_of` is federated_average's.
    """

    def __init__(self, config: Config, n_hospitals: int, group_of: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.n_hospitals = n_hospitals
        self.group_of = group_of

    def sends(self, weights: Tensors, state: Tensors) -> Tensors:
        """The message of a round. A hospital answers with the same names, shapes and types, or is refused."""
        return weights

    def private(self, network: Network) -> frozenset[str]:
        """Names of the network's tensors that never leave a hospital."""
        return frozenset()

    def local_rule(self, network: Network, sent: Tensors, kept: Tensors) -> LocalRule | None:
        """`kept` is what this hospital's last rule left; empty in its first round. `network` holds the round's
        weights already."""
        return None

    def aggregate(self, updates: Iterable[Update], sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors] | None:
        """(new weights, new state), or None without updates. The updates may be one reused working copy."""
        average = federated_average(updates, self.group_of)
        return None if average is None else self.step(average, sent, state)

    def step(self, average: Tensors, sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """From the average of the updates to the new weights."""
        return average, state


class FedAvg(Strategy[FedAvgConfig]):
    """The plain one; what the local and the central arm use whatever the federation is configured to."""

    def __init__(self) -> None:
        super().__init__(FedAvgConfig(), 1)
