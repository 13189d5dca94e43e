"""Heatmaps of Evaluation: every model at every hospital, and one confusion matrix. Pure: data in, figure out."""

import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

from engine.config import EXTERNAL, Federation
from engine.results.rounds import ALL
from engine.results.words import percent
from ui.palette import model_order
from ui.words import Errors, score_text

SCORES = {
    "macro_f1": "Macro-F1",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "ece": "Calibration error",
}
Cells = dict[str, dict[str, Any]]  # {model: {hospital id or "all": metrics}}


def hospital_columns(cells: Cells, federation: Federation) -> list[str]:
    """ "all" first, then the hospitals that hold images of this split; of the external set that alone."""
    present = {hospital for row in cells.values() for hospital in row}
    if EXTERNAL in present:
        return [EXTERNAL]
    return [hospital for hospital in [ALL, *(h.id for h in federation.hospital)] if hospital in present]


def column_name(federation: Federation, hospital: str) -> str:
    return "All hospitals" if hospital == ALL else federation.display_name(hospital)


def images_in(cells: Cells, hospital: str) -> int:
    return next((int(row[hospital]["n_images"]) for row in cells.values() if hospital in row), 0)


def score_matrix(cells: Cells, federation: Federation, metric: str, *, dark: bool = False) -> go.Figure:
    """Rows are models, columns the hospitals whose images they are scored on; the best of a column stands in bold."""
    models = model_order(federation, list(cells))
    columns = hospital_columns(cells, federation)
    values = np.array(
        [[cells[model].get(hospital, {}).get(metric, np.nan) for hospital in columns] for model in models]
    )
    lower_is_better = metric == "ece"
    best = np.nanmin(values, axis=0) if lower_is_better else np.nanmax(values, axis=0)
    text = [[_cell(value, is_best=value == top) for value, top in zip(row, best, strict=True)] for row in values]
    top_value = max(0.5, float(np.nanmax(values))) if lower_is_better else 1.0
    names = [federation.model_name(model) for model in models]
    heads = [column_name(federation, hospital) for hospital in columns]
    counts = [images_in(cells, hospital) for hospital in columns]
    hover = [
        [
            f"{name}<br>on images of {head}, n = {n:,}<br>{_hover_score(cells[model].get(column), metric)}"
            for column, head, n in zip(columns, heads, counts, strict=True)
        ]
        for model, name in zip(models, names, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[f"{wrap_name(head)}<br>n = {n:,}" for head, n in zip(heads, counts, strict=True)],
            y=[wrap_name(name) for name in names],
            customdata=hover,
            zmin=0,
            zmax=top_value,
            reversescale=lower_is_better,
            showscale=False,
            xgap=3,
            ygap=3,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    shades = 1 - values / top_value if lower_is_better else values
    _write_cells(figure, text, shades, dark=dark)
    return _lay_out(figure, height=110 + 58 * len(models))


def confusion_figure(matrix: list[list[int]], classes: list[str], *, dark: bool = False) -> go.Figure:
    """Colour is the share of the true class (row), the cell says the count. A class without images stays empty."""
    counts = np.asarray(matrix, float)
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.full_like(counts, np.nan), where=rows > 0)
    text = [[f"{int(n)}" if total else "" for n in row] for row, total in zip(counts, rows[:, 0], strict=True)]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=classes,
            y=[f"{label}<br>n = {int(n):,}" for label, n in zip(classes, rows[:, 0], strict=True)],
            text=text,
            customdata=np.tile(np.array(classes, object)[:, None], (1, len(classes))),
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=3,
            ygap=3,
            hovertemplate="truly %{customdata}, called %{x}<br>%{text} images, %{z:.1%} of the class<extra></extra>",
        )
    )
    _write_cells(figure, text, shares, dark=dark)
    _lay_out(figure, height=140 + 56 * len(classes))
    figure.update_xaxes(title="Called", tickangle=-30)
    figure.update_yaxes(title="Truly")
    return figure


def answer_sentence(cells: Cells, federation: Federation, metric: str, split: str) -> str:
    """Federated against the best hospital alone and against pooled, on all images of a split, in one sentence.

    Of two classes, what the leading model misses and what it raises falsely stand before it.
    """
    better = min if metric == "ece" else max
    scored = {model: row[ALL] for model, row in cells.items() if ALL in row}
    if not scored:
        return f"This run has no {split} images."
    n_images = next(iter(scored.values()))["n_images"]
    parts = []
    if "global" in scored:
        parts.append(f"the federated model reaches **{score_text(scored['global'], metric)}**")
    local = {model: values[metric] for model, values in scored.items() if model.startswith("local/")}
    if local:
        top = better(local, key=lambda model: local[model])
        one = "the hospital alone" if len(local) == 1 else f"the best of {len(local)} hospitals alone"
        parts.append(f"{one} ({federation.model_name(top)}) {score_text(scored[top], metric)}")
    if "central" in scored:
        parts.append(f"pooling all images {score_text(scored['central'], metric)}")
    hint = " (lower is better)" if metric == "ece" else ""
    name = SCORES[metric] if metric == "macro_f1" else SCORES[metric].lower()
    errors = _errors_sentence(federation, *next(iter(scored.items())))
    whose = f" ({federation.display_name(EXTERNAL)})" if split == EXTERNAL else ""
    return f"{errors}On all {n_images:,} {split} images{whose}, by {name}{hint}: {', '.join(parts)}."


def _errors_sentence(federation: Federation, model: str, values: dict[str, Any]) -> str:
    """Missed cases and false alarms of a model for two classes; empty for more."""
    positive = federation.positive_class
    if positive is None or values.get("sensitivity") is None or values.get("specificity") is None:
        return ""
    cases = values["per_class"][positive]["support"]
    errors = Errors(positive, values["missed"], cases, values["false_alarms"], values["n_images"] - cases)
    return f"{errors.sentence(federation.model_name(model))} "


def matrix_caption(cells: Cells, split: str) -> str:
    n_images = images_in(cells, ALL)
    told = {
        "validation": " Validation images chose the round of each model, so these figures flatter.",
        "external": " No model was trained on them, and none was chosen by them.",
    }
    of_two = any("sensitivity" in cell for row in cells.values() for cell in row.values())
    errors = " Intervals of sensitivity and specificity are Wilson's, which take every image for itself."
    return (
        "Rows are models, columns the images they are scored on; the best of each column is bold; a cell's hover text "
        f"has its 95% interval. One image is {percent(1 / n_images)} of the accuracy on all {n_images:,} images, so "
        f"small differences mean little.{told.get(split, '')}{errors if of_two else ''}"
    )


def _write_cells(figure: go.Figure, text: list[list[str]], shades: np.ndarray, *, dark: bool) -> None:
    """Numbers in the ink that can be read on their cell: the theme's scale darkens upwards on a light page, lightens
    upwards on a dark one. (Plotly's own choice of ink is too pale on the middle of the scale.)"""
    columns, rows = figure.data[0].x, figure.data[0].y
    wants_white = shades < 0.62 if dark else shades > 0.65
    for white in (False, True):
        cells = [(i, j) for i, j in np.ndindex(shades.shape) if bool(wants_white[i, j]) is white]
        figure.add_scatter(
            x=[columns[j] for _, j in cells],
            y=[rows[i] for i, _ in cells],
            text=[text[i][j] for i, j in cells],
            mode="text",
            textfont={"size": 12, "color": "#ffffff" if white else "#10161d"},
            hoverinfo="skip",
            showlegend=False,
        )


def _hover_score(cell: dict[str, Any] | None, metric: str) -> str:
    return "no images" if cell is None else f"{SCORES[metric]} {score_text(cell, metric)}"


def _cell(value: float, *, is_best: bool) -> str:
    if np.isnan(value):
        return ""
    return f"<b>{percent(value)}</b>" if is_best else percent(value)


def wrap_name(name: str) -> str:
    """Hospital names are long and phones are narrow."""
    return "<br>".join(textwrap.wrap(name, 11, break_long_words=False))


def _lay_out(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(height=height, margin={"l": 8, "r": 8, "t": 8, "b": 8}, dragmode=False)
    figure.update_xaxes(
        side="top", showgrid=False, fixedrange=True, tickangle=0, automargin=True, tickfont={"size": 11}
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, fixedrange=True, automargin=True, tickfont={"size": 11})
    return figure
