"""`evaluation.json`: every model on every hospital and on all, per split, with 95% intervals, from the predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine.results.bootstrap import REPLICATES, bootstrap_intervals, weighted_auc
from engine.results.metrics import ECE_BINS, macro_f1, score, softmax
from engine.results.rounds import ALL


def evaluate_predictions(
    predictions: pd.DataFrame, classes: tuple[str, ...], *, shared_classes: Sequence[str], positive: str | None
) -> dict[str, Any]:
    """{"splits": {split: {model: {hospital id or "all": cell}}}} from a run's predictions table; see `score_rows`."""
    splits: dict[str, Any] = {}
    for (split, model), rows in predictions.groupby(["split", "model"], sort=False):
        parts = [(ALL, rows), *((str(name), mine) for name, mine in rows.groupby("hospital", sort=False))]
        splits.setdefault(str(split), {})[str(model)] = {
            name: score_rows(mine, classes, shared_classes=shared_classes, positive=positive) for name, mine in parts
        }
    return {
        "schema_version": 1,
        "classes": list(classes),
        "shared_classes": list(shared_classes),
        "positive": positive,
        "intervals": f"95%, percentile bootstrap over groups, {REPLICATES} replicates",
        "ece_bins": ECE_BINS,
        "splits": splits,
    }


def score_rows(
    rows: pd.DataFrame, classes: tuple[str, ...], *, shared_classes: Sequence[str], positive: str | None
) -> dict[str, Any]:
    """The metrics of `score`, and: macro_precision, macro_recall, auc by class (null without images of both kinds),
    macro_f1_shared (over classes that several hospitals hold), n_groups, intervals by metric; of two classes also
    sensitivity, specificity, missed (cases called healthy) and false_alarms."""
    index = {label: number for number, label in enumerate(classes)}
    labels = rows["label"].map(index).to_numpy(np.int64)
    logits = np.stack(list(rows["logits"]))
    cell = score(logits, labels, classes)
    probabilities, once = softmax(logits), np.ones((1, len(labels)))
    areas = {label: float(weighted_auc(probabilities[:, i], labels == i, once)[0]) for label, i in index.items()}
    return {
        **cell,
        **matrix_cell(cell, shared_classes=shared_classes, positive=positive),
        "auc": {label: area if np.isfinite(area) else None for label, area in areas.items()},
        "n_groups": int(rows["group"].nunique()),
        "intervals": bootstrap_intervals(logits, labels, list(rows["group"]), classes),
    }


def matrix_cell(cell: dict[str, Any], *, shared_classes: Sequence[str], positive: str | None) -> dict[str, Any]:
    """What `score_rows` adds that follows from the cell's confusion matrix alone."""
    classes = list(cell["per_class"])
    matrix = np.array(cell["confusion_matrix"])
    present = [scores for scores in cell["per_class"].values() if scores["support"]]
    added: dict[str, Any] = {
        "macro_precision": float(np.mean([scores["precision"] for scores in present])),
        "macro_recall": cell["balanced_accuracy"],
        "macro_f1_shared": macro_f1(matrix, only=[classes.index(label) for label in shared_classes]),
    }
    if positive is not None:
        case = classes.index(positive)
        healthy = 1 - case
        cases, well = matrix[case].sum(), matrix[healthy].sum()
        added |= {
            "sensitivity": float(matrix[case, case] / cases) if cases else None,
            "specificity": float(matrix[healthy, healthy] / well) if well else None,
            "missed": int(matrix[case, healthy]),
            "false_alarms": int(matrix[healthy, case]),
        }
    return added
