"""What a hospital learns: its labels, or one of the pretext tasks, which need none. docs/pretext.md compares them."""

from engine.pretext_config import PretextConfig
from engine.sections import ObjectiveName, ViewsConfig
from engine.training.objectives.objective import Objective, PretextObjective
from engine.training.objectives.rotation import Rotation
from engine.training.objectives.simclr import SimCLR
from engine.training.objectives.simsiam import SimSiam
from engine.training.objectives.supervised import Supervised

__all__ = ["Objective", "PretextObjective", "Supervised", "make_objective"]

KINDS: dict[ObjectiveName, type[PretextObjective]] = {"rotation": Rotation, "simclr": SimCLR, "simsiam": SimSiam}


def make_objective(name: ObjectiveName, config: PretextConfig, views: ViewsConfig | None = None) -> PretextObjective:
    """`views` are a hospital's own; None: the federation's."""
    return KINDS[name](config, views or config.views)
