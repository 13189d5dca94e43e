"""A source that lies in an archive is unpacked once, into the owner's cache directory."""

import tempfile
from pathlib import Path, PurePosixPath

from engine.data.archives import entries
from engine.data.class_folders import hash_file
from engine.errors import DataError


def unpack_once(archive: Path, cache: Path) -> Path:
    """The folder that holds the archive's files, by the archive's own hash. Raises DataError.

    A kill on the way leaves nothing that is taken for whole.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such archive; mend source.archive in the TOML, or get the data set first")
    home = cache / hash_file(archive)[:32]
    if home.is_dir():
        return home
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=cache) as folder:
            partial = Path(folder) / "files"
            partial.mkdir()
            for entry in entries(archive):
                file = partial / PurePosixPath(*entry.path.parts[1:])  # the first is the archive's name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(entry.read())
            partial.rename(home)
    except OSError as error:
        if home.is_dir():  # another process was faster
            return home
        raise DataError(
            f"{cache}: cannot unpack {archive.name}: {error.strerror or error}; set CONSILIUM_CACHE to one with room"
        ) from None
    return home
