"""FedProx: a hospital's weights are held near the round's, for hospitals that drift apart."""

from engine.aggregation_config import FedProxConfig
from engine.federation.strategies.fedavg import LocalRule, Strategy
from engine.training.networks import Network, Tensors


class FedProx(Strategy[FedProxConfig]):
    """FedAvg with mu/2 ||w - w_round||^2 added to each hospital's loss; mu = 0 would be FedAvg.

    The term enters as its gradient, so the reported training loss stays comparable between strategies. No state, no
    further bytes.

    Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """

    def local_rule(self, network: Network, sent: Tensors, kept: Tensors) -> LocalRule:
        return _Pull(network, sent, self.config.mu)


class _Pull:
    def __init__(self, network: Network, sent: Tensors, mu: float) -> None:
        # A private tensor is not sent, so nothing pulls it.
        learned = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._pairs = [(parameter, sent[name]) for name, parameter in learned if name in sent]
        self._mu = mu

    def adjust_gradients(self) -> None:
        for parameter, anchor in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self._mu)

    def finish(self) -> tuple[Tensors, Tensors]:
        return {}, {}
