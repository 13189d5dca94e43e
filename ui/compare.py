"""Compare: an image comes in, opinions stand beside it.

An uploaded image lives in the uploader and in local names alone: no cache, no session state, no file.
"""

from collections.abc import Mapping

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.errors import ConsiliumError, ImageError
from engine.inference.panel import Panel, Reading
from engine.results.published import PublishedVersion, VersionManifest
from ui.batch import choose_picture, forget_lines
from ui.consent import ask_once
from ui.forgetting import drop_downloads, drop_stale_downloads
from ui.given import Picture, next_example, take_pictures
from ui.heatmaps import LAID_PX, Why, draw_why, lay_over, legend, why_sentences
from ui.loaders import load_panel
from ui.opinions import NOT_CALIBRATED, agreement, answer, calibrated_sentence, opinion_rows, panel_rows
from ui.outside import outside_sentence
from ui.probabilities import EXPLAIN, probability_table
from ui.read_first import (
    TOO_LATE,
    agreement_with_reader,
    ask_reader,
    forget_others,
    is_too_late,
    must_read_first,
    note_shown,
    own_label,
)
from ui.refusal import draw_refusal
from ui.report_buttons import draw_report_buttons, report_makers
from ui.selection import stop_with
from ui.viewing import View, crop, draw_view, has_colours, header_of, invert, picture_url

SHOWN_PX = 1024
PRIVACY = "Remove names from the picture first."
GIVEN = "given"  # the uploader's ids of its files


@st.fragment
def draw_compare(version: PublishedVersion) -> None:
    """A new image redraws this part alone, so a version is verified once.

    Streamlit keeps a fragment's arguments as long as its session, so the models are none of them: they would stay in
    memory with every reader who has gone.
    """
    try:
        panel, manifest = load_panel(str(version.folder), version.manifest_sha256), version.manifest
    except ConsiliumError as error:
        stop_with(error)
    st.markdown(f"Made for {manifest.federation.intended_input}. {PRIVACY}")
    if outside := outside_sentence(version):
        st.caption(f"How far to trust the federated model: {outside[0].lower()}{outside[1:]}")
    understood = ask_once()
    left, right = st.columns([5, 7], gap="medium")
    with left:
        pictures = take_pictures(version, has_gate=panel.calibration is not None)
    if pictures and understood:
        with right:
            picture = choose_picture(pictures, panel, version)
        _draw_one(picture, panel, version, left, right)
    else:
        with right:
            if pictures:
                st.info("No image is read before you have understood the note above.", icon=":material/info:")
            st.subheader(f"Who will answer: {len(panel.models)} models", anchor=False)
            st.html(panel_rows(manifest.federation, list(panel.models), manifest.class_counts))
    drop_stale_downloads()
    _forget_removed(pictures)


def _draw_one(
    picture: Picture, panel: Panel, version: PublishedVersion, left: DeltaGenerator, right: DeltaGenerator
) -> None:
    """Gate first, then the reader's own label where one is asked for, then the opinions."""
    federation, content = version.federation, picture.content
    image_spot, why_spot = left.container(), left.container(key="why_spot")
    view_spot = left.container(key="view_spot").empty()
    insisted = False
    try:
        with view_spot.container():
            view = draw_view(content, picture.key)
        arguments = view.reading_arguments()
        reading = panel.read(content, **arguments)
        if reading.refused:
            with right:
                insisted = draw_refusal(federation, reading.reasons, picture.key)
            if insisted:
                reading = panel.read(content, insist=True, **arguments)
    except ImageError as error:
        view_spot.empty()
        right.error(f"This image cannot be read ({error}). Choose another one; nothing else has changed.")
        return
    own = own_label(picture.key)
    waits = must_read_first(picture.key) and bool(reading.opinions)
    with why_spot:
        why = None if waits else draw_why(federation, reading)
    with image_spot:
        _draw_image(picture, reading, version, view, why)
    with right:
        if waits:
            ask_reader(federation, picture.name, picture.key)
            return
        if reading.opinions:
            note_shown(picture.key)
            if is_too_late(picture.key):
                st.caption(TOO_LATE)
            _draw_opinions(reading, panel, version.manifest, own)
        example = picture.caption if picture.is_example else ""
        makers = report_makers(
            reading, version, image_name=picture.name, insisted=insisted, own_reading=own, example=example
        )
        draw_report_buttons(makers, version, picture.name)


def _draw_image(picture: Picture, reading: Reading, version: PublishedVersion, view: View, why: Why | None) -> None:
    """The image, what lies over it and what that means, then what there is to say about the file."""
    federation, pixels = version.federation, reading.original
    seen = invert(pixels) if view.invert else pixels
    alt = "The image the opinions are about"
    if why is not None:
        seen = lay_over(seen, reading, federation, why, LAID_PX * min(view.zoom, 2))
        alt += f", with evidence for {why.label} in colour"
    url = picture_url(crop(seen, view.zoom, view.across, view.down), SHOWN_PX)
    height, width = pixels.shape[:2]
    side = federation.model.image_size_px
    grey = " in grey" if has_colours(pixels) and not federation.model.colour else ""
    size = f"{width:,} x {height:,} px; the models see it at {side} x {side} px{grey}."
    st.image(url, caption=f"{picture.caption} {size}", width="stretch", alt=alt)
    if why is not None:
        st.html(legend(federation, why))
        st.caption(why_sentences(federation, reading, why))
    remarks = reading.remarks if reading.opinions else ()  # a refusal has said why in its own words
    for sentence in (*remarks, header_of(picture.content)):
        if sentence:
            st.caption(sentence)
    if picture.is_example:
        another = "Another one" if federation.phantom_seed is None else "Draw another"
        st.button(another, icon=":material/refresh:", on_click=next_example, type="tertiary")


def _draw_opinions(reading: Reading, panel: Panel, manifest: VersionManifest, own: str | None) -> None:
    federation, opinions, calibration = manifest.federation, reading.opinions, panel.calibration
    st.subheader(answer(federation, opinions), anchor=False)
    if own is not None:
        st.markdown(agreement_with_reader(federation, opinions, own))
    st.markdown(agreement(federation, opinions, manifest.class_counts))
    st.html(opinion_rows(federation, opinions, manifest.class_counts, calibrated=calibration is not None))
    st.caption(NOT_CALIBRATED if calibration is None else calibrated_sentence(calibration.coverage))
    if st.toggle("All probabilities as a table", key="as_table"):
        operating: Mapping[str, Mapping[str, Mapping[str, object]]] = (
            {} if calibration is None else calibration.measured.get("operating", {})
        )
        st.table(probability_table(federation, opinions, operating))
        if operating:
            st.caption(EXPLAIN)


def _forget_removed(pictures: list[Picture]) -> None:
    """What was said of an image goes with it; where one was removed, its reports too, and the page runs anew."""
    keys = [picture.key for picture in pictures]
    forget_others(keys)
    forget_lines(keys)
    given = {picture.key for picture in pictures if not picture.is_example}
    removed = set(st.session_state.get(GIVEN, ())) - given
    st.session_state[GIVEN] = sorted(given)
    if removed:
        drop_downloads()
        st.rerun()
