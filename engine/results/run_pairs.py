"""Two runs on the same test images: how much better the one reads them than the other, overall and at each hospital."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engine.config import Federation
from engine.errors import RunError
from engine.results.bootstrap import Estimate, mean_score, paired_difference
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.sweep_table import Reading

PLAIN = {
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_precision": "Macro precision",
    "ece": "Calibration error",
}


@dataclass(frozen=True)
class PairedScore:
    """One model's score in two runs on the same images, and the second less the first. `hospital` is an id or "all".

    NaN where the metric says nothing of these images, as the recall of a class that none of them shows.
    """

    hospital: str
    n_images: int
    n_groups: int
    first: float
    second: float
    difference: Estimate


@dataclass(frozen=True)
class Paired:
    """Scores of all test images first, where every hospital shares its own, then by hospital; and the ids of those
    that do not share theirs."""

    scores: tuple[PairedScore, ...]
    different: tuple[str, ...]


def metric_names(federation: Federation) -> dict[str, str]:
    """Every metric of a pair by its key in bootstrap.py, and how a page calls it."""
    names = dict(PLAIN)
    positive = federation.positive_class
    for label in federation.classes:
        of_two = "" if positive is None else (" (sensitivity)" if label == positive else " (specificity)")
        names[f"recall/{label}"] = f"Recall of {label}{of_two}"
    return names | {f"auc/{label}": f"AUC of {label}" for label in federation.classes}


def why_no_pair(first: Run, second: Run) -> str:
    """Why no paired difference of two runs can be computed, in a sentence; empty where one may be."""
    for run in (first, second):
        if not run.is_finished:
            return f"{run.name} is not finished, so it has no test scores yet."
        if run.federation.pretext is not None:
            return f"{run.name} learned without labels, so it has no test scores; Evaluation shows what a probe says."
        if run.config.transport == "flower":
            return (
                f"{run.name} was trained over a network: its hospitals told counts, and what its models say of single "
                "images stays with them, so no paired difference can be computed."
            )
    if first.federation.classes != second.federation.classes:
        return f"{first.name} and {second.name} tell different classes apart."
    return ""


def shared_test_images(first: Run, second: Run) -> tuple[list[str], list[str]]:
    """Ids of the hospitals whose test images are the same in both runs, by path, content, label and group, and of those
    whose are not. Raises RunError where the splits cannot be read."""
    ours, theirs = _test_images(first), _test_images(second)
    hospitals = list(dict.fromkeys([*ours, *theirs]))
    same = [hospital for hospital in hospitals if ours.get(hospital) == theirs.get(hospital)]
    return same, [hospital for hospital in hospitals if hospital not in same]


def pair_scores(first: Run, second: Run, model: str, metric: str) -> Paired:
    """One model's scores in both runs, and the second less the first, on the test images that they share.

    Intervals are those of `paired_difference`. Raises RunError with the reason where nothing can be paired.
    """
    if why := why_no_pair(first, second):
        raise RunError(why)
    same, different = shared_test_images(first, second)
    if not same:
        raise RunError(f"{first.name} and {second.name} share no hospital's test images, so nothing can be paired.")
    ours, theirs = Reading(first, model, "test"), Reading(second, model, "test")
    tables = [one.rows[one.rows["hospital"].isin(same)].reset_index(drop=True) for one in (ours, theirs)]
    names = ["hospital", "path", "label", "group"]
    if not tables[0][names].equals(tables[1][names]):
        raise RunError(f"{first.name} and {second.name}: {model} was not asked about the same test images in both.")
    places = [] if different else [ALL]
    order = [hospital.id for hospital in first.federation.hospital if hospital.id in same]
    classes = first.federation.classes
    scores = tuple(_paired(tables, place, classes, metric) for place in [*places, *order])
    return Paired(scores, tuple(different))


def _paired(tables: Sequence[pd.DataFrame], place: str, classes: Sequence[str], metric: str) -> PairedScore:
    ours, theirs = (table if place == ALL else table[table["hospital"] == place] for table in tables)
    index = {label: number for number, label in enumerate(classes)}
    labels = ours["label"].map(index).to_numpy(np.int64)
    groups = list(ours["group"])
    first, second = (np.stack(list(table["logits"])) for table in (ours, theirs))
    return PairedScore(
        hospital=place,
        n_images=len(labels),
        n_groups=len(set(groups)),
        first=mean_score(first, labels, groups, classes, metric).value,
        second=mean_score(second, labels, groups, classes, metric).value,
        difference=paired_difference(second, first, labels, groups, classes, metric),
    )


def _test_images(run: Run) -> dict[str, frozenset[tuple[Any, ...]]]:
    """By hospital id; a hospital without test images is not in it."""
    found: dict[str, set[tuple[Any, ...]]] = {}
    for image in run.read_json("dataset_splits.json")["images"]:
        if image["split"] == "test":
            key = (image["path"], image["sha256"], image["label"], image["group"])
            found.setdefault(image["hospital"], set()).add(key)
    return {hospital: frozenset(images) for hospital, images in found.items()}
