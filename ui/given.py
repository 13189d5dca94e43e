"""What the reader gives to be read: uploads, or an example."""

from dataclasses import dataclass, replace

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.published import PublishedVersion
from ui.examples import REFUSED, example_choices, held_out_images, make_example

SUFFIXES = ["png", "jpg", "jpeg", "dcm"]
MAX_IMAGES = 20


@dataclass(frozen=True)
class Picture:
    """`name` is what tables and reports call it; `key` is the uploader's id of the file, or an example's name."""

    content: bytes
    name: str
    key: str
    caption: str
    is_example: bool = False


def take_pictures(version: PublishedVersion, *, has_gate: bool) -> list[Picture]:
    """The uploads, else the chosen example. Uploads win, because somebody wants to know about them."""
    uploads = st.file_uploader(
        "Images (PNG, JPEG or DICOM)",
        type=SUFFIXES,
        key="upload",
        label_visibility="collapsed",
        accept_multiple_files=True,
    )
    if len(uploads) > MAX_IMAGES:
        st.caption(f"Only the first {MAX_IMAGES} of {len(uploads)} images are read.")
    pictures = [
        Picture(upload.getvalue(), f"image {number}", upload.file_id, f"Image {number}:")
        for number, upload in enumerate(uploads[:MAX_IMAGES], start=1)
    ]
    if len(pictures) == 1:
        pictures = [replace(pictures[0], caption="Your image:")]
    if not pictures:
        pictures = _take_example(version, has_gate=has_gate)
    st.toggle("Read first, compare later", key="read_first")
    return pictures


def _take_example(version: PublishedVersion, *, has_gate: bool) -> list[Picture]:
    manifest = version.manifest
    drawn = manifest.federation.phantom_seed is not None
    tested = not drawn and bool(held_out_images(manifest))
    if tested and manifest.composites:
        tested = st.toggle("Test images, from this machine", key="tested")
    choices = example_choices(manifest, tested=tested)
    what = "Or try a synthetic slice, drawn for you" if drawn else "Or try an average of training images"
    if tested:
        what = "Or try an image of the test split"
    if choices == [REFUSED]:
        what = "Or try"
    chosen = st.pills(what, choices, key="example", wrap=True)
    if not chosen:
        return []
    number = st.session_state.get("example_number", 0)
    try:
        example = make_example(version, chosen, number, tested=tested)
    except (ConsiliumError, OSError) as error:
        st.caption(f"There is no such example: {error}")
        return []
    missing = " This version has no gate." if chosen == REFUSED and not has_gate else ""
    return [
        Picture(example.content, "image 1", f"{chosen} {number} {tested}", example.caption + missing, is_example=True)
    ]


def next_example() -> None:
    st.session_state["example_number"] = st.session_state.get("example_number", 0) + 1
