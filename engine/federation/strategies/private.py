"""FedBN and FedPer: a part of the network stays at each hospital. Its tensors never enter an update.

There is then no one federated model: each hospital has its own, the common tensors with its private ones. The
coordinator does not average what it never sees, so a run keeps "personal/<hospital id>" models instead.
"""

from torch.nn.modules.batchnorm import _BatchNorm

from engine.aggregation_config import FedBNConfig, FedPerConfig
from engine.federation.strategies.fedavg import Strategy
from engine.training.networks import Network


class FedBN(Strategy[FedBNConfig]):
    """Every hospital keeps its BatchNorm, weights and statistics: for hospitals whose images look different.

    Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021.
    """

    def private(self, network: Network) -> frozenset[str]:
        return frozenset(
            f"{place}.{name}"
            for place, module in network.named_modules()
            if isinstance(module, _BatchNorm)
            for name in module.state_dict()
        )


class FedPer(Strategy[FedPerConfig]):
    """Every hospital keeps its head: for hospitals whose classes are mixed differently.

    Arivazhagan et al., Federated Learning with Personalization Layers, 2019.
    """

    def private(self, network: Network) -> frozenset[str]:
        return frozenset(name for name in network.state_dict() if name.startswith(f"{network.head_name}."))
