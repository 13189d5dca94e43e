"""Estimates with their intervals, one row each: whose, how much, how sure. Pure: numbers in, figure out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from engine.results.bootstrap import Estimate
from ui.matrices import wrap_name

ROW_PX, LINE_PX = 34, 15
GREY = "#7d8791"


class Series(NamedTuple):
    """One estimate per row (None where there is none) and its colour; `texts` are the hover's words for it."""

    name: str
    symbol: str
    estimates: Sequence[Estimate | None]
    colours: Sequence[str]
    texts: Sequence[str]


def forest_figure(
    names: Sequence[str], series: Sequence[Series], title: str, *, unit: str = "%", is_difference: bool = False
) -> go.Figure:
    """`names` from above, `title` of the axis; of differences 0 is a line to read against."""
    wrapped = [wrap_name(name) for name in names]
    row_px = max(ROW_PX * max(len(series), 1.4), LINE_PX * (1 + max(name.count("<br>") + 1 for name in wrapped)))
    figure = go.Figure()
    if is_difference:
        figure.add_vline(x=0, line={"dash": "dot", "color": GREY, "width": 1.5})
    n = len(series)
    for place, one in enumerate(series):
        figure.add_scatter(  # for the legend: rows have colours of their own
            x=[None], y=[None], mode="markers", name=one.name, showlegend=n > 1,
            marker={"symbol": one.symbol, "color": GREY, "size": 10},
        )  # fmt: skip
        for row, (estimate, colour, text) in enumerate(zip(one.estimates, one.colours, one.texts, strict=True)):
            if estimate is None or not math.isfinite(estimate.value):
                continue
            bar = {}
            if math.isfinite(estimate.low):
                ends = [100 * (estimate.high - estimate.value)], [100 * (estimate.value - estimate.low)]
                bar = {
                    "error_x": {"array": ends[0], "arrayminus": ends[1], "color": colour, "thickness": 2, "width": 5}
                }
            figure.add_scatter(
                x=[100 * estimate.value],
                y=[row + (place - (n - 1) / 2) * 0.34],
                mode="markers",
                marker={"symbol": one.symbol, "color": colour, "size": 11},
                showlegend=False,
                hovertemplate=f"{text}<extra></extra>",
                **bar,
            )
    figure.update_layout(
        height=round(96 + row_px * len(names)),
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        dragmode=False,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title=title, ticksuffix=unit, fixedrange=True, zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=wrapped,
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        automargin=True,
        tickfont={"size": 11},
    )
    return figure
