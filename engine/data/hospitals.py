"""A hospital's images, wherever they come from -> labelled and decoded once into a uint8 cache.

Only what can be used becomes an image; everything else is kept by name for the audit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import Federation
from engine.data.cache import Decoded, Progress, decode_images
from engine.data.class_folders import ClassFolders, hash_file, scan_class_folders
from engine.data.images import Pixels
from engine.sections import Hospital


@dataclass(frozen=True)
class LocalImage:
    """One usable image; `path` is relative to the federation's data folder, with forward slashes. `subgroups` are its
    words in the columns of source.subgroups, in their order."""

    hospital: str
    path: str
    label: str
    sha256: str
    patient: str | None
    subgroups: tuple[str, ...] = ()


@dataclass(frozen=True)
class HospitalImages:
    """What one hospital holds. Row i of the decoded arrays belongs to `images[i]`."""

    hospital: Hospital
    images: tuple[LocalImage, ...]
    decoded: Decoded
    unmatched_folders: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    folder_missing: bool = False

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
    """Scan one hospital's own folder and decode its images, from the cache where they were decoded before."""
    scan = scan_class_folders(root, hospital.folder or "", federation.classes, hospital.aliases)
    found = label_files(federation, hospital.id, root, scan.files)
    return decode_hospital(federation, hospital, found, root, cache, progress, scan)


def label_files(
    federation: Federation, hospital: str, root: Path, files: Sequence[tuple[str, str]]
) -> list[LocalImage]:
    """(path, label) pairs with hash and patient."""
    pattern = federation.split.patient_pattern
    return [
        LocalImage(hospital, path, label, hash_file(root / path), patient_of(path, pattern)) for path, label in files
    ]


def decode_hospital(
    federation: Federation,
    hospital: Hospital,
    found: Sequence[LocalImage],
    root: Path,
    cache: Path,
    progress: Progress | None = None,
    scan: ClassFolders = ClassFolders(),  # noqa: B008 - frozen and empty
) -> HospitalImages:
    """Decode what a hospital holds, as its scanner would have shown it; unreadable files are left out by name."""
    decoded = decode_images(
        root,
        [(image.path, image.sha256) for image in found],
        side_px=federation.model.image_size_px,
        colour=federation.model.colour,
        cache=cache,
        scanner=hospital.scanner,
        progress=progress,
    )
    return HospitalImages(
        hospital=hospital,
        images=tuple(image for image in found if image.path not in decoded.unreadable),
        decoded=decoded,
        unmatched_folders=scan.unmatched,
        empty_folders=scan.empty,
        ignored_files=scan.ignored,
        folder_missing=scan.missing,
    )


def patient_of(path: str, pattern: str | None) -> str | None:
    match = re.search(pattern, path) if pattern else None
    return match.group(1) if match else None
