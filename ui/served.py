"""What a run's published version promises of its answers: calibration, prediction sets, refusals, on test images."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.metrics import ECE_BINS
from engine.results.published import PublishedVersion, models_folder
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import count, percent
from ui.lineage import came_from, label, versions_by_run
from ui.loaders import load_calibration
from ui.matrices import column_name
from ui.palette import model_colour

HEIGHT_PX, WIDTH_PX = 340, 480


def draw_served(run: Run, model: str) -> None:
    """For the newest version made from this run; nothing where there is none."""
    versions = [version for version in versions_by_run(models_folder())[0].get(run.name, []) if came_from(version, run)]
    if not versions:
        return
    version = versions[-1]
    st.subheader(f"As served: {label(version)}", anchor=False)
    try:
        calibration = _calibration(version)
    except ConsiliumError as error:
        st.error(str(error), icon=":material/error:")
        return
    if calibration is None:
        st.caption("This version was published without a calibration: its probabilities are raw.")
        return
    measured = calibration["measured"]
    if ALL not in measured["refused"] or model not in measured["sets"]:
        st.caption("The run has no test images for this model, so its calibration is not measured.")
        return
    federation = run.federation
    st.markdown(served_sentence(federation, calibration, model))
    with st.container(width=WIDTH_PX):
        st.plotly_chart(
            reliability_figure(measured["calibration"][model][ALL], model_colour(federation, model)),
            config={"displayModeBar": False}, key="reliability",
        )  # fmt: skip
    st.caption(f"On the diagonal a model is as often right as it says. Circles grow with images, {ECE_BINS} bins.")
    st.table(served_table(federation, calibration, model), border="horizontal", hide_index=True)
    st.caption(served_caption(federation, calibration, model))


def served_sentence(federation: Federation, calibration: dict[str, Any], model: str) -> str:
    """What a reader may expect of the chosen model's answers."""
    measured = calibration["measured"]
    sets, refused = measured["sets"][model][ALL], measured["refused"][ALL]
    error = measured["calibration"][model][ALL]
    return (
        f"**{federation.model_name(model)}**, on {count(sets['n_images'], 'test image')}: the gap between how sure it "
        f"is and how often it is right is **{percent(error['after']['ece'])}** ({ends(error['after']['interval'])}), "
        f"before calibration {percent(error['before']['ece'])}. Its "
        f"{percent(calibration['coverage'], 0)} prediction sets hold the true class on **{percent(sets['coverage'])}** "
        f"({ends(sets['interval'])}) and name {sets['mean_size']:.2f} classes on average. The gate refuses "
        f"{percent(refused['share'])} ({ends(refused['interval'])}) of these images."
    )


def served_table(federation: Federation, calibration: dict[str, Any], model: str) -> pd.DataFrame:
    """Calibration error, coverage, set size and refusals by hospital, then coverage and size by class."""
    measured = calibration["measured"]
    rows = []
    for place, cell in measured["calibration"][model].items():
        sets, refused = measured["sets"][model][place], measured["refused"][place]
        error = f"{percent(cell['after']['ece'])} ({ends(cell['after']['interval'])})"
        rows.append(
            [
                column_name(federation, place),
                percent(cell["before"]["ece"]),
                error,
                *_sets(sets),
                percent(refused["share"]),
            ]
        )
    for label_, sets in measured["sets_by_class"][model].items():
        rows.append([f"True class {label_}", "\u2013", "\u2013", *_sets(sets), "\u2013"])
    return pd.DataFrame(
        rows,
        columns=[
            "Images of",
            "Error before",
            "Calibration error",
            "Sets hold the truth",
            "Classes in a set",
            "n",
            "Refused",
        ],
    )


def served_caption(federation: Federation, calibration: dict[str, Any], model: str) -> str:
    fitted = calibration["models"][model]
    whose = "all hospitals'"
    if model.startswith("local/"):
        whose = f"{federation.display_name(model.removeprefix('local/'))}'s own"
    own = " Its sets are promised for that hospital's kind of image alone." if model.startswith("local/") else ""
    return (
        f"Temperature {fitted['temperature']:.2f} and set threshold {fitted['threshold']:.3f}, fitted on {whose} "
        f"{count(fitted['n_images'], 'validation image')}, which chose the round too.{own} In brackets: 95% intervals."
    )


def reliability_figure(cell: dict[str, Any], colour: str) -> go.Figure:
    """Accuracy over confidence, before and after calibration, from `measured["calibration"][model][place]`."""
    figure = go.Figure(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"dash": "dot", "color": "#8a8f94"},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    most = max(n for n, _, _ in cell["after"]["bins"])
    for when, name, symbol, shade in (
        ("before", "Before calibration", "circle-open", "#8a8f94"),
        ("after", "After", "circle", colour),
    ):
        bins = cell[when]["bins"]
        figure.add_trace(
            go.Scatter(
                x=[confidence for _, confidence, _ in bins],
                y=[accuracy for _, _, accuracy in bins],
                mode="markers+lines",
                name=name,
                line={"color": shade, "width": 1},
                marker={"symbol": symbol, "color": shade, "size": [7 + 15 * (n / most) ** 0.5 for n, _, _ in bins]},
                customdata=[n for n, _, _ in bins],
                hovertemplate=f"{name}<br>says %{{x:.1%}}, right %{{y:.1%}}<br>n = %{{customdata:,}}<extra></extra>",
            )
        )
    axis = {"range": [0, 1.04], "tickformat": ".0%", "dtick": 0.2}
    figure.update_layout(
        xaxis={"title": "How sure it is", **axis}, yaxis={"title": "How often it is right", **axis},
        height=HEIGHT_PX, margin={"l": 8, "r": 8, "t": 8, "b": 8}, legend={"orientation": "h", "y": 1.12, "x": 0},
    )  # fmt: skip
    return figure


def ends(interval: list[float]) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"


def _sets(cell: dict[str, Any]) -> list[str]:
    size = "-".join(f"{end:.2f}" for end in cell["size_interval"])
    return [
        f"{percent(cell['coverage'])} ({ends(cell['interval'])})",
        f"{cell['mean_size']:.2f} ({size})",
        f"{cell['n_images']:,}",
    ]


def _calibration(version: PublishedVersion) -> dict[str, Any] | None:
    return load_calibration(str(version.folder), version.manifest_sha256)
