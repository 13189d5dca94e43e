"""Membership inference: which of two images was trained on, told by the loss alone.

A model that remembers gives its training images a lower loss than others of the same hospital: Yeom, Giacomelli,
Fredrikson & Jha, Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting, CSF 2018. A share found at
few false alarms says more than a mean over all of them: Carlini et al., Membership Inference Attacks From First
Principles, S&P 2022.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.data.federation_data import FederationData
from engine.data.splits import Part
from engine.federation.arms import image_sets
from engine.federation.checkpoint import load_tensors
from engine.federation.probe import network_with
from engine.results.bootstrap import Estimate, separation
from engine.results.leakage import ENOUGH, MAX_FALSE
from engine.results.metrics import Floats, Integers
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.training.device import explained_out_of_memory
from engine.training.images import ImageSet
from engine.training.local import predict_logits
from engine.training.networks import Network

PARTS: tuple[Part, ...] = ("train", "test")  # members first


@dataclass(frozen=True)
class Losses:
    """Of one model on one hospital's images: training images first, `member` says which; groups as in the splits."""

    values: Floats
    member: np.typing.NDArray[np.bool_]
    groups: tuple[str, ...]

    def join(self, others: Sequence["Losses"]) -> "Losses":
        everything = [self, *others]
        return Losses(
            np.concatenate([one.values for one in everything]),
            np.concatenate([one.member for one in everything]),
            tuple(group for one in everything for group in one.groups),
        )


def cross_entropies(logits: Floats, labels: Integers) -> Floats:
    """One loss per image, in float64, from logits (n, classes); a sure and right answer keeps its last digits."""
    exact, rows = logits.astype(np.float64), np.arange(len(labels))
    margins = exact - exact[rows, labels][:, None]
    margins[rows, labels] = -np.inf
    losses: Floats = np.logaddexp(0, np.logaddexp.reduce(margins, axis=1))
    return losses


def attack_by_loss(losses: Losses) -> dict[str, Any]:
    """The figures of one `Membership` row. Needs images of both kinds."""
    n_members, n_others = int(losses.member.sum()), int((~losses.member).sum())
    auc, tpr = separation(-losses.values, losses.member, losses.groups, MAX_FALSE)
    return {
        "n_members": n_members,
        "n_others": n_others,
        "n_groups": len(set(losses.groups)),
        "loss_members": float(losses.values[losses.member].mean()),
        "loss_others": float(losses.values[~losses.member].mean()),
        "auc": _score(auc),
        "tpr": _score(tpr) if n_others >= ENOUGH else None,
    }


def plan_membership(run: Run, data: FederationData) -> dict[str, dict[str, bool]]:
    """{model: {hospital: whether the model was trained on its images}}: every model on those it saw, and for each
    hospital one that saw none of them, where there is one. Hospitals without test images are left out."""
    keys = {line.model for line in run.rounds()}
    hospitals = [one.id for one in data.federation.hospital if data.images_used("test", one)]
    everyone = dict.fromkeys(hospitals, True)
    plan: dict[str, dict[str, bool]] = {}
    if "global" in keys and data.federation.aggregation.keeps_private:
        plan |= {f"personal/{hospital}": {hospital: True} for hospital in hospitals}
    elif "global" in keys:
        plan["global"] = dict(everyone)
    plan |= {f"local/{hospital}": {hospital: True} for hospital in hospitals if f"local/{hospital}" in keys}
    if "central" in keys:
        plan["central"] = dict(everyone)
    trained_on = {one.id: {split.group for split in data.images_used("train", one)} for one in data.federation.hospital}
    for hospital in hospitals:
        for other, groups in trained_on.items():
            if other != hospital and f"local/{other}" in keys and groups.isdisjoint(trained_on[hospital]):
                plan.setdefault(f"local/{other}", {})[hospital] = False
                break
    return plan


def measure_membership(
    run: Run,
    data: FederationData,
    plan: Mapping[str, Mapping[str, bool]],
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Rows as `Membership` has them: of each model its hospitals, and for one of several hospitals first all of them.
    `on_step` is called after each model's pass over one hospital's images."""
    members, others = (image_sets(data, part) for part in PARTS)
    for model, hospitals in plan.items():
        network = network_with(run, load_tensors(run.weights(model))).to(device)
        found = {}
        for hospital in hospitals:
            with explained_out_of_memory(run.federation):
                found[hospital] = _losses(network, data, hospital, members[hospital], others[hospital], device)
            on_step()
        seen = [losses for hospital, losses in found.items() if hospitals[hospital]]
        if len(seen) > 1:
            yield {"model": model, "hospital": ALL, "saw": True, **attack_by_loss(seen[0].join(seen[1:]))}
        for hospital, losses in found.items():
            yield {"model": model, "hospital": hospital, "saw": hospitals[hospital], **attack_by_loss(losses)}


def _losses(
    network: Network, data: FederationData, hospital: str, members: ImageSet, others: ImageSet, device: torch.device
) -> Losses:
    (own,) = (one for one in data.federation.hospital if one.id == hospital)
    parts = [
        cross_entropies(predict_logits(network, images, device), images.labels.numpy()) for images in (members, others)
    ]
    groups = [split.group for part in PARTS for split in data.images_used(part, own)]
    return Losses(np.concatenate(parts), np.arange(len(groups)) < len(members), tuple(groups))


def _score(estimate: Estimate) -> dict[str, float]:
    return {name: float(value) for name, value in estimate._asdict().items()}
