"""Images to try Compare with: slices drawn when asked for, or a version's composites and, where they lie on this
machine, the federation's own test images; and always one picture that the gate should refuse."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image

from engine.config import Federation, data_root
from engine.data.images import Pixels, read_image
from engine.data.phantoms import PHANTOM_CLASSES, SCANNERS, draw_slice
from engine.data.scanner import apply_scanner
from engine.errors import ConsiliumError, ModelError, RunError
from engine.results.files import sha256_of
from engine.results.published import Composite, PublishedVersion, VersionManifest
from engine.results.run_folder import Run, artifacts_folder

SIZE_PX = 128  # as the phantom federation's own images
STREAM = 2_025  # keeps these heads apart from the training images', which begin with the hospital's place (0, 1, 2)
REFUSED = "a picture the gate should refuse"
SCENE_PX = (192, 256)  # height, width


@dataclass(frozen=True)
class Example:
    """`content` is an image file; `caption` says where it comes from, and what of it is drawn."""

    content: bytes
    caption: str


@dataclass(frozen=True)
class HeldOut:
    """One image of a run's test split, of which nothing was learned."""

    path: Path
    hospital: str
    label: str
    sha256: str


def example_choices(manifest: VersionManifest, *, tested: bool) -> list[str]:
    """The classes there are examples of, test images where `tested`, and the picture to be refused."""
    classes = manifest.federation.classes
    if manifest.federation.phantom_seed is not None:
        there = set(example_labels(manifest.federation))
    elif tested:
        there = {label for label, images in held_out_images(manifest).items() if images}
    else:
        there = {composite.label for composite in manifest.composites.values()}
    return [*(label for label in classes if label in there), REFUSED]


def make_example(version: PublishedVersion, choice: str, number: int, *, tested: bool) -> Example:
    """The `number`-th example of a choice. Raises RunError where a test image is no longer what the run used."""
    manifest = version.manifest
    federation = manifest.federation
    if choice == REFUSED:
        return draw_scene(number)
    if federation.phantom_seed is not None:
        return draw_example(federation, choice, number)
    if tested:
        return read_held_out(federation, held_out_images(manifest)[choice], number)
    composites = {file: made for file, made in sorted(manifest.composites.items()) if made.label == choice}
    return read_composite(version, composites, number)


def read_composite(version: PublishedVersion, composites: Mapping[str, Composite], number: int) -> Example:
    """The `number`-th of one class, from the start again after the last. Raises ModelError."""
    file = list(composites)[number % len(composites)]
    made = composites[file]
    try:
        content = (version.folder / file).read_bytes()
    except OSError as error:
        raise ModelError(f"{version.folder / file}: {error.strerror or error}") from None
    of = f"the aligned average of {made.n_images} training images labelled {made.label}"
    return Example(content, f"Composite, not a patient: {of}.")


def example_labels(federation: Federation) -> list[str]:
    """The classes that can be drawn; none where the federation's images are not phantoms."""
    if federation.phantom_seed is None:
        return []
    return [label for label in federation.classes if label in PHANTOM_CLASSES]


def draw_example(federation: Federation, label: str, number: int) -> Example:
    """The `number`-th example of a class, each from the next hospital's scanner; the same for the same arguments."""
    scanners = [hospital.id for hospital in federation.hospital if hospital.id in SCANNERS] or list(SCANNERS)
    scanner = scanners[number % len(scanners)]
    seed = [federation.phantom_seed or 0, STREAM, PHANTOM_CLASSES.index(label), number]
    pixels, _ = draw_slice(label, SCANNERS[scanner], SIZE_PX, np.random.default_rng(seed))
    caption = f"Synthetic, drawn as {label} in the style of {federation.display_name(scanner)}:"
    return Example(_png(pixels), caption)


def draw_scene(number: int) -> Example:
    """A landscape in colour, drawn here: sky, sun, hills, a house. No scan at all."""
    rng = np.random.default_rng([STREAM, number])
    height, width = SCENE_PX
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack([120 + 0.5 * y, 170 + 0.3 * y, 245 - 0.2 * y], axis=-1)
    sun_x = rng.uniform(0.15, 0.85) * width
    scene[(x - sun_x) ** 2 + (y - 0.2 * height) ** 2 < (0.08 * width) ** 2] = (255, 225, 90)
    for depth, colour in ((0.55, (90, 140, 110)), (0.68, (70, 130, 60))):
        crest = depth * height + 0.06 * height * np.sin(2 * np.pi * (x / width * 1.5 + rng.random()))
        scene[y > crest] = colour
    left, top, side = int(rng.uniform(0.15, 0.6) * width), int(0.62 * height), int(0.18 * width)
    scene[top : top + side, left : left + side] = (190, 70, 50)
    roof = (y < top) & (y > top - side // 2) & (abs(x - left - side / 2) < side / 2 + y - top + side / 4)
    scene[roof] = (90, 50, 45)
    scene[top + side // 3 : top + side, left + side // 3 : left + side // 2] = (240, 220, 170)
    scene += rng.normal(0, 9, scene.shape)
    caption = "A landscape drawn for you, no scan: a picture the gate should refuse."
    return Example(_png(np.clip(scene, 0, 255).astype(np.uint8)), caption)


def held_out_images(manifest: VersionManifest) -> dict[str, list[HeldOut]]:
    """The test split of the very run that was published, by class, as far as the files lie on this machine."""
    root = data_root(manifest.federation)
    if not root.is_dir():
        return {}
    try:
        run = Run(artifacts_folder() / manifest.run)
        file = run.folder / "manifest.json"
        if not file.is_file() or sha256_of(file) != manifest.run_manifest_sha256:
            return {}
        return pick_held_out(_test_rows(str(run.folder), manifest.run_manifest_sha256), root)
    except (ConsiliumError, OSError, KeyError, TypeError):
        return {}


def pick_held_out(rows: list[dict[str, Any]], root: Path) -> dict[str, list[HeldOut]]:
    """Up to three of each hospital and class, hospitals in turn, from the rows of `dataset_splits.json`."""
    found: dict[str, dict[str, list[HeldOut]]] = {}
    for row in rows:
        mine = found.setdefault(row["label"], {}).setdefault(row["hospital"], [])
        if row["split"] == "test" and len(mine) < 3 and (root / row["path"]).is_file():
            mine.append(HeldOut(root / row["path"], row["hospital"], row["label"], row["sha256"]))
    return {
        label: [images[turn] for turn in range(3) for images in hospitals.values() if turn < len(images)]
        for label, hospitals in found.items()
    }


def read_held_out(federation: Federation, images: list[HeldOut], number: int) -> Example:
    """The `number`-th, from the start again after the last; a file that is not the run's own is passed over."""
    for turn in range(len(images)):
        image = images[(number + turn) % len(images)]
        if sha256_of(image.path) == image.sha256:
            name = federation.display_name(image.hospital)
            content = image.path.read_bytes()
            scanner = next((mine.scanner for mine in federation.hospital if mine.id == image.hospital), None)
            if scanner is not None:  # what that hospital's models were shown
                pixels = read_image(content, colour=federation.model.colour)
                content = _png(apply_scanner(pixels, scanner, image.sha256))
            return Example(content, f"From {name}, test split, labelled {image.label}:")
    raise RunError("the test images on this machine are not those of the run; choose another example")


@st.cache_data(max_entries=5, show_spinner=False)
def _test_rows(folder: str, stamp: str) -> list[dict[str, Any]]:
    """The test split's paths and labels; images enter no cache."""
    rows: list[dict[str, Any]] = Run(Path(folder)).read_json("dataset_splits.json")["images"]
    return [row for row in rows if row["split"] == "test"]


def _png(pixels: Pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()
