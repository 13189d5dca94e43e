"""Score a panel on folders of labelled images that neither trained nor chose it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.images import IMAGE_SUFFIXES, Pixels
from engine.data.labels import match_label
from engine.errors import DataError, ImageError
from engine.inference.panel import Panel
from engine.results.metrics import score

BATCH = 32


@dataclass
class LeftOut:
    """What evaluate could not use: folders that name no class, and images that cannot be read (path, reason)."""

    folders: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)


def evaluate_folder(
    panel: Panel, folder: Path, on_image: Callable[[int, int], None] = lambda done, of: None
) -> tuple[dict[str, dict[str, Any]], LeftOut]:
    """Metrics (see `engine.results.metrics.score`) by model key on `folder`, one subfolder per class.

    Every model is scored on all images; the refusal gate is not applied. Raises DataError without a usable image.
    """
    federation = panel.federation
    files, left_out = _find_images(panel, folder)
    labels: list[int] = []
    logits: dict[str, list[Any]] = {model: [] for model in panel.models}
    waiting: list[Pixels] = []

    def flush() -> None:
        for model in panel.models:
            logits[model].append(panel.logits(model, waiting))
        waiting.clear()

    for number, (file, label) in enumerate(files, start=1):
        try:
            waiting.append(panel.prepare(file))
        except ImageError as error:
            left_out.images.append((str(file), str(error)))
        else:
            labels.append(federation.classes.index(label))
        if len(waiting) == BATCH:
            flush()
        on_image(number, len(files))
    if waiting:
        flush()
    if not labels:
        classes = ", ".join(federation.classes)
        raise DataError(f"{folder}: no usable image; it needs one folder per class ({classes}) with PNG, JPEG or DICOM")
    truth = np.array(labels, np.int64)
    scores = {model: score(np.concatenate(rows), truth, federation.classes) for model, rows in logits.items()}
    return scores, left_out


def _find_images(panel: Panel, folder: Path) -> tuple[list[tuple[Path, str]], LeftOut]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give --images a folder with one folder per class")
    files: list[tuple[Path, str]] = []
    left_out = LeftOut()
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        label = match_label(path.name, panel.federation.classes, panel.federation.aliases)
        if label is None:
            left_out.folders.append(path.name)
            continue
        found = sorted(file for file in path.rglob("*") if file.is_file())
        files += [(file, label) for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
        left_out.images += [
            (str(file), "is no PNG, JPEG or DICOM by name")
            for file in found
            if file.suffix.lower() not in IMAGE_SUFFIXES
        ]
    return files, left_out
