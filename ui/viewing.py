"""Looking closer at one image: frame, window, inversion, zoom; and what its header gave away. Pure but for draw_*."""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from PIL import Image

from engine.data.images import Pixels, is_dicom

if TYPE_CHECKING:
    from engine.data.dicom import Window

ZOOMS = (1, 2, 4)
BURNED_IN = "text burned into the picture"  # as engine.data.dicom_identity calls it
OWN_WINDOW = "The models read it in this window too, which is not the one they were trained with."


@dataclass(frozen=True)
class View:
    """`frame` counts from 0, None where there is one alone. `window` is None where the file's own is in use.

    `across` and `down` place the zoomed part, 0 (left, top) to 1. Frame and window are what the models read too;
    inversion and zoom are for the reader's eyes.
    """

    frame: int | None = None
    window: "Window | None" = None
    invert: bool = False
    zoom: int = 1
    across: float = 0.5
    down: float = 0.5

    def reading_arguments(self) -> dict[str, Any]:
        """What `Panel.read` must know of it; empty for an image as it came."""
        chosen = {"frame": self.frame, "window": self.window}
        return {name: value for name, value in chosen.items() if value is not None}


def crop(pixels: Pixels, zoom: int, across: float = 0.5, down: float = 0.5) -> Pixels:
    """A part of (h, w) or (h, w, 3), 1 / zoom as wide and high, at least one pixel."""
    height, width = pixels.shape[:2]
    part_height, part_width = max(1, round(height / zoom)), max(1, round(width / zoom))
    top, left = round(down * (height - part_height)), round(across * (width - part_width))
    return pixels[top : top + part_height, left : left + part_width]


def invert(pixels: Pixels) -> Pixels:
    return np.asarray(255 - pixels, np.uint8)


def without_padding(fitted: Pixels, height: int, width: int) -> Pixels:
    """What `fit` made of an image (height, width), without the black around it."""
    side = len(fitted)
    scale = side / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (side - inner_height) // 2, (side - inner_width) // 2
    return fitted[top : top + inner_height, left : left + inner_width]


def has_colours(pixels: Pixels) -> bool:
    return bool(pixels.ndim == 3 and (np.ptp(pixels, axis=2) > 0).any())


def picture_url(pixels: Pixels, longest_px: int) -> str:
    """A PNG inside the page itself, at most `longest_px` wide or high; Streamlit would keep a media file."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest_px, longest_px))
    png = io.BytesIO()
    image.save(png, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def first_frame(content: bytes) -> View:
    """How an image is read where nobody chooses: as it came, of several frames the first."""
    return View(0) if count_frames_of(content) > 1 else View()


def count_frames_of(content: bytes) -> int:
    if not is_dicom(content):
        return 1
    from engine.data.dicom import count_frames  # few need pydicom's 20 MB

    return count_frames(content)


def header_sentences(fields: tuple[str, ...]) -> str:
    """What else the file held, by kind and never by value; empty where it held nothing."""
    hidden = [field for field in fields if field != BURNED_IN]
    said = []
    if hidden:
        said.append(f"The file also held: {', '.join(hidden)}. None of it is shown, stored or sent on.")
    if BURNED_IN in fields:
        said.append("The file says that text is burned into the picture itself: look whether it names anybody.")
    return " ".join(said)


def header_of(content: bytes) -> str:
    """`header_sentences` of a file; empty for PNG and JPEG."""
    if not is_dicom(content):
        return ""
    from engine.data.dicom_identity import identifying_fields

    return header_sentences(identifying_fields(content))


def draw_view(content: bytes, key: str) -> View:
    """The controls for one image; `key` keeps one image's window and frame from the next one."""
    frame = _choose_frame(content, key)
    if not st.toggle("Adjust the view", key="adjust"):
        return View(frame)
    window = _choose_window(content, frame, key)
    inverted = st.toggle("Invert light and dark, for your eyes alone", key="invert")
    zoom = st.radio("Zoom", ZOOMS, format_func=lambda times: f"{times}x", key="zoom", horizontal=True) or 1
    across = down = 0.5
    if zoom > 1:
        across = st.slider("Part shown: left to right", 0, 100, 50, key="across", format="%d%%") / 100
        down = st.slider("Part shown: top to bottom", 0, 100, 50, key="down", format="%d%%") / 100
    return View(frame, window, inverted, zoom, across, down)


def _choose_frame(content: bytes, key: str) -> int | None:
    n_frames = count_frames_of(content)
    if n_frames < 2:
        return None
    return st.slider(f"Frame, of {n_frames:,}", 1, n_frames, key=f"frame {key}") - 1


def _choose_window(content: bytes, frame: int | None, key: str) -> "Window | None":
    if not is_dicom(content):
        return None
    from engine.data.dicom import Window, suggested_window

    own = suggested_window(content, frame=frame)
    if own is None:
        return None
    key = f"{key} {frame}"
    reach, step = 2 * own.width, own.width / 100
    number = "%.0f" if own.width >= 100 else "%.3g"
    centre = st.slider(
        "Window centre", own.centre - reach, own.centre + reach, own.centre, step, number, key=f"centre {key}"
    )
    width = st.slider("Window width", step, 2 * reach, own.width, step, number, key=f"width {key}")
    if (centre, width) == (own.centre, own.width):
        return None
    st.caption(OWN_WINDOW)
    return Window(centre, width)
