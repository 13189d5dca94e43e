"""A finished run in the layouts of the reference systems, so that their notebooks and scripts read it.

Nothing here needs an image: everything follows from the run folder. State dicts keep torchvision's keys (ResNet18)
and are read with `torch.load(weights_only=True)`; arrays hold no pickles.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engine.errors import RunError
from engine.federation.checkpoint import load_tensors
from engine.publishing.meta import reference_meta
from engine.publishing.run_panel import empty_network, run_models
from engine.results.files import write_atomically, write_bytes, write_json
from engine.results.rounds import summaries
from engine.results.run_folder import Run
from engine.training.networks import Tensors

METRIC_TABLES = ("fit_metrics", "eval_metrics", "fit_client_metrics", "eval_client_metrics")


def write_medisync(run: Run, folder: Path) -> None:
    """The global model's best round with its papers."""
    _require_models(run, "medisync", ["global"])
    _write_state_dict(run, "global", folder / "global_model.pth")
    write_json(folder / "model_meta.json", reference_meta(run))
    for name in ("label_map.json", "training_history.json"):
        write_json(folder / name, run.read_json(name))
    stats = run.read_json("dataset_stats.json")
    for hospital in stats.values():
        hospital.pop("class_divergence", None)  # ours, and not the reference's
    write_json(folder / "dataset_stats.json", stats)


def write_saved_models(run: Run, folder: Path) -> None:
    """The pooled model, and each hospital's own as client 1, 2, ... in the federation's order."""
    hospitals = [hospital.id for hospital in run.federation.hospital]
    _require_models(run, "saved-models", ["central", *(f"local/{hospital}" for hospital in hospitals)])
    _write_state_dict(run, "central", folder / "central_model.pth")
    clients = []
    for number, hospital in enumerate(hospitals, start=1):
        file = f"client_{number}_model.pth"
        _write_state_dict(run, f"local/{hospital}", folder / file)
        clients.append({"client": number, "file": file, "id": hospital, "name": run.federation.display_name(hospital)})
    write_json(folder / "clients.json", {"schema_version": 1, "clients": clients})


def write_poweranger(run: Run, folder: Path) -> None:
    """The global model after every round as arr_0, arr_1, ... in state-dict order, and the four metrics tables."""
    _require_models(run, "poweranger", ["global"])
    if not run.federation.training.keep_rounds:
        raise RunError(
            f"{run.folder}: kept no weights by round, which the poweranger layout needs; train with "
            "--set training.keep_rounds=true"
        )
    names = list(empty_network(run).state_dict())
    for line in summaries(run.rounds(), "global"):
        tensors = load_tensors(run.round_weights("global", line.round))
        _write_arrays(folder / f"round_{line.round:03d}.npz", [tensors[name].numpy() for name in names])
    write_json(folder / "parameter_names.json", names)
    for table in METRIC_TABLES:
        shutil.copyfile(run.folder / "metrics" / f"{table}.csv", folder / f"{table}.csv")


WRITERS: dict[str, Callable[[Run, Path], None]] = {
    "medisync": write_medisync,
    "saved-models": write_saved_models,
    "poweranger": write_poweranger,
}


def _require_models(run: Run, layout: str, models: list[str]) -> None:
    trained = run_models(run)
    missing = [model for model in models if model not in trained]
    if missing:
        raise RunError(
            f"{run.folder}: trained no {', '.join(missing)} (its arms: {', '.join(run.manifest.arms)}), which the "
            f"{layout} layout needs; train with those arms too"
        )


def _write_state_dict(run: Run, model: str, path: Path) -> None:
    tensors = load_tensors(run.weights(model))
    state: Tensors = {name: tensors[name].clone() for name in empty_network(run).state_dict()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getbuffer())


def _write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # given a path, numpy would append .npz to it
            np.savez(stream, *arrays)

    write_atomically(path, write)
