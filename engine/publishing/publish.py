"""A finished run -> `models/NAME/vN/`: export, quantise, measure the loss on validation images, calibrate, describe."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.federation_data import FederationData
from engine.data.images import Pixels
from engine.data.splits import Part
from engine.errors import RunError
from engine.inference.panel import CALIBRATION, Panel, Scorer, open_model
from engine.publishing.calibrate import fit_calibration
from engine.publishing.card import write_card
from engine.publishing.composites import make_composites
from engine.publishing.export import convert_fp16, export_onnx, quantise_int8
from engine.publishing.meta import model_meta, training_counts
from engine.publishing.run_panel import load_network, run_models
from engine.results.files import sha256_of, sweep_partial, write_bytes, write_json
from engine.results.publishable import require_publishable
from engine.results.published import (
    VERSION,
    Composite,
    PublishedFile,
    PublishedVersion,
    VersionManifest,
    set_current,
)
from engine.results.run_folder import FileEntry, Run, now

CALIBRATION_IMAGES = 128
MAX_LOSS_POINTS = 1.0
MAX_LOSS_IMAGES = 3
BATCH = 32
CARD, MANIFEST = "card.md", "manifest.json"
RENEWED = (CALIBRATION, CARD)  # what calibrating anew writes again, beside the composites
COMPOSITES = "composite-*.png"


@dataclass(frozen=True)
class _Labelled:
    pixels: Pixels
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def publish_run(
    run: Run,
    name: str,
    data: FederationData,
    models: Path,
    on_model: Callable[[str, int], None] = lambda model, of: None,
) -> PublishedVersion:
    """Write the next version of `name` and serve it. A kill on the way leaves the served version as it was.

    `data` must be the very images the run was trained on. Raises RunError, ModelError.
    """
    require_publishable(run, name, models)
    run.verify(with_weights=True)
    _require_same_images(run, data)
    home = models / name
    home.mkdir(parents=True, exist_ok=True)
    for left_over in home.glob(".publishing-*"):  # of a publish that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=home) as folder:
        partial = Path(folder) / "version"
        partial.mkdir()
        files = {}
        keys = run_models(run)
        for model in keys:
            on_model(model, len(keys))
            files[model] = _publish_model(run, model, data, partial)
        write_json(partial / "model_meta.json", model_meta(run))
        write_json(partial / "label_map.json", run.read_json("label_map.json"))
        version = _next_version(home)
        _calibrate(partial, files, run, data, name, version, published_at=now())
        partial.replace(home / version)
    published = PublishedVersion(home / version)
    set_current(models, published)
    return published


def calibrate_version(version: PublishedVersion, run: Run, data: FederationData) -> None:
    """Fit and measure a version's calibration anew; its ONNX files stay as they are.

    Killed on the way, the version may be refused until this has run again. Raises RunError, ModelError.
    """
    manifest = version.manifest
    if sha256_of(run.folder / "manifest.json") != manifest.run_manifest_sha256:
        raise RunError(f"{run.folder}: is not the run that {version.name}@{version.version} was made from")
    run.verify()
    _require_same_images(run, data)
    sweep_partial(version.folder)
    composites = {path.name for path in version.folder.glob(COMPOSITES)}
    version.verify(except_for={*RENEWED, *composites, *manifest.composites})
    _calibrate(
        version.folder, manifest.models, run, data, manifest.name, manifest.version, published_at=manifest.published_at
    )


def _require_same_images(run: Run, data: FederationData) -> None:
    if run.read_json("dataset_splits.json") != data.splits_json():
        raise RunError(f"{run.folder}: the images are not those it was trained on; give --data DIR with those")


def _calibrate(
    folder: Path,
    files: Mapping[str, PublishedFile],
    run: Run,
    data: FederationData,
    name: str,
    version: str,
    *,
    published_at: str,
) -> None:
    """Write what follows from the served graphs: calibration, composites, card, and last the manifest over all."""
    scorers = {model: open_model(folder / entry.file) for model, entry in files.items()}
    calibration = fit_calibration(scorers, data)
    counts = training_counts(run)
    write_json(folder / CALIBRATION, calibration.model_dump(mode="json"))
    composites = _write_composites(folder, data, Panel(run.federation, scorers, calibration))
    write_card(folder / CARD, run, name, files, counts, calibration, composites.values())
    manifest = VersionManifest(
        name=name,
        version=version,
        published_at=published_at,
        run=run.name,
        run_manifest_sha256=sha256_of(run.folder / "manifest.json"),
        federation=run.federation,
        class_counts=counts,
        models=dict(files),
        composites=composites,
        files={
            path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST
        },
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _write_composites(folder: Path, data: FederationData, panel: Panel) -> dict[str, Composite]:
    """Phantoms need none: they are drawn when asked for."""
    for path in folder.glob(COMPOSITES):
        path.unlink()
    written: dict[str, Composite] = {}
    if data.federation.phantom_seed is None:
        for number, (content, composite) in enumerate(make_composites(data, panel), start=1):
            name = COMPOSITES.replace("*", str(number))
            write_bytes(folder / name, content)
            written[name] = composite
    return written


def _publish_model(run: Run, model: str, data: FederationData, folder: Path) -> PublishedFile:
    """int8 unless it loses more than a point and more than three images of the validation set; then fp16."""
    file = f"{model.replace('/', '-')}.onnx"
    full, int8 = folder / "full.onnx", folder / file
    export_onnx(load_network(run, model), run.federation, model, full)
    own = [model.removeprefix("local/")] if model.startswith("local/") else [h.id for h in run.federation.hospital]
    quantise_int8(full, int8, _calibration_images(data, own))
    validation = _labelled(data, "validation", [hospital.id for hospital in run.federation.hospital])
    before, after = _n_correct(open_model(full), validation), _n_correct(open_model(int8), validation)
    n_images = len(validation.labels)
    lost = before - after
    keep_fp16 = lost > MAX_LOSS_IMAGES and 100 * lost / n_images > MAX_LOSS_POINTS
    note = ""
    if keep_fp16:
        note = f"int8 lost {lost} of {n_images} validation images, so half precision is served"
        convert_fp16(full, int8)
        after = _n_correct(open_model(int8), validation)
    full.unlink()
    return PublishedFile(
        file=file,
        precision="fp16" if keep_fp16 else "int8",
        validation_images=n_images,
        accuracy_before=before / n_images,
        accuracy_after=after / n_images,
        note=note,
    )


def _n_correct(scorer: Scorer, images: _Labelled) -> int:
    correct = 0
    for start in range(0, len(images.labels), BATCH):
        logits, _ = scorer(images.pixels[start : start + BATCH])
        correct += int((logits.argmax(axis=1) == images.labels[start : start + BATCH]).sum())
    return correct


def _labelled(data: FederationData, part: Part, hospitals: Sequence[str]) -> _Labelled:
    pixels, labels = [], []
    wanted = {(split.image.hospital, split.image.path) for split in data.splits if split.part == part}
    for holding in data.holdings:
        if holding.hospital.id not in hospitals:
            continue
        rows = [row for row, image in enumerate(holding.images) if (image.hospital, image.path) in wanted]
        pixels.append(holding.pixels[rows])
        labels += [data.federation.classes.index(holding.images[row].label) for row in rows]
    return _Labelled(np.concatenate(pixels), np.array(labels, np.int64))


def _calibration_images(data: FederationData, hospitals: Sequence[str]) -> Pixels:
    """Up to CALIBRATION_IMAGES training images, evenly spaced over hospitals and classes (both are sorted)."""
    pixels = _labelled(data, "train", hospitals).pixels
    chosen: Pixels = pixels[np.unique(np.linspace(0, len(pixels) - 1, CALIBRATION_IMAGES).astype(int))]
    return chosen


def _next_version(home: Path) -> str:
    taken = [int(path.name.removeprefix("v")) for path in home.iterdir() if VERSION.fullmatch(path.name)]
    return f"v{max(taken, default=0) + 1}"
