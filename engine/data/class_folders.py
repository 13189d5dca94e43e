"""A folder of class folders -> its labelled image files, with everything else kept by name."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.data.images import IMAGE_SUFFIXES
from engine.data.labels import match_label
from engine.errors import DataError


@dataclass(frozen=True)
class ClassFolders:
    """`files` are (path, label) in order; paths are relative to the data folder, with forward slashes."""

    files: tuple[tuple[str, str], ...] = ()
    unmatched: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    missing: bool = False


def scan_class_folders(root: Path, folder: str, classes: Iterable[str], aliases: Mapping[str, str]) -> ClassFolders:
    """Image files at any depth below each class folder of `root/folder`; two folders of one class are both read."""
    home = root / folder
    if not home.is_dir():
        return ClassFolders(missing=True)
    files: list[tuple[str, str]] = []
    unmatched: list[str] = []
    empty: list[str] = []
    ignored = sorted(path.relative_to(root).as_posix() for path in home.iterdir() if path.is_file())
    for class_folder in sorted(path for path in home.iterdir() if path.is_dir()):
        label = match_label(class_folder.name, classes, aliases)
        if label is None:
            unmatched.append(class_folder.name)
            continue
        before = len(files)
        for file in sorted(path for path in class_folder.rglob("*") if path.is_file()):
            relative = file.relative_to(root).as_posix()
            if file.suffix.lower() in IMAGE_SUFFIXES:
                files.append((relative, label))
            else:
                ignored.append(relative)
        if len(files) == before:
            empty.append(class_folder.name)
    return ClassFolders(tuple(files), tuple(unmatched), tuple(empty), tuple(ignored))


def hash_file(file: Path) -> str:
    """SHA-256 as hexadecimal text. Raises DataError where the file cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}; mend the file's permissions or take it away") from None
