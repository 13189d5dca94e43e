"""A hospital's folder -> its labelled images, decoded once into a uint8 cache.

Only what can be used becomes an image; everything else is kept by name for the audit.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine.config import Federation
from engine.data.cache import Decoded, Progress, decode_images
from engine.data.images import IMAGE_SUFFIXES, Pixels
from engine.data.labels import match_label
from engine.errors import DataError
from engine.sections import Hospital


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
    """What one hospital holds. Row i of the decoded arrays belongs to `images[i]`."""

    hospital: Hospital
    images: tuple[LocalImage, ...]
    decoded: Decoded
    unmatched_folders: tuple[str, ...]
    empty_folders: tuple[str, ...]
    ignored_files: tuple[str, ...]
    folder_missing: bool

    @property
    def pixels(self) -> Pixels:
        return self.decoded.pixels

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of the files that were left out."""
        return tuple(self.decoded.unreadable.items())


def load_hospital(
    federation: Federation, hospital: Hospital, root: Path, cache: Path, progress: Progress | None = None
) -> HospitalImages:
    """Scan one hospital's folder and decode its images, from the cache where the same bytes were decoded before."""
    folder = root / hospital.folder
    if not folder.is_dir():
        model = federation.model
        nothing = decode_images(root, [], side_px=model.image_size_px, colour=model.colour, cache=cache)
        return HospitalImages(hospital, (), nothing, (), (), (), folder_missing=True)
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
    decoded = decode_images(
        root,
        [(image.path, image.sha256) for image in found],
        side_px=federation.model.image_size_px,
        colour=federation.model.colour,
        cache=cache,
        progress=progress,
    )
    return HospitalImages(
        hospital=hospital,
        images=tuple(image for image in found if image.path not in decoded.unreadable),
        decoded=decoded,
        unmatched_folders=tuple(unmatched),
        empty_folders=tuple(empty),
        ignored_files=tuple(ignored),
        folder_missing=False,
    )


def patient_of(path: str, pattern: str | None) -> str | None:
    match = re.search(pattern, path) if pattern else None
    return match.group(1) if match else None


def _hash_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}; mend the file's permissions or take it away") from None
