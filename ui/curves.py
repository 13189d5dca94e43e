"""Training curves over rounds, from the table that `ui.loaders.rounds_table` makes. Pure: data in, figure out."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from engine.config import Federation
from engine.results.rounds import ALL
from ui.palette import FEDERATED, RUNS, hospital_colour, model_colour, model_order
from ui.words import trainers_text

METRICS = {"macro_f1": "Macro-F1", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy", "loss": "Loss"}
# Never colour alone: every line has its own marker too.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "pentagon")


def best_rows(rounds: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By model its chosen round, as training chose it: the last line that was the best so far."""
    whole = rounds[(rounds["hospital"] == ALL) & rounds["is_best_so_far"].astype(bool)]
    return {str(row["model"]): {str(key): value for key, value in row.items()} for row in whole.to_dict("records")}


def model_curves(rounds: pd.DataFrame, federation: Federation, metric: str) -> go.Figure:
    """Validation of every model over rounds, the gap between federated and pooled shaded, best rounds marked."""
    whole = rounds[rounds["hospital"] == ALL].dropna(subset=[metric])
    figure = go.Figure()
    _shade_gap(figure, whole, metric)
    best = best_rows(whole)
    models = model_order(federation, list(whole["model"].unique()))
    for place, model in enumerate(reversed(models)):  # drawn last lies on top: federated
        mine = whole[whole["model"] == model]
        name = federation.model_name(model)
        images = f"{name}'s own images" if model.startswith("local/") else f"images of {trainers_text(federation)}"
        rank = len(models) - place
        _add_line(figure, mine, metric, name, model_colour(federation, model), images, rank, thick=model == "global")
        if model in best:
            _mark_best(figure, best[model], metric, name, model_colour(federation, model), show_legend=rank == 1)
    return _lay_out(figure, whole[metric], metric, federation.training.rounds)


def hospital_curves(rounds: pd.DataFrame, federation: Federation, metric: str) -> go.Figure:
    """The federated model's validation at every hospital, and over all their images."""
    mine = rounds[rounds["model"] == "global"].dropna(subset=[metric])
    figure = go.Figure()
    for rank, hospital in enumerate((h.id for h in federation.hospital), start=2):
        rows = mine[mine["hospital"] == hospital]
        if len(rows):
            name = federation.display_name(hospital)
            _add_line(figure, rows, metric, name, hospital_colour(federation, hospital), f"images of {name}", rank)
    whole = mine[mine["hospital"] == ALL]
    everyone = trainers_text(federation)
    _add_line(
        figure, whole, metric, everyone[0].upper() + everyone[1:], FEDERATED, f"images of {everyone}", 1, thick=True
    )
    best = best_rows(whole)
    if "global" in best:
        _mark_best(figure, best["global"], metric, "Federated", FEDERATED, show_legend=True)
    return _lay_out(figure, mine[metric], metric, federation.training.rounds)


def run_curves(rounds: Mapping[str, pd.DataFrame], model: str, name: str, metric: str) -> go.Figure:
    """One model's validation in several runs, by run; each on its own run's images. Best rounds are marked."""
    figure = go.Figure()
    values, last = [], 1
    for rank, (run, table) in enumerate(rounds.items(), start=1):
        whole = table[(table["hospital"] == ALL) & (table["model"] == model)].dropna(subset=[metric])
        colour = RUNS[(rank - 1) % len(RUNS)]
        _add_line(figure, whole, metric, run, colour, f"{name}, the run's validation images", rank, thick=rank == 1)
        best = best_rows(whole).get(model)
        if best is not None:
            _mark_best(figure, best, metric, run, colour, show_legend=rank == 1)
        values.append(whole[metric])
        last = max(last, *whole["round"].astype(int)) if len(whole) else last
    return _lay_out(figure, pd.concat(values), metric, last)


def value_floor(values: pd.Series, metric: str) -> float:
    """Where the y axis begins: at 0, or at one half where every share lies above it. The axis says which."""
    if metric == "loss" or values.empty:
        return 0.0
    return 0.5 if values.min() >= 0.5 else 0.0


def _add_line(
    figure: go.Figure,
    rows: pd.DataFrame,
    metric: str,
    name: str,
    colour: str,
    images: str,
    rank: int,
    *,
    thick: bool = False,
) -> None:
    value = "%{y:.3f}" if metric == "loss" else "%{y:.1%}"
    figure.add_scatter(
        x=rows["round"],
        y=rows[metric],
        mode="lines+markers",
        name=name,
        legendrank=rank,
        line={"color": colour, "width": 3 if thick else 1.75},
        marker={"symbol": SYMBOLS[(rank - 1) % len(SYMBOLS)], "size": 6 if thick else 5, "color": colour},
        customdata=rows[["n_images"]].astype("Int64"),
        hovertemplate=f"Round %{{x}}<br>{name}<br>{images}, n = %{{customdata[0]:,}}<br>"
        f"{METRICS[metric]} {value}<extra></extra>",
    )


def _mark_best(
    figure: go.Figure, row: dict[str, Any], metric: str, name: str, colour: str, *, show_legend: bool
) -> None:
    figure.add_scatter(
        x=[row["round"]],
        y=[row[metric]],
        mode="markers",
        name="Chosen round (best validation macro-F1)",
        legendgroup="best",
        legendrank=900,
        showlegend=show_legend,
        marker={"symbol": "star", "size": 15, "color": colour, "line": {"width": 1, "color": "white"}},
        cliponaxis=False,
        hovertemplate=f"Round %{{x}}<br>chosen for {name}<extra></extra>",
    )


def _shade_gap(figure: go.Figure, whole: pd.DataFrame, metric: str) -> None:
    table = whole.pivot_table(index="round", columns="model", values=metric)
    if not {"global", "central"} <= set(table.columns):
        return
    both = table[["global", "central"]].dropna()
    nothing = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=both.index, y=both["central"], showlegend=False, **nothing)
    figure.add_scatter(
        x=both.index, y=both["global"], name="Gap, federated to pooled", legendrank=901, fill="tonexty",
        fillcolor="rgba(47,108,179,0.16)", **nothing,
    )  # fmt: skip


def _lay_out(figure: go.Figure, values: pd.Series, metric: str, n_rounds: int) -> go.Figure:
    floor = value_floor(values, metric)
    top = (float(values.max()) * 1.05 if len(values) else 1.0) if metric == "loss" else 1.02
    title = METRICS[metric] + (" (axis from 50%)" if floor else "")
    figure.update_layout(
        height=460,
        margin={"l": 8, "r": 8, "t": 28, "b": 8},  # the button that saves it stands above
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.1, "x": 0},
        xaxis=round_axis(n_rounds),
        yaxis={"title": title, "range": [floor, top], "tickformat": ".2f" if metric == "loss" else ".0%"},
    )
    return figure


def round_axis(n_rounds: int) -> dict[str, Any]:
    return {
        "tickprefix": "Round ",
        "showtickprefix": "first",
        "range": [0.5, n_rounds + 0.5],
        "tickformat": "d",
        "dtick": next((step for step in (1, 2, 5, 10, 20, 50) if n_rounds <= 12 * step), 100),
    }
