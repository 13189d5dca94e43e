"""`model_meta.json`: the global model's story with the reference system's keys."""

from typing import Any

import numpy as np

from engine.data.federation_data import FederationData
from engine.results.rounds import ALL, best_round
from engine.results.run_folder import Run


def model_meta(run: Run, data: FederationData, class_counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Metrics are those of the global model (of the first model where there is none) on all test images."""
    evaluation = run.read_json("evaluation.json")["splits"]
    model = "global" if "global" in evaluation["test"] else next(iter(evaluation["test"]))
    test, validation = evaluation["test"][model][ALL], evaluation["validation"][model][ALL]
    present = [scores for scores in test["per_class"].values() if scores["support"]]
    n_images = {part: sum(split.part == part for split in data.splits) for part in ("train", "validation", "test")}
    return {
        "trained_at": run.manifest.finished_at,
        "num_classes": len(run.federation.classes),
        "num_epochs": run.federation.training.rounds * run.federation.training.local_epochs,
        "best_epoch": best_round(run.rounds(), model),
        "device": run.read_json("environment.json")["cuda_device"] or "cpu",
        "datasets": [hospital.folder for hospital in run.federation.hospital],
        "total_samples": len(data.splits),
        "train_samples": n_images["train"],
        "val_samples": n_images["validation"],
        "test_samples": n_images["test"],
        "class_counts_by_hospital": class_counts,
        "metrics": {
            "test_accuracy": test["accuracy"],
            "avg_f1": test["macro_f1"],
            "avg_precision": float(np.mean([scores["precision"] for scores in present])),
            "avg_recall": test["balanced_accuracy"],
            "best_val_accuracy": validation["accuracy"],
            "per_class": test["per_class"],
            "confusion_matrix": test["confusion_matrix"],
            "intervals": test["intervals"],
        },
    }
