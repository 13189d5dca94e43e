"""FedAvgM and FedAdam: the coordinator takes the average's change as a gradient and steps with an optimiser.

Learned tensors only: BatchNorm's statistics and counters are the plain average's, since a momentum can carry a
variance below zero.
"""

import torch

from engine.aggregation_config import FedAdamConfig, FedAvgMConfig
from engine.federation.named_tensors import is_learned, label, of_kind
from engine.federation.strategies.fedavg import Strategy
from engine.training.networks import Tensors


class FedAvgM(Strategy[FedAvgMConfig]):
    """Server momentum, which evens out rounds whose hospitals pull to different sides. State: one set of weights.

    v <- beta v + (average - w);  w <- w + lr v. With beta = 0 and lr = 1 this is FedAvg.

    Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019.
    """

    def step(self, average: Tensors, sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        before, after = of_kind("momentum", state), {}
        weights = dict(average)
        for name, tensor in average.items():
            if is_learned(name, tensor):
                change = tensor - sent[name]
                after[name] = before[name] * self.config.server_momentum + change if name in before else change
                weights[name] = sent[name] + self.config.server_learning_rate * after[name]
        return weights, label("momentum", after)


class FedAdam(Strategy[FedAdamConfig]):
    """Server Adam: steps of much the same size for every weight. State: two sets of weights.

    m <- b1 m + (1 - b1) d;  v <- b2 v + (1 - b2) d^2;  w <- w + lr m / (sqrt(v) + tau), for d = average - w. Without
    bias correction, as in the paper's Algorithm 2; m begins at zero and v at tau^2, the least that it allows.

    Reddi et al., Adaptive Federated Optimization, ICLR 2021.
    """

    def step(self, average: Tensors, sent: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        config = self.config
        first, second = of_kind("m", state), of_kind("v", state)
        weights, m, v = dict(average), {}, {}
        for name, tensor in average.items():
            if is_learned(name, tensor):
                change = tensor - sent[name]
                m_before = first.get(name, torch.zeros_like(change))
                v_before = second.get(name, torch.full_like(change, config.tau**2))
                m[name] = config.beta_1 * m_before + (1 - config.beta_1) * change
                v[name] = config.beta_2 * v_before + (1 - config.beta_2) * change.square()
                weights[name] = sent[name] + config.server_learning_rate * m[name] / (v[name].sqrt() + config.tau)
        return weights, {**label("m", m), **label("v", v)}
