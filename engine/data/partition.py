"""Deals a pooled source to hospitals: seeded, complete, and never a patient or an exact copy at two of them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engine.data.hospitals import LocalImage
from engine.data.splits import group_images
from engine.errors import DataError
from engine.results.words import count
from engine.sections import Partition

MIN_GROUPS = 2  # a hospital of one group cannot both train and be tested
MAX_DRAWS = 100

Shares = npt.NDArray[np.float64]  # (classes, hospitals), each row sums to 1


def deal_images(
    images: Sequence[LocalImage], hospitals: Sequence[str], classes: Sequence[str], config: Partition
) -> dict[str, list[LocalImage]]:
    """Every image once, under its hospital's id, in the order of the paths; the order of `images` changes nothing.

    Groups (all images of one patient with every exact copy of any of them) are dealt whole, largest first; each goes
    to the hospital that lacks most of its share of the group's class. The shares:
    "iid": the same for all. "quotas": in proportion to the parts given for the class.
    "dirichlet": for each class anew from Dir(alpha), the label skew of Yurochkin et al., Bayesian Nonparametric
    Federated Learning of Neural Networks, ICML 2019 (Hsu, Qi and Brown 2019 draw class mixes by hospital instead).
    "quantity": one draw from Dir(alpha) for all classes, so hospitals differ in size alone (Li et al., Federated
    Learning on Non-IID Data Silos, ICDE 2022).
    What is drawn is drawn anew, at most MAX_DRAWS times, until every hospital has MIN_GROUPS groups. Raises DataError
    where that cannot be.
    """
    groups = group_images(images, patients_span=True)
    if len(groups) < MIN_GROUPS * len(hospitals):
        raise DataError(
            f"the source holds {count(len(groups), 'group')} (patients with their copies) for {len(hospitals)} "
            f"hospitals that need {MIN_GROUPS} each; name fewer hospitals or add images"
        )
    n_draws = MAX_DRAWS if config.alpha is not None else 1
    for draw in range(n_draws):
        dealt = _deal(groups, _shares(config, hospitals, classes, draw), hospitals, classes, config.seed)
        n_groups = Counter(dealt.values())
        if all(n_groups[hospital] >= MIN_GROUPS for hospital in hospitals):
            break
    else:
        poorest = min(hospitals, key=lambda hospital: n_groups[hospital])
        tried = f"in {n_draws} draws of alpha = {config.alpha:g} a" if config.alpha is not None else "a"
        remedy = "raise alpha or name fewer hospitals" if config.alpha is not None else "change the quotas"
        raise DataError(
            f"partition '{config.method}': {tried} hospital always got fewer than {MIN_GROUPS} groups (patients with "
            f"their copies), at last '{poorest}' with {n_groups[poorest]}; {remedy}"
        )
    held: dict[str, list[LocalImage]] = {hospital: [] for hospital in hospitals}
    for name, members in groups.items():
        held[dealt[name]] += [replace(image, hospital=dealt[name]) for image in members]
    return {hospital: sorted(mine, key=lambda image: image.path) for hospital, mine in held.items()}


def _shares(config: Partition, hospitals: Sequence[str], classes: Sequence[str], draw: int) -> Shares:
    shape = len(classes), len(hospitals)
    if config.method == "quotas":
        parts = np.array([[config.quotas[hospital].get(label, 0.0) for hospital in hospitals] for label in classes])
        shares: Shares = parts / parts.sum(axis=1, keepdims=True)
        return shares
    if config.alpha is None:
        return np.full(shape, 1 / len(hospitals))
    generator = np.random.default_rng([config.seed, draw])
    n_rows = 1 if config.method == "quantity" else len(classes)
    return np.broadcast_to(generator.dirichlet(np.full(len(hospitals), config.alpha), n_rows), shape)


def _deal(
    groups: Mapping[str, Sequence[LocalImage]],
    shares: Shares,
    hospitals: Sequence[str],
    classes: Sequence[str],
    seed: int,
) -> dict[str, str]:
    """The hospital of every group, by the group's name."""
    of_class: dict[int, list[str]] = defaultdict(list)
    for name, members in groups.items():
        held = Counter(classes.index(image.label) for image in members)
        of_class[min(held, key=lambda label: (-held[label], label))].append(name)
    dealt: dict[str, str] = {}
    for label, names in of_class.items():
        lacking = shares[label] * sum(len(groups[name]) for name in names)
        for name in sorted(names, key=lambda name: (-len(groups[name]), _shuffle_key(seed, name))):
            poorest = int(lacking.argmax())
            dealt[name] = hospitals[poorest]
            lacking[poorest] -= len(groups[name])
    return dealt


def _shuffle_key(seed: int, group: str) -> str:
    return hashlib.sha256(f"partition/{seed}/{group}".encode()).hexdigest()
