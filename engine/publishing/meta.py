"""`model_meta.json`: the global model's story with the reference system's keys."""

from typing import Any

import numpy as np

from engine.results.rounds import ALL, best_round
from engine.results.run_folder import Run


def model_meta(run: Run) -> dict[str, Any]:
    """What a published version says: the reference system's keys, class counts by hospital, and intervals."""
    meta = reference_meta(run)
    metrics = meta.pop("metrics")
    intervals = run.read_json("evaluation.json")["splits"]["test"][_described_model(run)][ALL]["intervals"]
    return {
        **meta,
        "class_counts_by_hospital": training_counts(run),
        "metrics": {**metrics, "intervals": intervals},
    }


def reference_meta(run: Run) -> dict[str, Any]:
    """Metrics are those of the global model (of the first model where there is none) on all test images."""
    evaluation, model = run.read_json("evaluation.json")["splits"], _described_model(run)
    test, validation = evaluation["test"][model][ALL], evaluation["validation"][model][ALL]
    present = [scores for scores in test["per_class"].values() if scores["support"]]
    images = run.read_json("dataset_splits.json")["images"]
    parts = [image["split"] for image in images if image.get("labelled", True)]
    return {
        "trained_at": run.manifest.finished_at,
        "num_classes": len(run.federation.classes),
        "num_epochs": run.federation.training.rounds,
        "best_epoch": best_round(run.rounds(), model),
        "device": run.read_json("environment.json")["cuda_device"] or "cpu",
        "datasets": [run.federation.origin(hospital) for hospital in run.federation.hospital],
        "total_samples": len(parts),
        "train_samples": parts.count("train"),
        "val_samples": parts.count("validation"),
        "test_samples": parts.count("test"),
        "metrics": {
            "test_accuracy": test["accuracy"],
            "avg_f1": test["macro_f1"],
            "avg_precision": float(np.mean([scores["precision"] for scores in present])),
            "avg_recall": test["balanced_accuracy"],
            "best_val_accuracy": validation["accuracy"],
            "per_class": test["per_class"],
            "confusion_matrix": test["confusion_matrix"],
        },
    }


def training_counts(run: Run) -> dict[str, dict[str, int]]:
    """Training images by hospital id and class; of a run that used the labels of a share, those."""
    counts = {hospital.id: dict.fromkeys(run.federation.classes, 0) for hospital in run.federation.hospital}
    for image in run.read_json("dataset_splits.json")["images"]:
        if image["split"] == "train" and image.get("labelled", True):
            counts[image["hospital"]][image["label"]] += 1
    return counts


def _described_model(run: Run) -> str:
    models = run.read_json("evaluation.json")["splits"]["test"]
    return "global" if "global" in models else next(iter(models))
