"""What a hospital may tell of its predictions without telling any of them: counts, and from counts an evaluation.

Bootstrap replicates are confusion matrices of groups drawn with replacement. Whoever knew the draws could solve for
every single group, so a hospital draws them from its operating system, not from a seed.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from engine.results.bootstrap import REPLICATES, confusion_intervals, resampled_confusions
from engine.results.evaluation import matrix_cell
from engine.results.metrics import ECE_BINS, Floats, Integers, confusion, matrix_scores, softmax

SCORE_BINS = 400  # of a class's log-odds between -SCORE_END and SCORE_END; within a bin images count as tied
SCORE_END = 10.0
Count = Annotated[int, Field(ge=0, le=10**9)]  # a hospital may say anything; sums of these do not overflow


class ScoreSummary(BaseModel):
    """One model on one hospital's images of one part. `calibration` has per bin of confidence the images, the sum of
    their confidences and how many were right; `scores` per class the images of it and of the others by bin of its
    log-odds; `replicates` flat confusion matrices."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    confusion_matrix: tuple[tuple[Count, ...], ...]
    n_groups: Count
    calibration: tuple[tuple[Count, Annotated[float, Field(ge=0, le=10**9)], Count], ...]
    scores: tuple[tuple[tuple[Count, ...], tuple[Count, ...]], ...]
    replicates: tuple[tuple[Count, ...], ...]


def summarise(logits: Floats, labels: Integers, groups: Sequence[str], n_classes: int) -> ScoreSummary:
    """`logits` (images, classes) of one image or more."""
    probabilities = softmax(logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    right = (predicted == labels).astype(np.int64)
    calibration = zip(
        np.bincount(bins, minlength=ECE_BINS).tolist(),
        np.bincount(bins, confidence, minlength=ECE_BINS).tolist(),
        np.bincount(bins, right, minlength=ECE_BINS).astype(int).tolist(),
        strict=True,
    )
    sure = np.clip(probabilities, 1e-12, 1 - 1e-12)
    odds = np.log(sure / (1 - sure))
    places = np.clip((odds + SCORE_END) / (2 * SCORE_END) * SCORE_BINS, 0, SCORE_BINS - 1).astype(int)
    scores = tuple(
        (
            tuple(np.bincount(places[labels == index, index], minlength=SCORE_BINS).tolist()),
            tuple(np.bincount(places[labels != index, index], minlength=SCORE_BINS).tolist()),
        )
        for index in range(n_classes)
    )
    replicates = resampled_confusions(predicted, labels, groups, n_classes)
    return ScoreSummary(
        confusion_matrix=_rows(confusion(labels, predicted, n_classes)),
        n_groups=len(set(groups)),
        calibration=tuple(calibration),
        scores=scores,
        replicates=_rows(replicates.reshape(len(replicates), -1)),
    )


def score_summaries(
    summaries: Sequence[ScoreSummary], classes: tuple[str, ...], *, shared_classes: Sequence[str], positive: str | None
) -> dict[str, Any]:
    """The cell of `evaluation.score_rows` from what hospitals told; only AUC and calibration error have no interval."""
    matrix = np.sum([one.confusion_matrix for one in summaries], axis=0)
    calibration = np.sum([one.calibration for one in summaries], axis=0)
    ece = float(np.abs(calibration[:, 2] - calibration[:, 1]).sum() / calibration[:, 0].sum())
    scores = np.sum([one.scores for one in summaries], axis=0)
    replicates = np.sum([one.replicates for one in summaries], axis=0).reshape(REPLICATES, len(classes), len(classes))
    cell = matrix_scores(matrix, classes, ece=ece)
    return {
        **cell,
        **matrix_cell(cell, shared_classes=shared_classes, positive=positive),
        "auc": {label: _auc(*scores[index]) for index, label in enumerate(classes)},
        "n_groups": sum(one.n_groups for one in summaries),
        "intervals": confusion_intervals(replicates),
    }


def _auc(hits: npt.NDArray[np.int64], misses: npt.NDArray[np.int64]) -> float | None:
    below = np.cumsum(misses) - misses
    pairs = hits.sum() * misses.sum()
    return float((hits * (below + misses / 2)).sum() / pairs) if pairs else None


def _rows(matrix: Integers) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(value) for value in row) for row in matrix)
