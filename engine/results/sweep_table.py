"""A sweep as a table: one row per grid point, each a mean over seeds of the federated model."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.config import Federation
from engine.errors import ConfigError, RunError
from engine.results.bootstrap import Estimate, mean_score, paired_difference
from engine.results.rounds import ALL, RoundLine, best_round, communication, summaries
from engine.results.run_folder import Run
from engine.results.sweeps import SEED, images_key, point_key, reference_key, require_one_federation, setting_of

PLAIN = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
OF_TWO = ("sensitivity", "specificity")
REACHED = 0.99  # of the pooled model's best validation macro-F1


@dataclass(frozen=True)
class Row:
    """One grid point. Means over seeds; bytes and seconds are those of all hospitals together.

    `versus_first` is the paired difference to the first row on the same images. What has no answer is None: that in
    the first row itself and where the seeds differ; without a pooled model for every seed `pooled`, `gap` and
    `n_reached`; where no seed reached 99% of it `rounds_to_reach` and `seconds_to_reach`, which are means over the
    seeds that did.
    """

    settings: dict[str, str]
    seeds: tuple[int, ...]
    n_images: int
    n_groups: int
    score: Estimate
    spread: float | None  # standard deviation over seeds
    versus_first: Estimate | None
    pooled: float | None
    gap: Estimate | None
    worst_hospital: str | None
    worst_score: float | None
    rounds: int
    best_round: float
    bytes_up_per_round: float
    bytes_down_per_round: float
    bytes_up: float
    bytes_down: float
    pooling_once_bytes: int  # the files of all training images
    seconds: float
    n_reached: int | None
    rounds_to_reach: float | None
    seconds_to_reach: float | None


@dataclass(frozen=True)
class SweepTable:
    """`keys` are the settings in which rows differ, `common` what was changed from the file in all of them."""

    name: str
    federation: Federation
    metric: str
    split: str
    keys: tuple[str, ...]
    common: tuple[str, ...]
    left_out: tuple[str, ...]  # strategies that leave no one federated model to read external images with
    rows: tuple[Row, ...]


def make_table(name: str, runs: Sequence[Run], metric: str, split: str) -> SweepTable:
    """Of the finished runs among `runs`. Raises ConfigError for a metric that the federation has not."""
    if not runs:
        raise RunError(f"there is no sweep '{name}'; `python -m engine sweep FEDERATION --name {name}` makes one")
    require_one_federation(name, runs)
    federation = runs[0].federation
    scored = _scored_as(metric, federation)
    if split == "external" and federation.external is None:
        raise ConfigError(f"--split external: '{federation.name}' has no external test set")
    finished = [run for run in runs if run.is_finished]
    points: dict[str, dict[int, Run]] = {}
    left_out = set()
    for run in finished:
        if split == "external" and run.federation.aggregation.keeps_private:
            left_out.add(run.federation.aggregation.strategy)
        elif "federated" in run.federation.arms:
            points.setdefault(point_key(run.federation), {})[run.federation.training.seed] = run
    if not points:
        raise RunError(f"sweep {name}: has no finished run with one federated model yet; repeat the sweep's command")
    pooled = {
        reference_key(run.federation): Reading(run, "central", split)
        for run in finished
        if "central" in run.federation.arms
    }
    shown = [run for by_seed in points.values() for run in by_seed.values()]
    keys, common = _changed_keys(shown)
    rows = []
    yardsticks: dict[str, list[Reading]] = {}
    for by_seed in points.values():
        mine = [Reading(by_seed[seed], "global", split) for seed in sorted(by_seed)]
        first = yardsticks.setdefault(images_key(mine[0].run.federation), mine)
        rows.append(_row(mine, None if first is mine else first, pooled, keys, scored))
    return SweepTable(name, federation, metric, split, keys, common, tuple(sorted(left_out)), tuple(rows))


class Reading:
    """One model's predictions in one run, on one split, in an order that two runs share."""

    def __init__(self, run: Run, model: str, split: str) -> None:
        self.run = run
        self.model = model
        self.split = split
        self._rows: pd.DataFrame | None = None

    @property
    def rows(self) -> pd.DataFrame:
        """Raises RunError where the model says nothing about these images."""
        if self._rows is None:
            found = self.run.predictions()
            found = found[(found["model"] == self.model) & (found["split"] == self.split)]
            if found.empty:
                raise RunError(f"{self.run.folder}: {self.model} says nothing about {self.split} images")
            self._rows = found.sort_values(["hospital", "path"], ignore_index=True)
        return self._rows

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        return np.stack(list(self.rows["logits"]))

    def has_same_images(self, other: "Reading") -> bool:
        names = ["hospital", "path", "label", "group"]
        return bool(self.rows[names].equals(other.rows[names]))

    def require_same_images(self, other: "Reading") -> None:
        if not self.has_same_images(other):
            raise RunError(
                f"{self.run.name} and {other.run.name} were not tested on the same images, so they cannot be compared: "
                "the data changed within the sweep; train it anew under another --name"
            )


def _row(
    mine: Sequence[Reading],
    first: Sequence[Reading] | None,
    pooled: dict[str, Reading],
    keys: Sequence[str],
    metric: str,
) -> Row:
    runs, split = [reading.run for reading in mine], mine[0].split
    federation = runs[0].federation
    theirs = [pooled[key] for run in runs if (key := reference_key(run.federation)) in pooled]
    if len(theirs) < len(runs):
        theirs = []  # a mean over some of the seeds is no reference for the mean over all
    for other in [*mine[1:], *theirs]:
        mine[0].require_same_images(other)
    index = {label: number for number, label in enumerate(federation.classes)}
    labels = mine[0].rows["label"].map(index).to_numpy(np.int64)
    groups = list(mine[0].rows["group"])
    ours = np.stack([reading.logits for reading in mine])
    alone = [mean_score(logits, labels, groups, federation.classes, metric).value for logits in ours]

    def less(others: Sequence[Reading]) -> Estimate:
        logits = np.stack([reading.logits for reading in others])
        return paired_difference(ours, logits, labels, groups, federation.classes, metric)

    reference, gap, versus_first = None, None, None
    if theirs:
        others = np.stack([reading.logits for reading in theirs])
        reference = mean_score(others, labels, groups, federation.classes, metric).value
        gap = less(theirs)
    if first and _seeds(first) == _seeds(mine) and mine[0].has_same_images(first[0]):
        versus_first = less(first)
    worst, worst_score = _worst_hospital(runs, metric, split)
    lines = [run.rounds() for run in runs]
    up, down = (_bytes(lines, way) for way in ("bytes_up", "bytes_down"))
    reached = [
        when
        for of_run, reading in zip(lines, theirs, strict=False)  # none where there are no pooled runs
        if (when := _when_reached(of_run, reading.run.rounds())) is not None
    ]
    return Row(
        settings={key: setting_of(federation, key) for key in keys},
        seeds=_seeds(mine),
        n_images=len(labels),
        n_groups=len(set(groups)),
        score=mean_score(ours, labels, groups, federation.classes, metric),
        spread=statistics.stdev(alone) if len(alone) > 1 else None,
        versus_first=versus_first,
        pooled=reference,
        gap=gap,
        worst_hospital=worst,
        worst_score=worst_score,
        rounds=federation.training.rounds,
        best_round=statistics.fmean(best_round(of_run, "global") or 0 for of_run in lines),
        bytes_up_per_round=up / federation.training.rounds,
        bytes_down_per_round=down / federation.training.rounds,
        bytes_up=up,
        bytes_down=down,
        pooling_once_bytes=runs[0].read_json("communication.json")["pooling_once_bytes"],
        seconds=statistics.fmean(sum(line.seconds or 0 for line in summaries(of_run, "global")) for of_run in lines),
        n_reached=len(reached) if theirs else None,
        rounds_to_reach=statistics.fmean(number for number, _ in reached) if reached else None,
        seconds_to_reach=statistics.fmean(seconds for _, seconds in reached) if reached else None,
    )


def _scored_as(metric: str, federation: Federation) -> str:
    """The metric as bootstrap.py calls it."""
    recalls = [f"recall/{label}" for label in federation.classes]
    if metric in (*PLAIN, *recalls):
        return metric
    positive = federation.positive_class
    if metric in OF_TWO and positive is not None:
        healthy = next(label for label in federation.classes if label != positive)
        return f"recall/{positive if metric == 'sensitivity' else healthy}"
    known = [*PLAIN, *(OF_TWO if positive is not None else ()), *recalls]
    raise ConfigError(f"--metric {metric}: must be one of {', '.join(known)}")


def _changed_keys(runs: Sequence[Run]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys whose values differ between grid points, as they were given, and the changes that all have."""
    given = dict.fromkeys(
        change.partition("=")[0].strip() for run in runs for change in run.config.changes if "=" in change
    )
    values = {key: {setting_of(run.federation, key) for run in runs} for key in given if key not in ("arms", SEED)}
    keys = tuple(key for key, found in values.items() if len(found) > 1)
    common = tuple(f"{key}={next(iter(found))}" for key, found in values.items() if len(found) == 1)
    return keys, common


def _worst_hospital(runs: Sequence[Run], metric: str, split: str) -> tuple[str | None, float | None]:
    """The display name and mean score of the hospital whose test images the federated model reads worst."""
    if split != "test":
        return None, None
    cells = [run.read_json("evaluation.json")["splits"][split]["global"] for run in runs]
    scores = {
        hospital: statistics.fmean(_score_of(cell[hospital], metric) for cell in cells)
        for hospital in cells[0]
        if hospital != ALL and _has(cells[0][hospital], metric)
    }
    if not scores:
        return None, None
    worst = min(scores, key=lambda hospital: scores[hospital])
    return runs[0].federation.display_name(worst), scores[worst]


def _has(cell: dict[str, Any], metric: str) -> bool:
    """A class without images at a hospital has no recall there."""
    return not metric.startswith("recall/") or cell["per_class"][metric.removeprefix("recall/")]["support"] > 0


def _score_of(cell: dict[str, Any], metric: str) -> float:
    if metric.startswith("recall/"):
        return float(cell["per_class"][metric.removeprefix("recall/")]["recall"])
    return float(cell[metric])


def _seeds(readings: Sequence[Reading]) -> tuple[int, ...]:
    return tuple(reading.run.federation.training.seed for reading in readings)


def _bytes(lines: Sequence[Sequence[RoundLine]], way: str) -> float:
    """Of all hospitals and rounds together, the mean over runs."""
    return statistics.fmean(sum(hospital[way] for hospital in communication(of_run).values()) for of_run in lines)


def _when_reached(lines: Sequence[RoundLine], pooled: Sequence[RoundLine]) -> tuple[int, float] | None:
    """The first round that is as good as REACHED of the pooled model's best, and the seconds until its end."""
    scores = [line.validation.macro_f1 or 0 for line in summaries(pooled, "central") if line.validation]
    best = max(scores, default=math.inf)
    seconds = 0.0
    for line in summaries(lines, "global"):
        seconds += line.seconds or 0
        if line.validation and (line.validation.macro_f1 or 0) >= REACHED * best:
            return line.round, seconds
    return None
