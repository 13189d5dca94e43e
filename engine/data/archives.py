"""The files of a zip, a tar or a folder that came from elsewhere, one by one; nothing is ever extracted by its name.

Refused as a whole: paths that leave the archive, links and devices, encryption, and archives that unpack to far more
than they weigh. Sizes are checked before a file is read, so that a bomb costs nothing.
"""

import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from engine.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
MAX_FILES = 500_000
MAX_FILE_BYTES = 500_000_000  # one image or table
MAX_TOTAL_BYTES = 50_000_000_000
MAX_RATIO = 100  # pictures hardly shrink and tables some tenfold; a bomb shrinks a thousandfold
ANY_RATIO_BYTES = 10_000_000  # so little is no bomb, whatever its ratio
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    gzip.BadGzipFile,
)


@dataclass(frozen=True)
class Entry:
    """A file. `path` starts with the archive's name without its suffix; `read` works until the next entry is asked for.

    `read` raises DataError for a damaged file.
    """

    path: PurePosixPath
    n_bytes: int
    read: Callable[[], bytes]


def entries(source: Path) -> Iterator[Entry]:
    """All files of an archive or a folder, and of the archives that lie in the folder; not of archives in archives.

    What an operating system or a program left (hidden files, __MACOSX) is passed over. Raises DataError.
    """
    try:
        if source.is_dir():
            yield from _of_folder(source)
        elif source.is_file():
            yield from _of_archive(source, PurePosixPath())
        else:
            raise DataError(f"{source}: no such file or folder")
    except OSError as error:
        raise DataError(f"{error.filename or source}: cannot be read: {error.strerror or error}") from None


def archive_stem(name: str) -> str | None:
    """The name without an archive's suffix; None: it is no archive that is opened here."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


class _Budget:
    """Adds up what an archive unpacks to, and refuses what no collection of images would be."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.limit = min(MAX_TOTAL_BYTES, max(ANY_RATIO_BYTES, MAX_RATIO * archive.stat().st_size))
        self.n_files = 0
        self.n_bytes = 0

    def take(self, n_bytes: int) -> None:
        self.n_files += 1
        self.n_bytes += n_bytes
        if self.n_files > MAX_FILES:
            raise DataError(f"{self.archive}: holds more than {MAX_FILES:,} files; nothing was taken")
        if n_bytes < 0 or self.n_bytes > self.limit:
            raise DataError(
                f"{self.archive}: would unpack to more than {self.limit / 1e6:,.0f} MB, far more than it weighs, as "
                "only a decompression bomb does; nothing was taken"
            )


class _PatientGzip(gzip.GzipFile):
    """Refuses a single huge read: tarfile reads a header's extension whole, whatever size the header claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > MAX_FILE_BYTES // 10:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)


def _of_folder(folder: Path) -> Iterator[Entry]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in folders + names:
            path = Path(place) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise DataError(f"{path}: is a link or a device; give a folder of plain files")
        for name in sorted(names):
            path = Path(place) / name
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            if _is_litter(relative):
                continue
            if archive_stem(name) is not None:
                yield from _of_archive(path, relative.parent)
            else:
                size = path.stat().st_size
                yield Entry(folder.name / relative, size, _guarded(path, size, path.read_bytes))


def _of_archive(archive: Path, prefix: PurePosixPath) -> Iterator[Entry]:
    stem = archive_stem(archive.name)
    try:
        if zipfile.is_zipfile(archive):
            found = _of_zip(archive)
        elif stem is not None and not archive.name.lower().endswith(".zip"):
            found = _of_tar(archive)
        else:
            raise DataError(f"{archive}: is no readable zip, tar.gz or tar; was the download cut short?")
        for entry in found:
            if not _is_litter(entry.path):
                yield Entry(prefix / (stem or archive.stem) / entry.path, entry.n_bytes, entry.read)
    except DAMAGE as error:
        raise _damaged(archive, error) from None


def _of_zip(archive: Path) -> Iterator[Entry]:
    budget = _Budget(archive)
    with zipfile.ZipFile(archive) as opened:
        files = [info for info in opened.infolist() if not info.is_dir()]
        for info in files:  # all of them before the first is read: a refused archive leaves nothing
            budget.take(info.file_size)
            safe_path(info.filename, archive)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise DataError(f"{archive}: '{info.filename}' is a link or a device; nothing was taken")
            if info.flag_bits & 1:
                raise DataError(f"{archive}: is encrypted; unpack it and import the folder")
        for info in files:
            read = _guarded(archive, info.file_size, partial(opened.read, info))
            yield Entry(safe_path(info.filename, archive), info.file_size, read)


def _of_tar(archive: Path) -> Iterator[Entry]:
    budget = _Budget(archive)
    with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
        for member in opened:
            budget.take(member.size)
            path = safe_path(member.name, archive)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(f"{archive}: '{member.name}' is a link or a device; nothing was taken")

            def read(member: tarfile.TarInfo = member) -> bytes:
                content = opened.extractfile(member)
                return b"" if content is None else content.read()

            yield Entry(path, member.size, _guarded(archive, member.size, read))


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """A name in an archive as a relative path. Raises DataError for one that leaves it, on any operating system."""
    path = PurePosixPath(name.replace("\\", "/"))
    odd = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
    if odd or any(ord(character) < 32 for character in name):
        raise DataError(f"{archive}: holds the path {name!r}, which leads out of it; nothing was taken")
    return path


def _is_litter(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _opened(archive: Path) -> IO[bytes]:
    with archive.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], _PatientGzip(archive)) if is_gzip else archive.open("rb")


def _guarded(archive: Path, n_bytes: int, read: Callable[[], bytes]) -> Callable[[], bytes]:
    def guarded() -> bytes:
        if n_bytes > MAX_FILE_BYTES:
            raise DataError(f"{archive}: a file of {n_bytes / 1e6:,.0f} MB; no image or table is so large")
        try:
            return read()
        except DAMAGE as error:
            raise _damaged(archive, error) from None

    return guarded


def _damaged(archive: Path, error: BaseException) -> DataError:
    return DataError(f"{archive}: is damaged ({type(error).__name__}: {error}); download it again")
