"""Patient pictures inside the page itself, as data URLs: Streamlit would keep a media file until the next full run."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from PIL import Image

from engine.config import data_root
from engine.data.images import read_image
from engine.data.scanner import apply_scanner
from engine.errors import ConsiliumError, ImageError
from engine.results.files import sha256_of
from engine.results.run_folder import Run
from engine.sections import Scanner

SAMPLE_PX = 200


@dataclass(frozen=True)
class BrowserPicture:
    """What the browser gets, and the size of the original in pixels."""

    url: str
    width: int
    height: int


def browser_picture(
    source: bytes | Path, *, colour: bool, longest_px: int, scanner: Scanner | None = None
) -> BrowserPicture:
    """An image, DICOM too, at most `longest_px` wide or high, as `scanner` shows it. Raises ImageError."""
    pixels = read_image(source, colour=colour)
    if scanner is not None:
        content = source.read_bytes() if isinstance(source, Path) else source
        pixels = apply_scanner(pixels, scanner, hashlib.sha256(content).hexdigest())
    image = Image.fromarray(pixels)
    width, height = image.size
    image.thumbnail((longest_px, longest_px))
    png = io.BytesIO()
    image.save(png, format="PNG")
    return BrowserPicture(f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}", width, height)


def sample_files(run: Run, hospital: str) -> dict[str, Path]:
    """One image per class of a hospital, where the very file that the run used lies on this machine; else nothing."""
    root = data_root(run.federation)
    found: dict[str, Path] = {}
    if run.config.transport == "flower":  # its hospitals keep their splits, and their images
        return found
    for row in run.read_json("dataset_splits.json")["images"] if root.is_dir() else ():
        if row["hospital"] != hospital or row["label"] in found:
            continue
        path = root / row["path"]
        if path.is_file() and sha256_of(path) == row["sha256"]:
            found[row["label"]] = path
    return found


def draw_samples(run: Run, hospital: str) -> None:
    """Behind a toggle, because pictures of patients are not for every glance over a shoulder."""
    try:
        files = sample_files(run, hospital)
    except (ConsiliumError, OSError, KeyError, TypeError) as error:
        st.caption(f"No samples: {error}")
        return
    if not files:
        st.caption("Samples show only on a machine where the hospital's images lie; they are not on this one.")
        return
    if not st.toggle("Show one image per class", key="samples"):
        return
    federation = run.federation
    scanner = next((mine.scanner for mine in federation.hospital if mine.id == hospital), None)
    for column, (label, path) in zip(st.columns(len(files)), files.items(), strict=True):
        try:
            picture = browser_picture(path, colour=federation.model.colour, longest_px=SAMPLE_PX, scanner=scanner)
        except ImageError as error:
            column.caption(f"{label}: {error}")
            continue
        origin = ", synthetic" if federation.synthetic else ""
        column.image(picture.url, caption=f"{label}{origin}", alt=f"An image labelled {label}", width="stretch")
