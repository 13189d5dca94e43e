"""A published version as a folder for the Hugging Face Hub: README.md with the card's metadata, and the ONNX files.

The front matter is YAML whose values are JSON, which YAML holds; keys as the Hub's card specification has them
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md). Read back with huggingface_hub 2.4.0 when it was
written (`ModelCard.load`, its `eval_results`). Nothing is sent anywhere.
"""

import json
from pathlib import Path
from typing import Any

from engine.config import Federation
from engine.inference.panel import CALIBRATION
from engine.publishing.onnx_layout import write_version_onnx
from engine.results.files import write_text
from engine.results.published import PublishedVersion
from engine.results.rounds import ALL
from engine.results.words import DISCLAIMER, count

LICENCES = {"CC BY-NC 4.0": "cc-by-nc-4.0", "CC BY 4.0": "cc-by-4.0", "MIT": "mit"}  # as a federation's begins
NON_COMMERCIAL = ("non-commercial", "CC BY-NC", "not for commercial")
METRICS = {  # of model_meta.json: the Hub's type, words, and the key of the interval
    "test_accuracy": ("accuracy", "Accuracy", "accuracy"),
    "avg_f1": ("f1", "Macro-F1", "macro_f1"),
    "avg_recall": ("balanced_accuracy", "Balanced accuracy", "balanced_accuracy"),
}


def write_hugging_face(version: PublishedVersion, folder: Path) -> None:
    """README.md and what the onnx layout holds."""
    write_version_onnx(version, folder)
    rows = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front_matter(version).items()]
    card = (version.folder / "card.md").read_text(encoding="utf-8")
    write_text(folder / "README.md", "\n".join(["---", *rows, "---", "", card, *_use(version)]) + "\n")


def front_matter(version: PublishedVersion) -> dict[str, Any]:
    """The card's metadata; scores are those of the first model on the run's test images, before quantisation."""
    federation = version.federation
    return {
        **_licence(federation),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": _tags(federation),
        "model-index": [{"name": f"{version.name}-{version.version}", "results": [_result(version)]}],
    }


def _licence(federation: Federation) -> dict[str, str]:
    """That of the training images; "unknown" where the federation states none."""
    if not federation.licence:
        return {"license": "unknown"}
    known = next((tag for words, tag in LICENCES.items() if federation.licence.startswith(words)), None)
    return {"license": known} if known else {"license": "other", "license_name": federation.licence}


def _tags(federation: Federation) -> list[str]:
    said = {
        "simulated-hospitals": federation.simulated,
        "synthetic-images": federation.synthetic,
        "non-commercial": any(words in federation.licence for words in NON_COMMERCIAL),
    }
    always = ["federated-learning", "medical", "research-only", "consilium"]
    return always + [tag for tag, true in said.items() if true]


def _result(version: PublishedVersion) -> dict[str, Any]:
    federation, meta = version.federation, version.read_json("model_meta.json")
    scores = meta["metrics"]
    model = "global" if "global" in version.manifest.models else next(iter(version.manifest.models))
    metrics = []
    for key, (kind, words, interval) in METRICS.items():
        ends = scores["intervals"].get(interval)
        shown = f", 95% interval {ends[0]:.3f}-{ends[1]:.3f}" if ends else ""
        metrics.append({"type": kind, "value": scores[key], "name": f"{words} before quantisation{shown}"})
    measured = {}
    if CALIBRATION in version.manifest.files:
        measured = version.read_json(CALIBRATION)["measured"]["calibration"].get(model, {})
    if ALL in measured:
        error = {"type": "expected_calibration_error", "value": measured[ALL]["after"]["ece"]}
        metrics.append({**error, "name": "Calibration error as served, calibrated"})
    images = f"{count(meta['test_samples'], 'test image')} of {count(len(federation.hospital), 'hospital')}"
    said = " (simulated)" if federation.simulated else ""
    return {
        "task": {"type": "image-classification", "name": f"{federation.model_name(model)} on {images}{said}"},
        "dataset": {"type": federation.data, "name": f"{federation.name}{said}", "split": "test"},
        "metrics": metrics,
    }


def _use(version: PublishedVersion) -> list[str]:
    return [
        "## Use",
        "",
        f"{DISCLAIMER} `models.json` says what goes into each ONNX file and what comes out; `calibration.json` has the "
        "temperatures, the thresholds of prediction sets and the refusal gate, without which probabilities are not "
        "those of the tables above.",
        "",
        "```python",
        "import numpy, onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("global.onnx")'
        if "global" in version.manifest.models
        else f'session = onnxruntime.InferenceSession("{next(iter(version.manifest.models.values())).file}")',
        'logits, feature_map = session.run(None, {"image": pixels})  # uint8 (n, side, side, channels)',
        "```",
    ]
