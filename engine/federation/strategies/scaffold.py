"""SCAFFOLD: control variates that take the drift out of every local step."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from engine.aggregation_config import ScaffoldConfig
from engine.federation.named_tensors import is_learned, label, of_kind
from engine.federation.strategies.fedavg import LocalRule, Strategy
from engine.federation.updates import Update
from engine.training.networks import Network, Tensors


class Scaffold(Strategy[ScaffoldConfig]):
    """Each hospital remembers its mean gradient c_i, the coordinator their mean c; local gradients become
    g - c_i + c. State: one set of weights at the coordinator and one at each hospital; twice the bytes both ways.

    A hospital's new c_i is the mean of the raw gradients along its path, which for plain SGD is the paper's option II,
    (w - y_i) / (K lr), and unlike that form stays right with momentum and a moving learning rate. The theory is
    SGD's; with Adam the correction enters before its scaling.

    Weights are averaged by n_images, as everywhere here (the paper's hospitals are of equal size). The control is not:
    c moves by 1/N of the sum of the sample's changes, as in the paper, so it stays the plain mean of all N hospitals'
    controls, those that have not answered yet at zero.

    Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020.
    """

    def sends(self, weights: Tensors, state: Tensors) -> Tensors:
        """Weights, and beside them "control/<name>" of every learned one; zeros in the first round."""
        if state:
            return {**weights, **state}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items() if is_learned(name, tensor)}
        return {**weights, **label("control", zeros)}

    def local_rule(self, network: Network, sent: Tensors, kept: Tensors) -> LocalRule:
        return _Correction(network, of_kind("control", sent), of_kind("control", kept))

    def aggregate(self, updates: Iterable[Update], sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors] | None:
        changes: Tensors = {}

        def weights_alone() -> Iterator[Update]:
            for update in updates:
                for name, tensor in of_kind("control", update.tensors).items():
                    change = tensor.double() - sent[f"control/{name}"]
                    changes[name] = changes[name] + change if name in changes else change
                yield replace(update, tensors={n: t for n, t in update.tensors.items() if not n.startswith("control/")})

        done = super().aggregate(weights_alone(), sent, state)
        if done is None:
            return None
        rate = self.config.server_learning_rate
        weights = {n: torch.lerp(sent[n], t, rate) if is_learned(n, t) else t for n, t in done[0].items()}
        common = of_kind("control", sent)
        control = {n: (c + changes[n] / self.n_hospitals).to(c.dtype) for n, c in common.items()}
        return weights, label("control", control)


class _Correction:
    def __init__(self, network: Network, common: Tensors, own: Tensors) -> None:
        self._parameters = {name: p for name, p in network.named_parameters() if name in common}
        self._common = common
        self._own = own or {name: torch.zeros_like(tensor) for name, tensor in common.items()}
        self._shift = {name: common[name] - self._own[name] for name in self._parameters}
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in common.items()}
        self._steps = 0

    def adjust_gradients(self) -> None:
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._sums[name].add_(parameter.grad)
                parameter.grad.add_(self._shift[name])

    def finish(self) -> tuple[Tensors, Tensors]:
        """Sends c + (new c_i - old c_i): like the weights, the message's tensors as this hospital moved them."""
        new = {name: total / self._steps for name, total in self._sums.items()}
        sent = {name: self._common[name] + (new[name] - self._own[name]) for name in new}
        return label("control", sent), label("control", new)
