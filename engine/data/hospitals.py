"""A hospital's folder -> its labelled images, decoded once into a uint8 cache.

Only what can be used becomes an image; everything else is kept by name for the audit.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.config import Federation, Hospital
from engine.data.images import FIT_RULE, IMAGE_SUFFIXES, Pixels, fit, read_image
from engine.data.labels import match_label
from engine.errors import DataError, ImageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LocalImage:
    """One usable image; `path` is relative to the federation's data folder, with forward slashes."""

    hospital: str
    path: str
    label: str
    sha256: str
    patient: str | None


@dataclass(frozen=True)
class HospitalImages:
    """What one hospital holds. `pixels[i]` (uint8, side x side x channels) belongs to `images[i]`."""

    hospital: Hospital
    images: tuple[LocalImage, ...]
    pixels: Pixels
    unreadable: tuple[tuple[str, str], ...]  # path, reason
    unmatched_folders: tuple[str, ...]
    empty_folders: tuple[str, ...]
    ignored_files: tuple[str, ...]
    folder_missing: bool


def load_hospital(
    federation: Federation, hospital: Hospital, root: Path, cache: Path, progress: Progress | None = None
) -> HospitalImages:
    """Scan one hospital's folder and decode its images, from the cache where the same bytes were decoded before."""
    folder = root / hospital.folder
    if not folder.is_dir():
        side, channels = federation.model.image_size_px, 3 if federation.model.colour else 1
        return HospitalImages(hospital, (), np.zeros((0, side, side, channels), np.uint8), (), (), (), (), True)
    found: list[LocalImage] = []
    unmatched: list[str] = []
    empty: list[str] = []
    ignored: list[str] = []
    ignored += sorted(path.relative_to(root).as_posix() for path in folder.iterdir() if path.is_file())
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        label = match_label(class_folder.name, federation.classes, hospital.aliases)
        if label is None:
            unmatched.append(class_folder.name)
            continue
        before = len(found)
        for file in sorted(path for path in class_folder.rglob("*") if path.is_file()):
            relative = file.relative_to(root).as_posix()
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                ignored.append(relative)
                continue
            patient = patient_of(relative, federation.split.patient_pattern)
            found.append(LocalImage(hospital.id, relative, label, _hash_file(file), patient))
        if len(found) == before:
            empty.append(class_folder.name)
    pixels, unreadable = _decode_cached(found, federation, root, cache, progress)
    images = tuple(image for image in found if image.path not in unreadable)
    return HospitalImages(
        hospital, images, pixels, tuple(unreadable.items()), tuple(unmatched), tuple(empty), tuple(ignored), False
    )


def patient_of(path: str, pattern: str | None) -> str | None:
    match = re.search(pattern, path) if pattern else None
    return match.group(1) if match else None


def default_cache() -> Path:
    """Beside the data owner's other caches; holds decoded patient images, hence for the owner alone."""
    base = os.environ.get("CONSILIUM_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) if base else Path(home) / "consilium") / "images"


def _hash_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}; mend the file's permissions or take it away") from None


def _decode_cached(
    images: Iterable[LocalImage], federation: Federation, root: Path, cache: Path, progress: Progress | None
) -> tuple[Pixels, dict[str, str]]:
    """Pixels of the readable images in order, and path -> reason of the others. Keyed by content, not by date."""
    images = list(images)
    model = federation.model
    key = hashlib.sha256(
        json.dumps([FIT_RULE, model.image_size_px, model.colour, [(i.path, i.sha256) for i in images]]).encode()
    ).hexdigest()[:32]
    pixel_file, index_file = cache / f"{key}.npy", cache / f"{key}.json"
    unreadable: dict[str, str]
    try:  # the index is written last: it vouches for the pixels
        unreadable = json.loads(index_file.read_text(encoding="utf-8"))["unreadable"]
        kept: Pixels = np.load(pixel_file, mmap_mode="r", allow_pickle=False)
        if len(kept) + len(unreadable) == len(images):
            return kept, unreadable
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass  # not there, or damaged: decode anew
    unreadable = {}
    decoded: list[Pixels] = []
    for number, image in enumerate(images, start=1):
        try:
            decoded.append(fit(read_image(root / image.path, colour=model.colour), model.image_size_px))
        except ImageError as error:
            unreadable[image.path] = str(error)
        if progress:
            progress(number, len(images))
    side, channels = model.image_size_px, 3 if model.colour else 1
    pixels = np.stack(decoded) if decoded else np.zeros((0, side, side, channels), np.uint8)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
        partial = pixel_file.with_suffix(f".{os.getpid()}.partial.npy")
        np.save(partial, pixels, allow_pickle=False)
        partial.replace(pixel_file)
        index_partial = index_file.with_suffix(f".{os.getpid()}.partial")
        index_partial.write_text(json.dumps({"unreadable": unreadable}), encoding="utf-8")
        index_partial.replace(index_file)
    except OSError as error:
        raise DataError(
            f"{cache}: cannot keep decoded images: {error.strerror or error}; set CONSILIUM_CACHE to a folder with room"
        ) from None
    return pixels, unreadable
