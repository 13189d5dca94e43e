"""Images decoded once: pixels for the networks, small greys and looks for the audit, in the owner's cache directory.

Keyed by the files' content and by how they are read, so nothing stale is ever used.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.data.images import FIT_RULE, Pixels, fit, read_image, to_grey
from engine.data.looks import COLUMNS, GREY_PX, measure_looks, small_grey
from engine.data.scanner import apply_scanner
from engine.errors import DataError, ImageError
from engine.sections import Scanner

LAYOUT = 3  # counts up when the arrays below change
ARRAYS = ("pixels", "greys", "looks")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Decoded:
    """Row i of each array belongs to the i-th readable file. `looks` has the columns COLUMNS."""

    pixels: Pixels  # (n, side, side, channels)
    greys: Pixels  # (n, GREY_PX, GREY_PX)
    looks: npt.NDArray[np.float64]  # (n, len(COLUMNS))
    unreadable: dict[str, str]  # path -> reason


def default_cache() -> Path:
    """$CONSILIUM_CACHE, else beside the data owner's other caches; holds patient images, so for the owner alone."""
    base = os.environ.get("CONSILIUM_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) if base else Path(home) / "consilium") / "images"


def decode_images(
    root: Path,
    files: Sequence[tuple[str, str]],
    *,
    side_px: int,
    colour: bool,
    cache: Path,
    scanner: Scanner | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Decode (path below root, sha256) pairs, or take them from the cache where the same bytes were decoded before."""
    description = [LAYOUT, FIT_RULE, side_px, colour, files, *([scanner.model_dump()] if scanner else [])]
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:32]
    kept = _load(cache, key, len(files))
    if kept is not None:
        return kept
    pixels: list[Pixels] = []
    greys: list[Pixels] = []
    looks: list[npt.NDArray[np.float64]] = []
    unreadable: dict[str, str] = {}
    for number, (path, sha256) in enumerate(files, start=1):
        try:
            image = apply_scanner(read_image(root / path, colour=True), scanner, sha256)
            pixels.append(fit(image if colour else to_grey(image), side_px))
            greys.append(small_grey(image))
            looks.append(measure_looks(image))
        except ImageError as error:
            unreadable[path] = str(error)
        if progress:
            progress(number, len(files))
    decoded = Decoded(
        np.array(pixels, np.uint8).reshape(-1, side_px, side_px, 3 if colour else 1),
        np.array(greys, np.uint8).reshape(-1, GREY_PX, GREY_PX),
        np.array(looks, np.float64).reshape(-1, len(COLUMNS)),
        unreadable,
    )
    _save(cache, key, decoded)
    return decoded


def _load(cache: Path, key: str, n_files: int) -> Decoded | None:
    """None where it is not there, or damaged: then it is decoded anew."""
    try:  # the index is written last: it vouches for the arrays
        unreadable = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))["unreadable"]
        arrays: dict[str, Any] = {
            name: np.load(cache / f"{key}.{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
        }
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    whole = all(len(array) + len(unreadable) == n_files for array in arrays.values())
    return Decoded(**arrays, unreadable=unreadable) if whole else None


def _save(cache: Path, key: str, decoded: Decoded) -> None:
    mine = f"{os.getpid()}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        cache.chmod(0o700)
        for name in ARRAYS:
            partial = cache / f"{key}.{name}.{mine}.npy"
            np.save(partial, getattr(decoded, name), allow_pickle=False)
            partial.replace(cache / f"{key}.{name}.npy")
        partial = cache / f"{key}.{mine}.json"
        partial.write_text(json.dumps({"unreadable": decoded.unreadable}), encoding="utf-8")
        partial.replace(cache / f"{key}.json")
    except OSError as error:
        raise DataError(
            f"{cache}: cannot keep decoded images: {error.strerror or error}; set CONSILIUM_CACHE to a folder with room"
        ) from None
