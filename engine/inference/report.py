"""One page for a clinician to take away: what a panel said about one image, as JSON and as a PDF.

Nothing personal goes in, so nothing personal comes out: the image is "image 1", never a file name or a DICOM tag.
`report_page.py` draws the PDF.
"""

import datetime
import json
import re
from dataclasses import asdict
from typing import Any

from engine.data.images import FIT_RULE
from engine.inference.panel import Reading, read_calibration
from engine.results.published import PublishedVersion
from engine.results.words import DISCLAIMER, SHARED_IMAGES

SETS = (
    "A set holds the true class for about {:.0%} of images like those it was fitted on; for a hospital's own model "
    "that means its own hospital's images alone."
)
NOT_CALIBRATED = "This version is not calibrated: 90% here does not mean right 9 times in 10, and nothing is refused."
FEDERATION = {"name", "classes", "intended_input", "simulated", "synthetic", "licence"}
GATE = {"features_limit", "statistics_limit", "passed", "n_images"}
IMAGE_NAME = re.compile(r"image [1-9][0-9]*")


def build_report(
    reading: Reading,
    version: PublishedVersion,
    *,
    image_name: str = "image 1",
    insisted: bool = False,
    own_reading: str | None = None,
    example: str = "",
    made_at: str,
) -> dict[str, Any]:
    """Everything the page says, JSON-ready, by model key as in `predict --json`; federated first, pooled last.

    `own_reading` is the class that the reader noted before seeing any opinion, `made_at` an ISO time with its zone.
    `example` says what the image is where the dashboard made or chose it: empty for a reader's own.
    A refused reading's opinions are left out unless `insisted`. Raises ValueError where the image's name is not
    "image N", the reader's class is none of the federation's or the time has no zone; ModelError from the version.
    """
    federation, manifest, seen = version.federation, version.manifest, version.federation.model
    if not IMAGE_NAME.fullmatch(image_name):
        raise ValueError("a report calls an image 'image 1', 'image 2' ..., because file names may name a patient")
    if own_reading is not None and own_reading not in federation.classes:
        raise ValueError("own_reading is one of the federation's classes, because free text may name a patient")
    calibration = read_calibration(version)
    order = ["global", *(f"local/{hospital.id}" for hospital in federation.hospital), "central"]
    opinions = reading.opinions if insisted or not reading.refused else {}
    return {
        "schema_version": 1,
        "disclaimer": DISCLAIMER,
        "made_at": _in_utc(made_at),
        "image": image_name,
        "example": example,
        "frame": None if reading.frame is None else reading.frame + 1,
        "window": None if reading.window is None else {"centre": reading.window.centre, "width": reading.window.width},
        "refused": reading.refused,
        "insisted": insisted and reading.refused,
        "reasons": list(reading.reasons),
        "remarks": list(reading.remarks),
        "own_reading": own_reading,
        "opinions": {
            model: {"name": federation.model_name(model), **asdict(opinions[model])}
            | {"prediction_set": list(opinions[model].prediction_set), "never_trained_on": _untaught(version, model)}
            for model in sorted(opinions, key=lambda model: order.index(model) if model in order else len(order))
        },
        "notes": [SHARED_IMAGES, SETS.format(calibration.coverage) if calibration else NOT_CALIBRATED],
        "federation": federation.model_dump(mode="json", include=FEDERATION),
        "preprocessing": {"rule": FIT_RULE, "side_px": seen.image_size_px, "colour": seen.colour},
        "published": {
            "name": manifest.name,
            "version": manifest.version,
            "published_at": manifest.published_at,
            "manifest_sha256": version.manifest_sha256,
            "run": manifest.run,
            "run_manifest_sha256": manifest.run_manifest_sha256,
            "models": {
                model: {
                    "name": federation.model_name(model),
                    "file": entry.file,
                    "sha256": manifest.files[entry.file].sha256,
                    "precision": entry.precision,
                    "temperature": calibration.models[model].temperature if calibration else None,
                    "set_threshold": calibration.models[model].threshold if calibration else None,
                }
                for model, entry in manifest.models.items()
            },
        },
        "set_coverage": calibration.coverage if calibration else None,
        "gate": calibration.gate.model_dump(include=GATE) if calibration else None,
    }


def report_json(report: dict[str, Any]) -> bytes:
    """The report as a UTF-8 file."""
    return (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _untaught(version: PublishedVersion, model: str) -> list[str]:
    """Classes without a training image at a local model's hospital; for other models at any hospital."""
    counts = version.manifest.class_counts
    hospitals = [model.removeprefix("local/")] if model.startswith("local/") else list(counts)
    taught = {label for name in hospitals for label, n_images in counts.get(name, {}).items() if n_images}
    return [label for label in version.federation.classes if label not in taught]


def _in_utc(made_at: str) -> str:
    moment = datetime.datetime.fromisoformat(made_at)
    if moment.tzinfo is None:
        raise ValueError(f"made_at needs its time zone, as in 2026-01-31T12:00:00+00:00; it is {made_at}")
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")
