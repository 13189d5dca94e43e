"""Evaluation's view "Calibration": how sure a model is against how often it is right, hospital by hospital."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.config import Federation
from engine.results.answers import Answers
from engine.results.bootstrap import Estimate
from engine.results.metrics import ECE_BINS
from engine.results.reliability import Bin, calibration_error, reliability_bins
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import percent
from ui.answers import choose_hospital, choose_model, choose_split, hospitals_in, load_answers
from ui.forest import GREY, Series, forest_figure
from ui.loaders import run_stamp
from ui.matrices import column_name
from ui.palette import hospital_colour
from ui.words import estimate_text

STILL = {"displayModeBar": False}


class Gap(NamedTuple):
    """At a hospital, or at "all": the calibration error, how sure the model is on average, how often it is right."""

    hospital: str
    n_images: int
    error: Estimate
    sure: float
    right: float


def draw_calibration(run: Run) -> None:
    """Raises RunError where the run holds no predictions."""
    federation = run.federation
    answer = st.container()
    with st.container(horizontal=True):
        split = choose_split(run, "calibration_split")
        answers = load_answers(run, split)
        model = choose_model(answers, federation, "calibration_model")
    stamp = run_stamp(run, "predictions.parquet")
    errors = _errors(str(run.folder), stamp, split, model)
    answer.markdown(calibration_sentence(federation, errors, model))
    st.plotly_chart(errors_figure(federation, errors), config=STILL, key="calibration_errors")
    st.caption(
        f"Mean gap between how sure it is and how often it is right ({ECE_BINS} bins); 95% intervals by bootstrap over "
        "groups. Of few images the gap looks larger than it is, so compare hospitals with an eye on n. As trained: "
        "a published version has a temperature on top, and Scores shows what that is worth."
    )
    hospital = choose_hospital(answers, federation, "calibration_hospital")
    bins = _bins(str(run.folder), stamp, split, model, hospital)
    colour = GREY if hospital == ALL else hospital_colour(federation, hospital)
    left, right = st.columns([3, 2], gap="medium")
    left.plotly_chart(reliability_figure(bins, colour), config=STILL, key="reliability_by_hospital")
    right.table(bins_table(bins), border="horizontal", hide_index=True)
    st.caption(
        "On the diagonal a model is as often right as it says; below it, it says too much. Circles grow with images, "
        "bars are 95% intervals; where all images of a bin are right, or none, there is no bar."
    )


def calibration_sentence(federation: Federation, errors: list[Gap], model: str) -> str:
    """The gap over all, where it is widest, and to which side it leans."""
    _, n_images, whole, sure, right = errors[0]
    leans = "too sure" if sure > right else "not sure enough"
    said = (
        f"**{federation.model_name(model)}** is on average {percent(sure)} sure and {percent(right)} right on these "
        f"{n_images:,} images, so rather {leans}; its calibration error is **{estimate_text(whole)}**."
    )
    if len(errors) > 2:
        worst = max(errors[1:], key=lambda one: one.error.value)
        name = column_name(federation, worst.hospital)
        said += f" It is widest at **{name}**: {estimate_text(worst.error)}, n = {worst.n_images:,}."
    return said


def errors_figure(federation: Federation, errors: list[Gap]) -> go.Figure:
    names = [column_name(federation, one.hospital) for one in errors]
    colours = [GREY if one.hospital == ALL else hospital_colour(federation, one.hospital) for one in errors]
    texts = [
        f"{name}, n = {one.n_images:,}<br>{estimate_text(one.error)}<br>{percent(one.sure)} sure, "
        f"{percent(one.right)} right"
        for name, one in zip(names, errors, strict=True)
    ]
    one = Series("Calibration error", "circle", [one.error for one in errors], colours, texts)
    figure = forest_figure(names, [one], "Calibration error, lower is better")
    figure.update_xaxes(rangemode="tozero")
    return figure


def reliability_figure(bins: list[Bin], colour: str) -> go.Figure:
    figure = go.Figure(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": GREY}, hoverinfo="skip", showlegend=False
        )
    )
    most = max(one.n_images for one in bins)
    figure.add_scatter(
        x=[one.confidence for one in bins],
        y=[one.right.value for one in bins],
        error_y={
            "array": [one.right.high - one.right.value for one in bins],
            "arrayminus": [one.right.value - one.right.low for one in bins],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        showlegend=False,
        marker={"color": colour, "size": [7 + 15 * (one.n_images / most) ** 0.5 for one in bins]},
        customdata=[[one.n_images, estimate_text(one.right)] for one in bins],
        hovertemplate="says %{x:.1%}, right %{customdata[1]}<br>n = %{customdata[0]:,}<extra></extra>",
    )
    axis = {"range": [0, 1.04], "tickformat": ".0%", "dtick": 0.2, "fixedrange": True}
    figure.update_layout(
        xaxis={"title": "How sure it is", **axis}, yaxis={"title": "How often it is right", **axis},
        height=360, margin={"l": 8, "r": 8, "t": 8, "b": 8}, dragmode=False,
    )  # fmt: skip
    return figure


def bins_table(bins: list[Bin]) -> pd.DataFrame:
    rows = [[percent(one.confidence), estimate_text(one.right), f"{one.n_images:,}"] for one in bins]
    return pd.DataFrame(rows, columns=["Says", "Is right", "n"])


@st.cache_data(max_entries=40, show_spinner="Measuring calibration")
def _errors(folder: str, stamp: str, split: str, model: str) -> list[Gap]:
    run = Run(Path(folder))
    answers = load_answers(run, split)
    return [_at(answers, hospital, model) for hospital in hospitals_in(answers, run.federation)]


def _at(answers: Answers, hospital: str, model: str) -> Gap:
    mine = answers.at(hospital)
    probabilities = mine.probabilities(model)
    right = float((probabilities.argmax(axis=1) == mine.labels).mean())
    sure = float(probabilities.max(axis=1).mean())
    return Gap(hospital, len(mine), calibration_error(mine, model), sure, right)


@st.cache_data(max_entries=40, show_spinner=False)
def _bins(folder: str, stamp: str, split: str, model: str, hospital: str) -> list[Bin]:
    return reliability_bins(load_answers(Run(Path(folder)), split).at(hospital), model)
