"""ONNX files for programs that are not this one, with an index that says what goes in and what comes out."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import Federation
from engine.data.images import FIT_RULE
from engine.inference.panel import CALIBRATION
from engine.results.files import write_json
from engine.results.published import PublishedVersion
from engine.results.run_folder import Run
from engine.results.words import DISCLAIMER

INDEX, LABELS = "models.json", "label_map.json"


def write_version_onnx(version: PublishedVersion, folder: Path) -> None:
    """The very files that are served, byte for byte, and their calibration."""
    manifest = version.manifest
    for name in (*(file.file for file in manifest.models.values()), LABELS, CALIBRATION):
        if name in manifest.files:
            shutil.copyfile(version.folder / name, folder / name)
    models = {model: (file.file, file.precision) for model, file in manifest.models.items()}
    calibration = CALIBRATION if CALIBRATION in manifest.files else None
    _write_index(folder, manifest.federation, f"{version.name}@{version.version}", models, calibration)


def write_run_onnx(run: Run, folder: Path) -> None:
    """Every model's chosen round in float32; no calibration, which wants the images that publishing reads."""
    from engine.publishing.export import export_onnx
    from engine.publishing.run_panel import load_network, run_models

    models = {}
    for model in run_models(run):
        file = f"{model.replace('/', '-')}.onnx"
        export_onnx(load_network(run, model), run.federation, model, folder / file)
        models[model] = (file, "fp32")
    write_json(folder / LABELS, run.read_json(LABELS))
    _write_index(folder, run.federation, run.name, models, None)


def _write_index(
    folder: Path, federation: Federation, source: str, models: Mapping[str, tuple[str, str]], calibration: str | None
) -> None:
    side = federation.model.image_size_px
    index: dict[str, Any] = {
        "schema_version": 1,
        "source": source,
        "disclaimer": DISCLAIMER,
        "federation": federation.name,
        "simulated": federation.simulated,
        "synthetic": federation.synthetic,
        "licence": federation.licence,
        "intended_input": federation.intended_input,
        "classes": list(federation.classes),
        "input": {
            "name": "image",
            "type": "uint8",
            "shape": ["n", side, side, 3 if federation.model.colour else 1],
            "fit": FIT_RULE,
            "normalisation": "inside the graph",
        },
        "outputs": {"logits": "float32 (n, classes), in the order of classes", "feature_map": "float32, the last one"},
        "calibration": calibration,
        "models": {
            model: {"file": file, "precision": precision, "name": federation.model_name(model)}
            for model, (file, precision) in models.items()
        },
    }
    write_json(folder / INDEX, index)
