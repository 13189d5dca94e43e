"""What a calibration is worth on test images: reliability before and after, coverage and size of the sets, refusals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.config import Federation
from engine.inference.calibration import ModelCalibration, prediction_set
from engine.results.bootstrap import bootstrap_mean, ece_interval
from engine.results.metrics import ECE_BINS, Floats, Integers, confusion, expected_calibration_error, softmax
from engine.results.rounds import ALL


@dataclass(frozen=True)
class ImageRows:
    """Images side by side: split, group, hospital id and class index of each."""

    split: np.ndarray[Any, Any]
    group: np.ndarray[Any, Any]
    hospital: np.ndarray[Any, Any]
    label: Integers

    def take(self, chosen: Integers) -> "ImageRows":
        return ImageRows(self.split[chosen], self.group[chosen], self.hospital[chosen], self.label[chosen])


def measure_calibration(
    rows: ImageRows,
    logits: Mapping[str, Floats],
    fitted: Mapping[str, ModelCalibration],
    refused: np.ndarray[Any, Any],
    federation: Federation,
) -> dict[str, Any]:
    """Everything on the same test images, each figure with n_images and its 95% interval (bootstrap over groups).

    {"split": "test", "calibration": {model: {hospital id or "all": {"before", "after"}}}, "sets": {model: {"all",
    hospital id: cell}}, "sets_by_class": {model: {class: cell}}, "operating": {model: {class: {sensitivity,
    specificity, n_cases, n_others}}}, "refused": {"all", hospital id: cell}}.
    """
    places: dict[str, Integers] = {ALL: np.arange(len(rows.label))}
    places |= {hospital.id: np.flatnonzero(rows.hospital == hospital.id) for hospital in federation.hospital}
    places = {name: chosen for name, chosen in places.items() if len(chosen)}
    classes = {label: np.flatnonzero(rows.label == index) for index, label in enumerate(federation.classes)}
    classes = {label: chosen for label, chosen in classes.items() if len(chosen)}
    measured: dict[str, Any] = {"split": "test", "intervals": "95%, percentile bootstrap over groups"}
    for part in ("calibration", "sets", "sets_by_class", "operating"):
        measured[part] = {}
    for model, answers in logits.items():
        before, after = softmax(answers) if len(answers) else answers, fitted[model].probabilities(answers)
        measured["calibration"][model] = {
            name: {"before": _reliability(before, rows, chosen), "after": _reliability(after, rows, chosen)}
            for name, chosen in places.items()
        }
        sets = [prediction_set(row, fitted[model].threshold) for row in after]
        covered = np.array([label in kept for label, kept in zip(rows.label, sets, strict=True)], float)
        sizes = np.array([len(kept) for kept in sets], float)

        def cell(
            chosen: Integers, covered: np.ndarray[Any, Any] = covered, sizes: np.ndarray[Any, Any] = sizes
        ) -> dict[str, Any]:
            return _sets(covered[chosen], sizes[chosen], rows.group[chosen])

        measured["sets"][model] = _each(places, cell)
        measured["sets_by_class"][model] = _each(classes, cell)
        measured["operating"][model] = _operating(after, rows.label, federation.classes)
    measured["refused"] = _each(places, lambda chosen: _share(refused[chosen].astype(float), rows.group[chosen]))
    return measured


def _each(places: Mapping[str, Integers], measure: Callable[[Integers], dict[str, Any]]) -> dict[str, Any]:
    return {name: measure(chosen) for name, chosen in places.items()}


def _reliability(probabilities: Floats, rows: ImageRows, chosen: Integers) -> dict[str, Any]:
    """ECE with its interval, and per bin [images, mean confidence, accuracy] of the top class; empty bins left out."""
    mine, labels = probabilities[chosen], rows.label[chosen]
    confidence, correct = mine.max(axis=1), mine.argmax(axis=1) == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    low, high = ece_interval(mine, labels, list(rows.group[chosen]))
    return {
        "n_images": len(labels),
        "ece": expected_calibration_error(mine, labels),
        "interval": [low, high],
        "bins": [
            [
                int((bins == number).sum()),
                float(confidence[bins == number].mean()),
                float(correct[bins == number].mean()),
            ]
            for number in np.unique(bins)
        ],
    }


def _sets(covered: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], groups: np.ndarray[Any, Any]) -> dict[str, Any]:
    share = _share(covered, groups)
    return {
        "n_images": share["n_images"],
        "coverage": share["share"],
        "interval": share["interval"],
        "mean_size": float(sizes.mean()),
        "size_interval": list(bootstrap_mean(sizes, list(groups))),
    }


def _share(values: np.ndarray[Any, Any], groups: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "n_images": len(values),
        "share": float(values.mean()),
        "interval": list(bootstrap_mean(values, list(groups))),
    }


def _operating(probabilities: Floats, labels: Integers, classes: tuple[str, ...]) -> dict[str, Any]:
    """Sensitivity and specificity of each class where the top class is the answer; None without such images."""
    matrix = confusion(labels, probabilities.argmax(axis=1), len(classes))
    told = {}
    for index, label in enumerate(classes):
        cases, others = int(matrix[index].sum()), int(matrix.sum() - matrix[index].sum())
        alarms = int(matrix[:, index].sum() - matrix[index, index])
        told[label] = {
            "sensitivity": float(matrix[index, index] / cases) if cases else None,
            "specificity": 1 - alarms / others if others else None,
            "n_cases": cases,
            "n_others": others,
        }
    return told
