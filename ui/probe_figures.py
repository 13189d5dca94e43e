"""What encoders are worth over the share of labels, and where they put images. Pure: data in, figure out."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from engine.config import Federation
from engine.results.probes import METHODS, Embedding, encoder_name
from ui.curves import SYMBOLS, round_axis, value_floor
from ui.palette import STARTED, UNTRAINED, hospital_colour, model_colour, model_order

DASHES = {"linear": "solid", "neighbours": "dot", "finetuned": "dash"}
OTHERS = {"start": STARTED, "random": UNTRAINED}
SHARE_DASHES = ("solid", "dash", "dot")
APART = 1.06  # a factor on the axis of labels between neighbouring encoders


def encoder_order(federation: Federation, encoders: list[str]) -> list[str]:
    """The run's models as everywhere, then where it began, then random."""
    others = [encoder for encoder in OTHERS if encoder in encoders]
    return [*model_order(federation, [one for one in encoders if one not in others]), *others]


def efficiency_figure(rows: pd.DataFrame, federation: Federation, metric: str, title: str) -> go.Figure:
    """One line for each encoder and method, with intervals; the axis of labels is logarithmic."""
    figure = go.Figure()
    encoders = encoder_order(federation, list(rows["encoder"].unique()))
    for place, encoder in enumerate(encoders):
        colour = OTHERS.get(encoder) or model_colour(federation, encoder)
        for method in METHODS:
            mine = rows[(rows["encoder"] == encoder) & (rows["method"] == method)].sort_values("labels")
            if mine.empty:
                continue
            name = f"{encoder_name(federation, encoder, method)}, {METHODS[method]}"
            scratch = (encoder, method) == ("random", "finetuned")
            figure.add_scatter(
                x=mine["labels"] * APART ** (place - (len(encoders) - 1) / 2),
                y=mine[metric],
                error_y=_interval_bars(mine, metric),
                mode="lines+markers",
                name="From scratch" if scratch else name,
                line={"color": colour, "width": 3 if encoder == "global" else 1.75, "dash": DASHES[method]},
                marker={"symbol": "star" if scratch else SYMBOLS[place % len(SYMBOLS)], "size": 8, "color": colour},
                customdata=mine[["n_train", "n_labels", f"{metric}_low", f"{metric}_high"]],
                hovertemplate=f"{name}<br>labels of %{{customdata[1]:,}} of %{{customdata[0]:,}} images<br>{title} "
                "%{y:.1%} (%{customdata[2]:.1%} to %{customdata[3]:.1%})<extra></extra>",
            )
    shares = sorted(rows["labels"].unique())
    floor = value_floor(rows[f"{metric}_low"], metric) if len(rows) else 0.0
    figure.update_layout(
        height=460,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0},
        xaxis={
            "type": "log", "title": "Share of the training labels", "tickvals": shares,
            "ticktext": [f"{100 * share:g}%" for share in shares],
        },
        yaxis={"title": title + (" (axis from 50%)" if floor else ""), "range": [floor, 1.02], "tickformat": ".0%"},
    )  # fmt: skip
    return figure


def rounds_figure(rows: pd.DataFrame, federation: Federation, metric: str, title: str) -> go.Figure:
    """The federated encoder's linear probe over rounds, one line for each share of labels, with intervals. Round 0 is
    the encoder as the run began. Columns as `ui.probed.round_rows` has them."""
    figure = go.Figure()
    shares = sorted(rows["labels"].unique(), reverse=True)
    for place, share in enumerate(shares):
        mine = rows[rows["labels"] == share].sort_values("round")
        name = f"{100 * share:g}% of the labels ({int(mine['n_labels'].iloc[0]):,} images)"
        figure.add_scatter(
            x=mine["round"],
            y=mine[metric],
            error_y=_interval_bars(mine, metric),
            mode="lines+markers",
            name=name,
            line={"color": model_colour(federation, "global"), "width": 2.5, "dash": SHARE_DASHES[place % 3]},
            marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 7},
            customdata=mine[[f"{metric}_low", f"{metric}_high"]],
            hovertemplate=f"Round %{{x}}<br>{name}<br>{title} %{{y:.1%}} (%{{customdata[0]:.1%}} to "
            "%{customdata[1]:.1%})<extra></extra>",
        )
    floor = value_floor(rows[f"{metric}_low"], metric)
    figure.update_layout(
        height=380,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        hovermode="closest",
        showlegend=True,
        legend={"orientation": "h", "yanchor": "top", "y": -0.12, "x": 0},
        xaxis={**round_axis(federation.training.rounds), "range": [-0.3, federation.training.rounds + 0.3]},
        yaxis={"title": title + (" (axis from 50%)" if floor else ""), "range": [floor, 1.02], "tickformat": ".0%"},
    )
    return figure


def embedding_figure(embedding: Embedding, federation: Federation, encoder: str, *, by_class: bool) -> go.Figure:
    """Colour and marker both say the class, or both the hospital; classes take the theme's colours."""
    axes = embedding.encoders[encoder]
    frame = pd.DataFrame(
        {"x": axes.x, "y": axes.y, "label": embedding.labels,
         "hospital": [federation.display_name(hospital) for hospital in embedding.hospitals]}
    )  # fmt: skip
    groups: dict[str, str | None] = dict.fromkeys(federation.classes)
    if not by_class:
        ids = [hospital.id for hospital in federation.hospital]
        groups = {federation.display_name(one): hospital_colour(federation, one) for one in ids}
    figure = go.Figure()
    for place, (name, colour) in enumerate(groups.items()):
        mine = frame[frame["label" if by_class else "hospital"] == name]
        if mine.empty:
            continue
        marker = {"size": 7, "opacity": 0.75, "symbol": SYMBOLS[place % len(SYMBOLS)]}
        figure.add_scatter(
            x=mine["x"],
            y=mine["y"],
            mode="markers",
            name=name,
            marker=marker if colour is None else {**marker, "color": colour},
            customdata=mine[["label", "hospital"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    shares = [f"{part:.0%} of the variance" for part in axes.explained]
    figure.update_layout(
        height=480,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0},
        xaxis={"title": f"First component, {shares[0]}", "zeroline": False},
        yaxis={"title": f"Second component, {shares[1]}", "zeroline": False},
    )
    return figure


def _interval_bars(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    return {
        "array": rows[f"{metric}_high"] - rows[metric],
        "arrayminus": rows[metric] - rows[f"{metric}_low"],
        "thickness": 1,
        "width": 3,
    }
