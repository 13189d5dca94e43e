"""A network that learns without labels: the encoder of a plain one, and a head for each objective in place of its own.

The encoder's tensors keep their names, so a supervised network starts from them (`model.weights = "run-NNN"`); those
of a head are `pretext.<objective>.*`.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.sections import ObjectiveName
from engine.training.device import seeded
from engine.training.networks import Network
from engine.training.objectives import PretextObjective

HEADS = "pretext"


class PretextNetwork(Network):
    """Shares its modules with `plain`. With one head: normalised images -> that head's outputs."""

    head_name = HEADS

    def __init__(self, plain: Network, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._plain = (plain,)  # in a tuple, so that its tensors are not listed twice
        self.mean, self.std = plain.mean, plain.std
        for name, module in plain.named_children():
            if name != plain.head_name:
                self.add_module(name, module)
        self.add_module(HEADS, nn.ModuleDict(heads))

    def with_head(self, objective: ObjectiveName) -> "PretextNetwork":
        """The same encoder with the head of this objective alone."""
        return PretextNetwork(self._plain[0], {objective: self.get_submodule(f"{HEADS}.{objective}")})

    def feature_map(self, images: Tensor) -> Tensor:
        return self._plain[0].feature_map(images)

    def classify(self, feature_map: Tensor) -> Tensor:
        (head,) = self.get_submodule(HEADS).children()
        outputs: Tensor = head(feature_map.mean((2, 3)))
        return outputs


def build_pretext(plain: Network, objectives: Mapping[ObjectiveName, PretextObjective], seed: int) -> PretextNetwork:
    """The encoder of `plain` with a new head for each objective; the same seed gives each the same weights, whatever
    other objectives there are."""
    width = feature_width(plain)
    heads: dict[str, nn.Module] = {}
    for name, objective in objectives.items():
        with seeded(seed):
            heads[name] = objective.head(width)
    return PretextNetwork(plain, heads)


def feature_width(plain: Network) -> int:
    """Channels of the last feature map: what the head reads."""
    return int(plain.get_parameter(f"{plain.head_name}.weight").shape[1])
