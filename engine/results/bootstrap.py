"""95% intervals of a classifier's scores: percentile bootstrap over groups (patients, where they are known).

Whole groups are drawn with replacement, because images of one patient are not independent. Every replicate is a
vector of weights, one per group, so all replicates are computed at once from per-group sums.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.results.metrics import ECE_BINS, Floats, Integers, softmax

REPLICATES = 1000
LEVEL = 95
CHUNK = 100

Doubles = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A score, or a difference of two, with the low and the high end of its interval; NaN where it has none."""

    value: float
    low: float
    high: float


def bootstrap_intervals(
    logits: Floats, labels: Integers, groups: Sequence[str], classes: Sequence[str], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Low and high end of accuracy, balanced_accuracy, macro_precision, macro_recall, macro_f1, ece and auc/<class>.

    Classes without images in a replicate stay out of its means, and replicates in which a score cannot be computed
    (an AUC of one class alone) out of its interval. Seeded: the same predictions give the same interval.
    """
    group_of, weights = draw_groups(groups, seed)
    probabilities = softmax(logits)
    samples = _confusion_scores(_confusions(probabilities.argmax(axis=1), labels, group_of, weights, len(classes)))
    samples["ece"] = _ece_samples(probabilities, labels, group_of, weights)
    per_image = weights[:, group_of].astype(np.float64)
    for index, label in enumerate(classes):
        samples[f"auc/{label}"] = weighted_auc(probabilities[:, index], labels == index, per_image)
    intervals = {}
    for name, values in samples.items():
        usable = values[np.isfinite(values)]
        if len(usable):
            intervals[name] = interval_of(usable)
    return intervals


def resampled_confusions(
    predicted: Integers, labels: Integers, groups: Sequence[str], n_classes: int
) -> npt.NDArray[np.int64]:
    """Confusion matrices of REPLICATES draws of groups (replicates, true class, predicted class). Unseeded."""
    group_of, weights = draw_groups(groups, None)
    return _confusions(predicted, labels, group_of, weights, n_classes).astype(np.int64)


def confusion_intervals(matrices: Integers) -> dict[str, tuple[float, float]]:
    """Of replicates (replicates, true class, predicted class): those of `bootstrap_intervals` that follow from them."""
    return {name: interval_of(values) for name, values in _confusion_scores(matrices.astype(np.float64)).items()}


def bootstrap_mean(values: Floats, groups: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """Low and high end of the mean of one value per image."""
    group_of, weights = draw_groups(groups, seed)
    return interval_of((weights @ np.bincount(group_of, values)) / (weights @ np.bincount(group_of)))


def mean_score(
    logits: Floats, labels: Integers, groups: Sequence[str], classes: Sequence[str], metric: str, *, seed: int = 0
) -> Estimate:
    """The mean over models of one score on the same images, and what drawing other images would make of it.

    `logits` are (models, images, classes), or (images, classes) of one model; `metric` is accuracy, balanced_accuracy,
    macro_precision, macro_recall, macro_f1, ece, recall/<class> or auc/<class>. A replicate draws the same groups for
    every model.
    """
    return estimate_of(_mean_samples(logits, labels, groups, classes, metric, seed))


def paired_difference(
    ours: Floats,
    theirs: Floats,
    labels: Integers,
    groups: Sequence[str],
    classes: Sequence[str],
    metric: str = "macro_f1",
    *,
    seed: int = 0,
) -> Estimate:
    """`mean_score` of ours less that of theirs: a replicate draws the same groups for both, so what makes images easy
    or hard for both does not widen the interval. The numbers of models may differ."""
    first, second = (_mean_samples(logits, labels, groups, classes, metric, seed) for logits in (ours, theirs))
    return estimate_of(first - second)


def separation(
    scores: Floats, positive: npt.NDArray[np.bool_], groups: Sequence[str], max_false: float, *, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """How well one score per image tells the positive ones: the AUC, and the share found while at most `max_false` of
    the others are taken for one."""
    group_of, drawn = draw_groups(groups, seed)
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])[:, group_of]
    return (
        estimate_of(weighted_auc(scores, positive, weights)),
        estimate_of(weighted_hits(scores, positive, weights, max_false)),
    )


def ece_interval(
    probabilities: Floats, labels: Integers, groups: Sequence[str], *, seed: int = 0
) -> tuple[float, float]:
    """Low and high end of the expected calibration error of probabilities (n, classes)."""
    group_of, weights = draw_groups(groups, seed)
    return interval_of(_ece_samples(probabilities, labels, group_of, weights))


def weighted_auc(scores: Floats, positive: npt.NDArray[np.bool_], weights: Doubles) -> Doubles:
    """Area under the ROC curve for each row of `weights` (replicates, images); ties count half; NaN if undefined."""
    levels, level_of = np.unique(scores, return_inverse=True)
    areas = [np.zeros(0)]
    for start in range(0, len(weights), CHUNK):
        rows = weights[start : start + CHUNK]
        hits = sum_by(level_of[positive], rows[:, positive], len(levels))
        misses = sum_by(level_of[~positive], rows[:, ~positive], len(levels))
        below = np.cumsum(misses, axis=1) - misses
        pairs = hits.sum(axis=1) * misses.sum(axis=1)
        won = (hits * (below + misses / 2)).sum(axis=1)
        areas.append(np.divide(won, pairs, out=np.full(len(rows), np.nan), where=pairs > 0))
    return np.concatenate(areas)


def weighted_hits(scores: Floats, positive: npt.NDArray[np.bool_], weights: Doubles, max_false: float) -> Doubles:
    """The largest share of positives above a threshold that at most `max_false` of the others pass, for each row of
    `weights` (replicates, images); NaN if undefined."""
    levels, level_of = np.unique(-scores, return_inverse=True)  # the highest score first; equal ones pass together
    shares = [np.zeros(0)]
    for start in range(0, len(weights), CHUNK):
        rows = weights[start : start + CHUNK]
        hits = np.cumsum(sum_by(level_of[positive], rows[:, positive], len(levels)), axis=1)
        misses = np.cumsum(sum_by(level_of[~positive], rows[:, ~positive], len(levels)), axis=1)
        found = np.where(misses <= max_false * misses[:, -1:], hits, 0).max(axis=1)
        defined = (hits[:, -1] > 0) & (misses[:, -1] > 0)
        shares.append(np.divide(found, hits[:, -1], out=np.full(len(rows), np.nan), where=defined))
    return np.concatenate(shares)


def draw_groups(groups: Sequence[str], seed: int | None) -> tuple[Integers, Integers]:
    """The group of every image, and how often each replicate (REPLICATES, groups) draws each group."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if seed is None:  # nobody must know these draws, so none is kept
        return group_of, _draws(len(names), None, REPLICATES)
    return group_of, _kept_draws(len(names), seed, REPLICATES)


def _draws(n_groups: int, seed: int | None, n_replicates: int) -> Integers:
    return np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_replicates)


@lru_cache(maxsize=1)  # a page asks several scores of the same images, and drawing is most of the work
def _kept_draws(n_groups: int, seed: int, n_replicates: int) -> Integers:
    drawn = _draws(n_groups, seed, n_replicates)
    drawn.flags.writeable = False
    return drawn


def interval_of(samples: Doubles) -> tuple[float, float]:
    low, high = np.percentile(samples, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _mean_samples(
    logits: Floats, labels: Integers, groups: Sequence[str], classes: Sequence[str], metric: str, seed: int
) -> Doubles:
    """Of every image once, and then of each replicate: (1 + REPLICATES,)."""
    group_of, drawn = draw_groups(groups, seed)
    weights = np.vstack([np.ones((1, drawn.shape[1]), np.int64), drawn])
    models = logits.reshape(-1, *logits.shape[-2:])
    if metric == "ece" or metric.startswith("auc/"):
        samples = [_probability_samples(softmax(one), labels, group_of, weights, classes, metric) for one in models]
        average: Doubles = np.mean(samples, axis=0)
        return average
    predicted = models.argmax(axis=2)
    matrices = [_confusions(one, labels, group_of, weights, len(classes)) for one in predicted]
    if metric.startswith("recall/"):
        index = list(classes).index(metric.removeprefix("recall/"))
        samples = [_share(matrix[:, index, index], matrix[:, index].sum(axis=1)) for matrix in matrices]
    else:
        samples = [_confusion_scores(matrix)[metric] for matrix in matrices]
    mean: Doubles = np.mean(samples, axis=0)
    return mean


def _probability_samples(
    probabilities: Floats, labels: Integers, group_of: Integers, weights: Integers, classes: Sequence[str], metric: str
) -> Doubles:
    if metric == "ece":
        return _ece_samples(probabilities, labels, group_of, weights)
    index = list(classes).index(metric.removeprefix("auc/"))
    return weighted_auc(probabilities[:, index], labels == index, weights[:, group_of].astype(np.float64))


def _share(hits: Doubles, support: Doubles) -> Doubles:
    return np.divide(hits, support, out=np.full_like(hits, np.nan), where=support > 0)


def estimate_of(samples: Doubles) -> Estimate:
    """The first is the score itself, the others are replicates."""
    usable = samples[1:][np.isfinite(samples[1:])]
    return Estimate(float(samples[0]), *(interval_of(usable) if len(usable) else (np.nan, np.nan)))


def _confusions(
    predicted: Integers, labels: Integers, group_of: Integers, weights: Integers, n_classes: int
) -> Doubles:
    """Counts (replicates, true class, predicted class)."""
    per_group = np.zeros((weights.shape[1], n_classes, n_classes))
    np.add.at(per_group, (group_of, labels, predicted), 1)
    matrices: Doubles = np.tensordot(weights, per_group, axes=1)
    return matrices


def _confusion_scores(matrices: Doubles) -> dict[str, Doubles]:
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, called = matrices.sum(axis=2), matrices.sum(axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    f1 = np.divide(2 * hits, support + called, out=np.zeros_like(hits), where=support + called > 0)
    present = support > 0

    def macro(values: Doubles) -> Doubles:
        mean: Doubles = np.where(present, values, 0).sum(axis=1) / present.sum(axis=1)
        return mean

    return {
        "accuracy": hits.sum(axis=1) / support.sum(axis=1),
        "balanced_accuracy": macro(recall),
        "macro_precision": macro(precision),
        "macro_recall": macro(recall),
        "macro_f1": macro(f1),
    }


def _ece_samples(probabilities: Floats, labels: Integers, group_of: Integers, weights: Integers) -> Doubles:
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.zeros((weights.shape[1], ECE_BINS))
    np.add.at(gaps, (group_of, bins), correct - confidence)
    sizes = weights @ np.bincount(group_of, minlength=weights.shape[1])
    result: Doubles = np.abs(weights @ gaps).sum(axis=1) / sizes
    return result


def sum_by(index: Integers, values: Doubles, n: int) -> Doubles:
    """Columns of `values` added up by `index`."""
    out = np.zeros((len(values), n))
    order = np.argsort(index, kind="stable")
    if len(order):
        starts = np.flatnonzero(np.r_[True, np.diff(index[order]) > 0])
        out[:, index[order][starts]] = np.add.reduceat(values[:, order], starts, axis=1)
    return out
