"""Several images at once: one line each, as a table and as CSV. Images are called "image 1"; file names stay out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import streamlit as st

from engine.config import Federation
from engine.errors import ImageError
from engine.inference.panel import Panel, Reading
from engine.results.published import PublishedVersion
from engine.results.words import percent
from ui.given import Picture
from ui.opinions import ordered, set_words, who_says_otherwise
from ui.palette import model_order
from ui.read_first import must_read_first, note_shown
from ui.viewing import first_frame

HIDDEN = "read it first"
UNREADABLE = "cannot be read"
BATCH = "batch"  # {version and image id: Line}, never an image


@dataclass(frozen=True)
class Line:
    """`answer` is the leading model's class or set, `first` its most likely class and `confidence` that one's
    probability. `frame` is the one read of a file with several, from 1. `note` says why an image is refused or cannot
    be read.
    """

    image: str
    outcome: Literal["read", "refused", "unreadable"]
    answer: str = ""
    first: str = ""
    confidence: float | None = None
    frame: int | None = None
    otherwise: str = ""
    note: str = ""


def line_of(federation: Federation, image: str, reading: Reading) -> Line:
    """A refused image has no answer here, even where somebody insists on one elsewhere."""
    if reading.refused or not reading.opinions:
        return Line(image, "refused", note=" ".join(reading.reasons))
    leading = reading.opinions[ordered(federation, reading.opinions)[0]]
    return Line(
        image,
        "read",
        answer=set_words(leading, len(federation.classes)),
        first=leading.label,
        confidence=leading.probabilities[leading.label],
        otherwise=who_says_otherwise(federation, reading.opinions),
    )


def unreadable(image: str, error: Exception) -> Line:
    return Line(image, "unreadable", note=str(error))


def batch_table(lines: Sequence[Line], leader: str, hidden: Collection[str] = ()) -> pd.DataFrame:
    """For st.table, which reads Markdown. `hidden` are images that the reader has not read yet; nothing is said."""
    rows = {}
    for line in lines:
        if line.outcome == "unreadable":
            rows[line.image] = (UNREADABLE, "", line.note)
        elif line.outcome == "refused":
            rows[line.image] = ("refused", "", line.note)
        elif line.image in hidden:
            rows[line.image] = (HIDDEN, "", "")
        else:
            confidence = percent(line.confidence or 0.0).replace(">", "\\>")
            confidence = confidence if line.answer == line.first else f"{line.first} {confidence}"
            frame = f"frame {line.frame}: " if line.frame else ""
            rows[line.image] = (frame + line.answer, confidence, line.otherwise or "nobody")
    columns = [leader, "First choice", "Who says otherwise, or why not read"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("Image")


def batch_csv(lines: Sequence[Line], version: str) -> bytes:
    """UTF-8 with a byte order mark, so that a spreadsheet reads hospitals' names right."""
    frame = pd.DataFrame(
        {
            "image": [line.image for line in lines],
            "outcome": [line.outcome for line in lines],
            "answer": [line.answer for line in lines],
            "first_choice": [line.first for line in lines],
            "probability": ["" if line.confidence is None else f"{line.confidence:.6f}" for line in lines],
            "frame": ["" if line.frame is None else line.frame for line in lines],
            "who_says_otherwise": [line.otherwise for line in lines],
            "note": [line.note for line in lines],
            "model": version,
        }
    )
    return frame.to_csv(index=False).encode("utf-8-sig")


def summary(lines: Sequence[Line]) -> str:
    """One sentence above the table."""
    counts = {outcome: sum(line.outcome == outcome for line in lines) for outcome in ("read", "refused", "unreadable")}
    parts = [f"{counts['read']} of {len(lines)} images read"]
    parts += [f"{counts['refused']} refused"] if counts["refused"] else []
    parts += [f"{counts['unreadable']} unreadable"] if counts["unreadable"] else []
    return ", ".join(parts) + "."


def choose_picture(pictures: list[Picture], panel: Panel, version: PublishedVersion) -> Picture:
    """The one to see in full; above it a line for each, where there are several."""
    if len(pictures) == 1:
        return pictures[0]
    federation = version.federation
    lines = _lines(pictures, panel, version)
    unread = {
        picture.name
        for picture, line in zip(pictures, lines, strict=True)
        if line.outcome == "read" and must_read_first(picture.key)
    }
    for picture, line in zip(pictures, lines, strict=True):
        if line.outcome == "read" and picture.name not in unread:
            note_shown(picture.key)
    leader = federation.model_name(model_order(federation, list(panel.models))[0])
    st.markdown(f"**{summary(lines)}**")
    st.table(batch_table(lines, leader, unread))
    if unread:
        st.caption("The table can be downloaded once you have read every image.")
    else:
        content = batch_csv(lines, f"{version.name}@{version.version}")
        st.download_button(
            "Table as CSV", content, "consilium-images.csv", "text/csv",
            key="batch_csv", on_click="ignore", icon=":material/download:",
        )  # fmt: skip
    said = {line.image: "" if line.outcome == "read" else f", {line.outcome}" for line in lines}
    place = st.selectbox(
        "See in full",
        range(len(pictures)),
        key="chosen_image",
        format_func=lambda place: pictures[place].name + said[pictures[place].name],
    )
    return pictures[place or 0]


def _lines(pictures: list[Picture], panel: Panel, version: PublishedVersion) -> list[Line]:
    """Each image is read once; the session keeps the line, not the image."""
    stamp, known = version.manifest_sha256, st.session_state.get(BATCH, {})
    lines: dict[str, Line] = {}
    for picture in pictures:
        key = f"{stamp} {picture.key}"
        lines[key] = replace(known.get(key) or _line(picture, panel), image=picture.name)
    st.session_state[BATCH] = lines
    return list(lines.values())


def _line(picture: Picture, panel: Panel) -> Line:
    try:
        reading = panel.read(picture.content, **first_frame(picture.content).reading_arguments())
    except ImageError as error:
        return unreadable(picture.name, error)
    line = line_of(panel.federation, picture.name, reading)
    return line if reading.frame is None else replace(line, frame=reading.frame + 1)


def forget_lines(keys: Collection[str]) -> None:
    """Lines of images that are no longer here go with them."""
    known = st.session_state.get(BATCH, {}).items()
    st.session_state[BATCH] = {key: line for key, line in known if key.partition(" ")[2] in keys}
