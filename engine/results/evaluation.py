"""`evaluation.json`: every model on every hospital and on all, per split, from the predictions."""

from typing import Any

import numpy as np
import pandas as pd

from engine.results.metrics import score
from engine.results.rounds import ALL


def evaluate_predictions(predictions: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    """{"splits": {split: {model: {hospital id or "all": metrics}}}} from a run's predictions table."""
    splits: dict[str, Any] = {}
    for (split, model), rows in predictions.groupby(["split", "model"], sort=False):
        cells = {ALL: score_rows(rows, classes)}
        for hospital, mine in rows.groupby("hospital", sort=False):
            cells[str(hospital)] = score_rows(mine, classes)
        splits.setdefault(str(split), {})[str(model)] = cells
    return {"schema_version": 1, "classes": list(classes), "splits": splits}


def score_rows(rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    labels = rows["label"].map({label: index for index, label in enumerate(classes)}).to_numpy(np.int64)
    return score(np.stack(list(rows["logits"])), labels, classes)
