"""A downloaded data set, laid out as its federation expects: all or nothing, with a note of where it came from."""

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from engine.data.archives import Entry, entries
from engine.data.catalogue import DataSet, Layout
from engine.data.cifar10 import read_batch
from engine.data.download import require_space
from engine.data.images import IMAGE_SUFFIXES, is_dicom
from engine.errors import DataError
from engine.results.files import cannot_write, write_json

TEXT_SUFFIXES = (".csv", ".txt")
SOURCE_FILE = "SOURCE.json"
SPACE_EVERY_BYTES = 50_000_000
NAMED = 5  # of what was left out

OnFile = Callable[[int], None]  # files taken so far


@dataclass(frozen=True)
class Imported:
    """What an import made. `counts` has files per folder, `left_out` some lines about matching files that lie."""

    folder: Path
    layout: Layout
    n_images: int
    counts: dict[str, int]
    left_out: tuple[str, ...]
    content_sha256: str


class Sink(Protocol):
    def write(self, path: PurePosixPath, content: bytes) -> None: ...

    def close(self) -> None: ...


def require_new(data_set: DataSet, to: Path) -> Path:
    """The folder that an import will make. Raises DataError where something has its name: nothing is overwritten."""
    folder = to / data_set.name
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: exists already and is left as it is; move it away or give another --to")
    return folder


def import_data(data_set: DataSet, source: Path, to: Path, origin: dict[str, Any], on_file: OnFile) -> Imported:
    """Take the data set's images and tables from an archive or a folder, and lay them out in `to`/NAME.

    `origin` goes into SOURCE.json. Whatever goes wrong, and at Ctrl-C, nothing is left behind. Raises DataError for
    hostile or damaged archives, for what is not this data set, and for a full disk.
    """
    folder = require_new(data_set, to)
    temporary = to / f".{data_set.name}.{os.getpid()}.partial"
    try:
        temporary.mkdir(parents=True)
        imported = _fill(data_set, source, temporary, folder, on_file)
        about = {"data_set": data_set.name, "licence": data_set.licence, "citation": data_set.citation}
        what = {"n_images": imported.n_images, "content_sha256": imported.content_sha256}
        write_json(temporary / SOURCE_FILE, {"schema_version": 1} | about | origin | what)
        require_new(data_set, to)  # a second import may have been faster
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(folder, error) from None
        raise
    return imported


def _fill(data_set: DataSet, source: Path, temporary: Path, folder: Path, on_file: OnFile) -> Imported:
    hashes: dict[PurePosixPath, str] = {}
    left_out: list[str] = []
    n_bytes = 0
    with contextlib.closing(_Zips(temporary, data_set.name) if data_set.packed else _Files(temporary)) as sink:
        for path, content, came_from in _placed(data_set, source):
            if flaw := _flaw(path, content):
                left_out.append(f"{came_from}: {flaw}")
                continue
            digest = hashlib.sha256(content).hexdigest()
            if path in hashes:  # Kaggle's chest-xray and ham10000 hold everything twice
                if hashes[path] != digest:
                    raise DataError(
                        f"{came_from}: another file of the same source is {path} already; nothing was taken"
                    )
                continue
            if n_bytes // SPACE_EVERY_BYTES != (n_bytes + len(content)) // SPACE_EVERY_BYTES or not hashes:
                require_space(temporary, len(content))
            n_bytes += len(content)
            sink.write(path, content)
            hashes[path] = digest
            on_file(len(hashes))
    counts = Counter(str(path.parent) if path.parent.parts else str(path) for path in hashes)
    layout = _layout_of(data_set, source, temporary, len(left_out))
    n_images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in hashes)
    lines = "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes))
    named = (*left_out[:NAMED], *([f"and {len(left_out) - NAMED:,} more"] if len(left_out) > NAMED else []))
    content_sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return Imported(folder, layout, n_images, dict(sorted(counts.items())), named, content_sha256)


def _placed(data_set: DataSet, source: Path) -> Iterator[tuple[PurePosixPath, bytes, PurePosixPath]]:
    """Where each wanted file goes, its bytes, and what it was called."""
    n_so_far: Counter[str] = Counter()
    for entry in entries(source):
        target = data_set.place(str(entry.path))
        if target is None:
            continue
        if entry.path.suffix.lower() == ".bin":
            for path, content in read_batch(_read(entry), target, n_so_far):
                yield path, content, entry.path
        elif PurePosixPath(target).suffix.lower() in (*IMAGE_SUFFIXES, *TEXT_SUFFIXES):
            yield PurePosixPath(target), _read(entry), entry.path


def _read(entry: Entry) -> bytes:
    try:
        return entry.read()
    except OSError as error:
        raise DataError(f"{entry.path}: cannot be read: {error.strerror or error}") from None


def _flaw(path: PurePosixPath, content: bytes) -> str:
    """Why a file is not what its name says; empty where it is."""
    if path.suffix.lower() in TEXT_SUFFIXES:
        return "is no text" if b"\0" in content else ""
    picture = content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or is_dicom(content)
    return "" if picture else "is no PNG, JPEG or DICOM image"


def _layout_of(data_set: DataSet, source: Path, temporary: Path, n_left_out: int) -> Layout:
    for layout in data_set.layouts:
        if all((temporary / path).exists() for path in layout.required):
            return layout
    missing = [path for path in data_set.layouts[-1].required if not (temporary / path).exists()]
    lying = f" ({n_left_out:,} files are not what their names say)" if n_left_out else ""
    hint = f"; {data_set.hint}" if data_set.hint else ""
    raise DataError(
        f"{source}: has nothing for {', '.join(missing)} of {data_set.name}{lying}; is it that data set, and all of "
        f"it?{hint}"
    )


class _Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: PurePosixPath, content: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.write(content)

    def close(self) -> None:
        pass


class _Zips:
    """One NAME-TOP.zip per top folder: 60,000 tiny files are slow to copy, and pictures do not shrink further."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.opened: dict[str, zipfile.ZipFile] = {}

    def write(self, path: PurePosixPath, content: bytes) -> None:
        top = path.parts[0]
        if top not in self.opened:
            self.opened[top] = zipfile.ZipFile(self.folder / f"{self.name}-{top}.zip", "x")
        self.opened[top].writestr(zipfile.ZipInfo(str(path)), content)  # without a date: the same each time

    def close(self) -> None:
        for archive in self.opened.values():
            archive.close()
