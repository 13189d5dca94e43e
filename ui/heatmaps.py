"""Why: where a model saw evidence for a class, laid over the image. Controls, words and legend; the maps are ready."""

from dataclasses import dataclass
from html import escape

import numpy as np
import streamlit as st

from engine.config import Federation
from engine.data.images import Pixels, fit
from engine.inference.heatmap import Map, difference_overlay, legend_colours, overlay, peak
from engine.inference.panel import Reading
from engine.sections import SEES_PX
from ui.palette import model_order
from ui.viewing import without_padding

NOTHING, HEATMAP, DIFFERENCE = "Image alone", "One model's heatmap", "Difference"
LAID_PX = 512  # side at which a map is laid over the image: sharp anatomy under a smooth map
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True)
class Why:
    """`model`'s evidence for `label`; with `other`, less that of the other model. `opacity` is 0 to 1."""

    label: str
    model: str
    other: str | None
    opacity: float


def draw_why(federation: Federation, reading: Reading) -> Why | None:
    """The controls; None where the image is to stand alone."""
    models = model_order(federation, list(reading.maps))
    if not models:
        return None
    hospitals = [model for model in models if model.startswith("local/")]
    can_differ = "global" in models and hospitals
    kinds = [NOTHING, HEATMAP, *([DIFFERENCE] if can_differ else [])]
    kind = st.radio("Where a model saw evidence", kinds, _start(kinds), key="why", horizontal=True)
    st.session_state["why_kept"] = kind
    if kind == HEATMAP:
        model, other = st.selectbox("Model", models, key="why_model", format_func=federation.model_name), None
    elif kind == DIFFERENCE and can_differ:
        model = "global"
        other = st.selectbox("Federated less", hospitals, key="why_other", format_func=federation.model_name)
    else:
        return None
    opacity = st.slider("Opacity of the colours", 0, 100, 60, 5, format="%d%%", key="why_opacity")
    return Why(reading.opinions[model].label, model, other, opacity / 100)


def _start(kinds: list[str]) -> int:
    """The next image is shown as the last one was: Streamlit forgets a choice where its control is not drawn.

    Only a new control starts anew; a start that moved with the choice would make the control another one each time.
    """
    if "why" not in st.session_state:
        st.session_state["why_start"] = st.session_state.get("why_kept", NOTHING)
    start = st.session_state["why_start"]
    return kinds.index(start) if start in kinds else 0


def lay_over(pixels: Pixels, reading: Reading, federation: Federation, why: Why, longest_px: int = LAID_PX) -> Pixels:
    """An image (h, w) or (h, w, 3) of any size with the map over it: uint8 RGB, aspect kept, without padding."""
    height, width = pixels.shape[:2]
    fitted = fit(pixels, longest_px)
    cells = cells_of(reading, federation, why.model, why.label)
    if why.other is None:
        laid = overlay(fitted, cells, why.opacity)
    else:
        laid = difference_overlay(fitted, cells, cells_of(reading, federation, why.other, why.label), why.opacity)
    return without_padding(laid, height, width)


def cells_of(reading: Reading, federation: Federation, model: str, label: str) -> Map:
    return reading.maps[model][federation.classes.index(label)]


def legend(federation: Federation, why: Why) -> str:
    """The scale as a strip of colours between words."""
    if why.other is None:
        ends = ("no evidence", "its strongest evidence")
    else:
        ends = (f"{federation.model_name(why.other)} more", "alike", f"{federation.model_name(why.model)} more")
    colours = ", ".join(legend_colours("evidence" if why.other is None else "difference"))
    words = "".join(f"<span>{escape(end)}</span>" for end in ends)
    return (
        f'<div class="legend"><div class="scale" aria-hidden="true" '
        f'style="background:linear-gradient(90deg, {colours})"></div><div class="ends">{words}</div></div>'
    )


def why_sentences(federation: Federation, reading: Reading, why: Why) -> str:
    """What the colours show, where they are strongest, and how coarse they are."""
    cells = cells_of(reading, federation, why.model, why.label)
    name = federation.model_name(why.model)
    height, width = cells.shape
    side = federation.model.image_size_px
    coarse = f"A map has only {height} x {width} cells, so it shows a region, not an outline."
    if SEES_PX.get(federation.model.architecture, side) >= side:
        coarse += " Each cell of this network sees most of the image, so even the region is a hint, no proof."
    if why.other is not None:
        other = federation.model_name(why.other)
        return f"Evidence for {why.label}: where {name} looks and {other} does not, and the other way round. {coarse}"
    if not cells.max() > 0:
        return f"{name} found no evidence for {why.label} anywhere in it, so there is nothing to colour. {coarse}"
    return f"Where {name} saw evidence for {why.label}, most of it {strongest_place(cells)}. {coarse}"


def strongest_place(cells: Map) -> str:
    """Where the highest cell lies, in words: "in the upper left"."""
    across, down = peak(cells, 300)
    column, row = (int(np.clip(value // 100, 0, 2)) for value in (across, down))
    if row == column == 1:
        return "in the centre"
    return f"in the {ROWS[row]} {COLUMNS[column]}"
