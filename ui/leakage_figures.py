"""What leaked, drawn: the loss attack's AUC by hospital, and how like each image what came back is. Pure."""

import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from engine.config import Federation
from engine.results.leakage import Inversion, Membership
from engine.results.rounds import ALL
from engine.results.words import count
from ui.matrices import column_name
from ui.palette import FEDERATED, POOLED, UNKNOWN, UNTRAINED, hospital_colour

ROW_PX, FRAME_PX, NAME_LETTERS = 62, 110, 20
KINDS = ("Federated", "Hospital alone", "Pooled", "Control: saw neither")
SYMBOLS = {
    "Federated": "circle",
    "Hospital alone": "square",
    "Pooled": "diamond",
    "Control: saw neither": "x-thin-open",
}
# Of a hospital alone the mark has the hospital's own colour, which no one bar can have.
BARS = {"Federated": FEDERATED, "Hospital alone": UNKNOWN, "Pooled": POOLED, "Control: saw neither": UNTRAINED}


def membership_figure(rows: Sequence[Membership], federation: Federation) -> go.Figure:
    """A line for the images of each hospital, a mark with its interval for each model; a coin's 0.5 is drawn."""
    order = [ALL, *(hospital.id for hospital in federation.hospital)]
    places = [hospital for hospital in order if any(row.hospital == hospital for row in rows)]
    figure = go.Figure()
    for rank, kind in enumerate(KINDS):
        mine = [row for row in rows if _kind(row) == kind]
        if not mine:
            continue
        figure.add_scatter(
            x=[row.auc.value for row in mine],
            y=[places.index(row.hospital) + (rank - 1.5) * 0.17 for row in mine],
            error_x={
                "array": [row.auc.high - row.auc.value for row in mine],
                "arrayminus": [row.auc.value - row.auc.low for row in mine],
                "thickness": 1.5, "width": 0, "color": BARS[kind],
            },
            mode="markers",
            name=kind,
            marker={
                "symbol": SYMBOLS[kind], "size": 9, "color": [_colour(row, kind, federation) for row in mine],
                "line": {"width": 2 if kind == KINDS[3] else 0, "color": UNTRAINED},
            },
            customdata=[
                [federation.model_name(row.model), column_name(federation, row.hospital), row.auc.low, row.auc.high,
                 row.n_members, row.n_others]
                for row in mine
            ],
            hovertemplate="%{customdata[0]}<br>on images of %{customdata[1]}<br>AUC %{x:.3f} (%{customdata[2]:.3f} to "
            "%{customdata[3]:.3f})<br>%{customdata[4]:,} trained on, %{customdata[5]:,} others<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0.5, line={"dash": "dot", "color": UNKNOWN})
    lowest = min((row.auc.low for row in rows), default=0.5)
    return _lay_out(
        figure,
        [column_name(federation, place) for place in places],
        {"title": "AUC (dotted: a coin)", "range": [min(0.4, lowest - 0.02), 1.02], "tickformat": ".1f", "dtick": 0.1},
    )


def inversion_figure(inversion: Inversion) -> go.Figure:
    """A line for each attack: a dot for each image, their mean, and what guesses reach on the same images."""
    figure = go.Figure()
    images = [(place, image) for place, attack in enumerate(inversion.attacks) for image in attack.images]
    guesses = [
        sum(max(i.ssim_mean, -1.0 if i.ssim_other is None else i.ssim_other) for i in attack.images)
        / len(attack.images)
        for attack in inversion.attacks
    ]
    means = [attack.mean("ssim") for attack in inversion.attacks]
    tall = {"symbol": "line-ns-open", "size": 20}
    figure.add_scatter(
        x=[image.ssim for _, image in images], y=[place for place, _ in images], mode="markers", name="One image",
        marker={"size": 8, "color": FEDERATED, "opacity": 0.55},
        hovertemplate="similarity %{x:.2f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=means, y=list(range(len(means))), mode="markers", name="Mean", hovertemplate="mean %{x:.2f}<extra></extra>",
        marker={**tall, "color": FEDERATED, "line": {"width": 3}},
    )  # fmt: skip
    figure.add_scatter(
        x=guesses, y=list(range(len(guesses))), mode="markers", name="A guess, mean",
        hovertemplate="a guess %{x:.2f}<extra></extra>", marker={**tall, "color": POOLED, "line": {"width": 3}},
    )  # fmt: skip
    names = [f"{inversion.name(attack.variant)}, {count(attack.batch_size, 'image')}" for attack in inversion.attacks]
    lowest = min([0.0, *(image.ssim for _, image in images)])
    return _lay_out(figure, names, {"title": "Structural similarity", "range": [lowest - 0.03, 1.03], "dtick": 0.2})


def _kind(row: Membership) -> str:
    if not row.saw:
        return KINDS[3]
    return {"global": KINDS[0], "personal": KINDS[0], "central": KINDS[2]}.get(row.model.split("/")[0], KINDS[1])


def _colour(row: Membership, kind: str, federation: Federation) -> str:
    if kind == "Hospital alone":
        return hospital_colour(federation, row.hospital)
    return BARS[kind]


def _lay_out(figure: go.Figure, names: Sequence[str], x_axis: dict[str, Any]) -> go.Figure:
    ticks = ["<br>".join(textwrap.wrap(name, NAME_LETTERS, break_long_words=False)) for name in names]
    figure.update_layout(
        height=FRAME_PX + ROW_PX * len(names),
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        dragmode=False,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.04, "x": 0},
        xaxis={**x_axis, "fixedrange": True},
        yaxis={
            "tickvals": list(range(len(names))), "ticktext": ticks, "range": [len(names) - 0.5, -0.5],
            "zeroline": False, "fixedrange": True, "automargin": True, "showgrid": False,
        },
    )  # fmt: skip
    return figure
