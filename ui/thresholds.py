"""Evaluation's view "Threshold": what is found, missed and falsely raised from a probability on."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.results.answers import Answers
from engine.results.run_folder import Run
from engine.results.thresholds import AtThreshold, at_threshold, over_thresholds
from engine.results.words import count, percent
from ui.answers import choose_hospital, choose_model, choose_split, load_answers
from ui.palette import FEDERATED, HOSPITALS
from ui.roc import STILL, choose_class
from ui.words import estimate_text

JUDGE = {
    "validation": "Choose a threshold here, then judge it on test images: a threshold that was chosen by the images it "
    "is judged on flatters itself.",
    "test": "To choose a threshold by these images and report what it does on them flatters it: choose it on "
    "validation images, and look here once.",
    "external": "These images were never trained on. Choose a threshold on validation images, and look here once.",
}


def draw_thresholds(run: Run) -> None:
    """Raises RunError where the run holds no predictions."""
    federation = run.federation
    with st.container(horizontal=True):
        split = choose_split(run, "threshold_split", first="validation")
        answers = load_answers(run, split)
        label = choose_class(federation, "threshold_class")
        model = choose_model(answers, federation, "threshold_model")
        hospital = choose_hospital(answers, federation, "threshold_hospital")
    _draw_slider(answers.at(hospital), model, label, split)


@st.fragment
def _draw_slider(answers: Answers, model: str, label: str, split: str) -> None:
    threshold = st.slider(
        f"Call an image {label} from this probability on", 0.0, 1.0, 0.5, 0.01, key="threshold", format="percent"
    )
    found = at_threshold(answers, model, label, threshold)
    st.markdown(threshold_sentence(found, label, threshold))
    st.warning(JUDGE[split], icon=":material/warning:")
    left, right = st.columns([1, 1], gap="medium")
    left.table(threshold_table(found, label), border="horizontal", hide_index=True)
    right.plotly_chart(threshold_figure(answers, model, label, threshold), config=STILL, key="threshold_curve")
    share = (found.found + found.missed) / found.n_images
    st.caption(
        f"{percent(share)} of these images are {label}; predictive values and false alarms per 100 images hold for "
        "that share alone. Probabilities as trained: a published version has a temperature on top, so its thresholds "
        "differ. "
        "Other classes are not looked at: an image may reach the threshold and still be likelier another class. In "
        "brackets: 95% intervals by bootstrap over groups; Wilson's, by groups, where none or all are right."
    )


def threshold_sentence(found: AtThreshold, label: str, threshold: float) -> str:
    cases, others = found.found + found.missed, found.false_alarms + found.cleared
    return (
        f"From {percent(threshold, 0)} on, **{found.found:,} of {cases:,}** {label} images are found and "
        f"**{found.missed:,}** missed, with **{count(found.false_alarms, 'false alarm')}** on {others:,} other images."
    )


def threshold_table(found: AtThreshold, label: str) -> pd.DataFrame:
    cases, others = found.found + found.missed, found.false_alarms + found.cleared
    called, cleared = found.found + found.false_alarms, found.missed + found.cleared
    low, high = (cases * (1 - end) for end in (found.sensitivity.high, found.sensitivity.low))
    missed = f"{found.missed:,} ({low:.0f}-{high:.0f})" if cases else "\u2013"
    mean, fewest, most = (100 * value for value in found.false_alarms_per_image)
    alarms = f"{found.false_alarms:,} of {found.n_images:,}"
    rows = [
        ["Sensitivity", estimate_text(found.sensitivity), f"{found.found:,} of {cases:,} {label}"],
        ["Missed cases", missed, f"of {cases:,} {label}"],
        ["Specificity", estimate_text(found.specificity), f"{found.cleared:,} of {others:,} others"],
        ["False alarms per 100 images", f"{mean:.1f} ({fewest:.1f}-{most:.1f})", alarms],
        ["Right when it calls it (PPV)", estimate_text(found.ppv), f"{found.found:,} of {called:,} called it"],
        ["Right when it does not (NPV)", estimate_text(found.npv), f"{found.cleared:,} of {cleared:,} not called it"],
    ]
    return pd.DataFrame(rows, columns=["", "Value (95%)", "Images"])


def threshold_figure(answers: Answers, model: str, label: str, threshold: float) -> go.Figure:
    """Sensitivity and specificity over all thresholds, the chosen one marked."""
    grid = np.linspace(0, 1, 101)
    figure = go.Figure()
    both = over_thresholds(answers, model, label, grid)
    looks = ({"color": FEDERATED, "dash": "solid", "width": 2.5}, {"color": HOSPITALS[3], "dash": "dash", "width": 2})
    for name, values, look in zip(("Sensitivity", "Specificity"), both, looks, strict=True):
        figure.add_scatter(
            x=grid, y=values, mode="lines", name=name, line=look,
            hovertemplate=f"{name} %{{y:.1%}} from %{{x:.0%}} on<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=threshold, line={"color": "#8a8f94", "width": 2})
    axis = {"range": [-0.01, 1.02], "tickformat": ".0%", "dtick": 0.2, "fixedrange": True}
    figure.update_layout(
        xaxis={"title": "Threshold", **axis}, yaxis=axis, height=320, margin={"l": 8, "r": 28, "t": 8, "b": 8},
        dragmode=False, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return figure
