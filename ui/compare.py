"""Compare: an image comes in, opinions stand beside it.

An uploaded image lives in the uploader and in local names alone: no cache, no session state, no file.
"""

from dataclasses import dataclass

import streamlit as st

from engine.errors import ImageError
from engine.inference.panel import Panel, Reading
from engine.results.published import VersionManifest
from ui.examples import draw_example, example_labels
from ui.opinions import NOT_CALIBRATED, agreement, answer, opinion_rows, panel_rows, probability_table
from ui.pictures import browser_picture

SUFFIXES = ["png", "jpg", "jpeg", "dcm"]
SHOWN_PX = 1024
PRIVACY = "Remove names from the picture first. Your image stays in this server's memory until you remove it."


@dataclass(frozen=True)
class Picture:
    content: bytes
    caption: str
    is_example: bool = False


@st.fragment
def draw_compare(panel: Panel, manifest: VersionManifest) -> None:
    """A new image redraws this part alone, so a version is verified and loaded once."""
    federation = manifest.federation
    st.markdown(f"Made for {federation.intended_input}. {PRIVACY}")
    left, right = st.columns([5, 7], gap="medium")
    with left:
        picture = _take_picture(manifest)
    if picture is None:
        with right:
            st.subheader(f"Who will answer: {len(panel.models)} models", anchor=False)
            st.html(panel_rows(federation, list(panel.models), manifest.class_counts))
        return
    try:
        shown = browser_picture(picture.content, colour=federation.model.colour, longest_px=SHOWN_PX)
        reading = panel.read(picture.content)
    except ImageError as error:
        right.error(f"This image cannot be read ({error}). Choose another one; nothing else has changed.")
        return
    side = federation.model.image_size_px
    seen = f"{shown.width:,} x {shown.height:,} px; the models see it at {side} x {side} px."
    left.image(shown.url, caption=f"{picture.caption} {seen}", width="stretch", alt="The image the opinions are about")
    if picture.is_example:
        left.button("Draw another", icon=":material/refresh:", on_click=_next_example, type="tertiary")
    with right:
        _draw_reading(reading, manifest)


def _take_picture(manifest: VersionManifest) -> Picture | None:
    """The upload, else the chosen example. An upload wins, because somebody wants to know about it."""
    upload = st.file_uploader("Image (PNG, JPEG or DICOM)", type=SUFFIXES, key="upload", label_visibility="collapsed")
    if upload is not None:
        return Picture(upload.getvalue(), "Your image:")
    federation = manifest.federation
    labels = example_labels(federation)
    chosen = None
    if labels:
        chosen = st.pills("Or try a synthetic slice, drawn for you", labels, key="example", wrap=True)
    if not chosen:
        return None
    example = draw_example(federation, chosen, st.session_state.get("example_number", 0))
    return Picture(example.content, example.caption, is_example=True)


def _draw_reading(reading: Reading, manifest: VersionManifest) -> None:
    federation, opinions = manifest.federation, reading.opinions
    st.subheader(answer(federation, opinions), anchor=False)
    st.markdown(agreement(federation, opinions, manifest.class_counts))
    st.html(opinion_rows(federation, opinions, manifest.class_counts))
    st.caption(NOT_CALIBRATED)
    if st.toggle("All probabilities as a table", key="as_table"):
        st.table(probability_table(federation, opinions))


def _next_example() -> None:
    st.session_state["example_number"] = st.session_state.get("example_number", 0) + 1
