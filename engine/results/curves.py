"""ROC and precision-recall curves of one class against the others, with bands from whole groups drawn anew.

Both are steps, so that curve, area and band mean the same: sensitivity is the largest share of the class found while
at most so many of the others are called it; precision is that of the strictest threshold that finds so many. The area
under the ROC curve counts ties as half, average precision is the step sum (as scikit-learn has them).

Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006) 861-874.
"""

from typing import NamedTuple

import numpy as np

from engine.results.answers import Answers
from engine.results.bootstrap import (
    CHUNK,
    Doubles,
    Estimate,
    draw_groups,
    estimate_of,
    interval_of,
    sum_by,
    weighted_auc,
)

GRID = np.linspace(0, 1, 101)


class Curve(NamedTuple):
    """`x` and `y` are the corners; `low` and `high` the band at each of GRID, NaN where no replicate says anything."""

    x: Doubles
    y: Doubles
    low: Doubles
    high: Doubles


class OneVersusRest(NamedTuple):
    """One class of one model. `n_images` are of the class, `n_others` are not; without either there is no curve."""

    roc: Curve
    pr: Curve
    auc: Estimate
    average_precision: Estimate
    n_images: int
    n_others: int


def one_versus_rest(answers: Answers, model: str, label: str, *, seed: int = 0) -> OneVersusRest | None:
    """None where there are no images of the class, or of no other."""
    place = answers.classes.index(label)
    scores, positive = answers.probabilities(model)[:, place], answers.labels == place
    n_images = int(positive.sum())
    if n_images in (0, len(positive)):
        return None
    group_of, drawn = draw_groups(answers.groups, seed)
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])
    levels, level_of = np.unique(-scores, return_inverse=True)  # the highest score first; equal ones pass together
    found, precise, areas = [], [], []
    corners: tuple[Doubles, Doubles] | None = None
    for start in range(0, len(weights), CHUNK):
        rows = weights[start : start + CHUNK][:, group_of]
        hits = np.cumsum(sum_by(level_of[positive], rows[:, positive], len(levels)), axis=1)
        misses = np.cumsum(sum_by(level_of[~positive], rows[:, ~positive], len(levels)), axis=1)
        corners = (hits[0], misses[0]) if corners is None else corners
        for one_hits, one_misses in zip(hits, misses, strict=True):
            found.append(_sensitivity_at(one_hits, one_misses))
            precise.append(_precision_at(one_hits, one_misses))
            areas.append(_average_precision(one_hits, one_misses))
    if corners is None:
        return None
    hits, misses = corners
    return OneVersusRest(
        roc=Curve(np.r_[0, misses / misses[-1]], np.r_[0, hits / hits[-1]], *_band(np.array(found[1:]))),
        pr=Curve(hits / hits[-1], hits / (hits + misses), *_band(np.array(precise[1:]))),
        auc=estimate_of(weighted_auc(scores, positive, weights[:, group_of])),
        average_precision=estimate_of(np.array(areas)),
        n_images=n_images,
        n_others=len(positive) - n_images,
    )


def _sensitivity_at(hits: Doubles, misses: Doubles) -> Doubles:
    if not hits[-1] or not misses[-1]:
        return np.full(len(GRID), np.nan)
    last = np.searchsorted(misses / misses[-1], GRID + 1e-12, side="right")
    shares: Doubles = np.r_[0, hits / hits[-1]][last]
    return shares


def _precision_at(hits: Doubles, misses: Doubles) -> Doubles:
    if not hits[-1]:
        return np.full(len(GRID), np.nan)
    first = np.searchsorted(hits / hits[-1], GRID - 1e-12, side="left")
    first = np.maximum(first, np.searchsorted(hits, 0, side="right"))  # nothing found yet says nothing of precision
    precision: Doubles = hits[first] / (hits + misses)[first]
    return precision


def _average_precision(hits: Doubles, misses: Doubles) -> float:
    called = hits + misses
    if not hits[-1]:
        return float("nan")
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def _band(samples: Doubles) -> tuple[Doubles, Doubles]:
    ends = [
        interval_of(usable) if len(usable := column[np.isfinite(column)]) else (np.nan, np.nan) for column in samples.T
    ]
    low, high = np.array(ends).T
    return low, high
