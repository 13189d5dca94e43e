"""Scores of a classifier from logits and labels. Plain numpy, so the dashboard needs no scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

ECE_BINS = 15


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Row-wise probabilities of logits (n, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def confusion(labels: Integers, predicted: Integers, n_classes: int) -> npt.NDArray[np.int64]:
    """Counts (true class, predicted class)."""
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def per_class_scores(matrix: Integers) -> dict[str, Floats]:
    """Precision, recall and F1 per class from a confusion matrix; 0 where the denominator is 0."""
    hits = np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(hits), where=total > 0)
    return {"precision": precision, "recall": recall, "f1": f1}


def macro_f1(matrix: Integers, only: Sequence[int] | None = None) -> float:
    """Mean F1 over the classes that have images (and are in `only`, if given); 0 without images."""
    present = matrix.sum(axis=1) > 0
    if only is not None:
        present &= np.isin(np.arange(len(matrix)), only)
    return float(per_class_scores(matrix)["f1"][present].mean()) if present.any() else 0.0


def balanced_accuracy(matrix: Integers) -> float:
    """Mean recall over the classes that have images; 0 without images."""
    present = matrix.sum(axis=1) > 0
    return float(per_class_scores(matrix)["recall"][present].mean()) if present.any() else 0.0


def wilson_interval(hits: int, n_images: int) -> tuple[float, float]:
    """95% interval of a share of one or more images, each for itself; it tells something even where all are hits.

    Wilson, Journal of the American Statistical Association 22 (1927) 209-212.
    """
    share, z2 = hits / n_images, 1.959964**2
    middle = (share + z2 / (2 * n_images)) / (1 + z2 / n_images)
    half = (z2 * (share * (1 - share) / n_images + z2 / (4 * n_images**2))) ** 0.5 / (1 + z2 / n_images)
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(probabilities: Floats, labels: Integers, n_bins: int = ECE_BINS) -> float:
    """Mean |accuracy - confidence| over equal-width bins of the top probability, weighted by images.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if len(labels) == 0:
        return 0.0
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def score(logits: Floats, labels: Integers, classes: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """The metrics block of `evaluate --json`: fractions in 0..1, the confusion matrix as counts (true, predicted).

    A class without images has support 0 and stays out of the macro means (balanced accuracy, macro F1).
    """
    probabilities = softmax(logits) if len(labels) else np.zeros((0, len(classes)))
    matrix = confusion(labels, probabilities.argmax(axis=1), len(classes))
    return matrix_scores(matrix, classes, ece=expected_calibration_error(probabilities, labels))


def matrix_scores(matrix: Integers, classes: Sequence[str], *, ece: float) -> dict[str, Any]:
    """`score` of a confusion matrix and the calibration error that goes with it."""
    values = per_class_scores(matrix)
    support = matrix.sum(axis=1)
    n_images = int(support.sum())
    return {
        "accuracy": float(np.diag(matrix).sum() / n_images) if n_images else 0.0,
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "ece": ece,
        "n_images": n_images,
        "per_class": {
            label: {
                "precision": float(values["precision"][i]),
                "recall": float(values["recall"][i]),
                "f1": float(values["f1"][i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(classes)
        },
        "confusion_matrix": matrix.tolist(),
    }
