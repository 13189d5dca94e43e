"""Evaluation's view "ROC and PR": one class against the others, every model's curve, the chosen one's with its band."""

import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.config import Federation
from engine.results.bootstrap import Estimate
from engine.results.curves import GRID, Curve, OneVersusRest, one_versus_rest
from engine.results.run_folder import Run
from engine.results.words import count
from ui.answers import SELECT_PX, choose_hospital, choose_model, choose_split, load_answers
from ui.loaders import run_stamp
from ui.palette import model_colour, model_order
from ui.words import DASH

LEGEND_ROW_PX = 19
STILL = {"displayModeBar": False}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # never colour alone


def draw_roc(run: Run) -> None:
    """Raises RunError where the run holds no predictions."""
    federation = run.federation
    answer = st.container()
    with st.container(horizontal=True):
        split = choose_split(run, "roc_split")
        answers = load_answers(run, split)
        label = choose_class(federation, "roc_class")
        hospital = choose_hospital(answers, federation, "roc_hospital")
        model = choose_model(answers, federation, "roc_model")
    stamp = run_stamp(run, "predictions.parquet")
    curves = {
        one: found
        for one in model_order(federation, list(answers.logits))
        if (found := _curves(str(run.folder), stamp, split, hospital, one, label)) is not None
    }
    if model not in curves:
        answer.info(f"These images are all of '{label}', or none is, so there is no curve.", icon=":material/info:")
        return
    answer.markdown(roc_sentence(federation, curves[model], model, label))
    left, right = st.columns(2, gap="medium")
    left.markdown("**ROC**")
    left.plotly_chart(curve_figure(federation, curves, model, "roc"), config=STILL, key="roc")
    right.markdown("**Precision and recall**")
    right.plotly_chart(curve_figure(federation, curves, model, "pr"), config=STILL, key="pr")
    st.caption(
        f"{label} against all other classes, by the model's probability of it. The band is that of "
        f"{federation.model_name(model)}: 95%, point by point, by bootstrap over groups. The dotted line is a model "
        "that knows nothing. Precision falls where the class is rarer than here; an ROC curve does not."
    )
    st.table(roc_table(federation, curves), border="horizontal", hide_index=True)


def choose_class(federation: Federation, key: str) -> str:
    """Of two classes the disease first."""
    classes = list(federation.classes)
    first = classes.index(federation.positive_class) if federation.positive_class else 0
    return str(st.selectbox("Class", classes, index=first, key=key, width=SELECT_PX))


def roc_sentence(federation: Federation, found: OneVersusRest, model: str, label: str) -> str:
    return (
        f"**{federation.model_name(model)}** ranks a {label} image above one that is not with probability "
        f"**{_plain(found.auc)}** (area under the ROC curve), on {count(found.n_images, 'image')} of it and "
        f"{found.n_others:,} others; average precision {_plain(found.average_precision)}."
    )


def curve_figure(federation: Federation, curves: dict[str, OneVersusRest], model: str, kind: str) -> go.Figure:
    """`kind` is "roc" or "pr". The chosen model lies on top, with its band."""
    figure = go.Figure()
    shape = "hv" if kind == "roc" else "vh"
    chosen = curves[model]
    share = chosen.n_images / (chosen.n_images + chosen.n_others)
    line = {"dash": "dot", "color": "#8a8f94", "width": 1}
    figure.add_scatter(
        x=[0, 1], y=[0, 1] if kind == "roc" else [share, share], mode="lines", line=line, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    band: Curve = getattr(chosen, kind)
    edge = {"mode": "lines", "line": {"width": 0, "shape": shape}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=GRID, y=band.low, **edge)
    figure.add_scatter(x=GRID, y=band.high, fill="tonexty", fillcolor=_pale(model_colour(federation, model)), **edge)
    across, up = ("false alarms", "found") if kind == "roc" else ("found", "right of those called it")
    for place, (one, found) in enumerate(reversed(curves.items())):
        curve: Curve = getattr(found, kind)
        name = federation.model_name(one)
        figure.add_scatter(
            x=curve.x,
            y=curve.y,
            mode="lines",
            name=name,
            legendrank=len(curves) - place,
            line={
                "shape": shape,
                "color": model_colour(federation, one),
                "width": 3 if one == model else 1.5,
                "dash": DASHES[(len(curves) - 1 - place) % len(DASHES)],
            },
            hovertemplate=f"{name}<br>%{{y:.1%}} {up}<br>%{{x:.1%}} {across}<extra></extra>",
        )
    axis = {"range": [-0.01, 1.02], "tickformat": ".0%", "dtick": 0.2, "fixedrange": True}
    height = 340 + (30 + LEGEND_ROW_PX * len(curves) if kind == "roc" else 0)  # both plots are as high as each other
    titles = ("Others called it", "Found (sensitivity)") if kind == "roc" else ("Found (recall)", "Right (precision)")
    figure.update_layout(
        xaxis={"title": titles[0], **axis}, yaxis={"title": titles[1], **axis}, height=height, dragmode=False,
        margin={"l": 8, "r": 28, "t": 8, "b": 8}, showlegend=kind == "roc",
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "traceorder": "normal"},
    )  # fmt: skip
    return figure


def roc_table(federation: Federation, curves: dict[str, OneVersusRest]) -> pd.DataFrame:
    rows = [
        [federation.model_name(model), _plain(found.auc), _plain(found.average_precision)]
        for model, found in curves.items()
    ]
    return pd.DataFrame(rows, columns=["Model", "Area under ROC", "Average precision"])


def _plain(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return DASH
    if not math.isfinite(estimate.low) or estimate.low == estimate.high:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


@st.cache_data(max_entries=60, show_spinner="Drawing the curves")
def _curves(folder: str, stamp: str, split: str, hospital: str, model: str, label: str) -> OneVersusRest | None:
    return one_versus_rest(load_answers(Run(Path(folder)), split).at(hospital), model, label)
