"""Who learns what: in a federation without labels every hospital trains the common encoder behind a head of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import Federation
from engine.federation.arms import POOLED
from engine.federation.rounds import Rules
from engine.federation.strategies import make_strategy
from engine.sections import Arm
from engine.training.networks import Network
from engine.training.objectives import PretextObjective, make_objective
from engine.training.pretext import PretextNetwork, build_pretext


@dataclass(frozen=True)
class Task:
    """One trainer's network, and what it learns; without an objective its labels."""

    network: Network
    objective: PretextObjective | None = None


def with_heads(network: Network, federation: Federation) -> Network:
    """The network that a federation trains: as it is, or without labels its encoder with every objective's head."""
    pretext = federation.pretext
    if pretext is None:
        return network
    names = dict.fromkeys([pretext.objective, *federation.objectives.values()])
    objectives = {name: make_objective(name, pretext) for name in names}
    return build_pretext(network, objectives, federation.training.seed)


def make_tasks(network: Network, federation: Federation, arm: Arm) -> Mapping[str, Task]:
    """By hospital id and for the pooled trainer; `network` is that of `with_heads`.

    The pooled images are one heap with one trainer, so the central arm learns the federation's own objective with the
    federation's views, and every hospital validates it on that.
    """
    everyone = [hospital.id for hospital in federation.hospital]
    pretext = federation.pretext
    if pretext is None or not isinstance(network, PretextNetwork):
        return dict.fromkeys([*everyone, POOLED], Task(network))
    if arm == "central":
        task = Task(network.with_head(pretext.objective), make_objective(pretext.objective, pretext))
        return dict.fromkeys([*everyone, POOLED], task)
    return {
        hospital.id: Task(
            network.with_head(federation.objectives[hospital.id]),
            make_objective(federation.objectives[hospital.id], pretext, hospital.views),
        )
        for hospital in federation.hospital
    }


def rules_of(federation: Federation) -> Rules:
    """Those of the federated arm."""
    pretext, objectives = federation.pretext, federation.objectives
    group_of = objectives if pretext is not None and pretext.weigh == "objectives" else None
    strategy = make_strategy(federation.aggregation, len(federation.trainers), group_of)
    private_heads = pretext is not None and pretext.heads == "private"
    return Rules(strategy, federation.communication, objectives, private_heads, federation.secure_aggregation)
