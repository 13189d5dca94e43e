"""Paired differences of runs with their intervals, overall and by hospital. Pure: data in, figure out."""

import math
import textwrap

import plotly.graph_objects as go

from engine.config import Federation
from engine.results.rounds import ALL
from engine.results.run_pairs import Paired
from ui.curves import SYMBOLS
from ui.matrices import column_name
from ui.palette import RUNS

SPREAD = 0.5  # of a row's height, over which its runs lie


def paired_figure(pairs: dict[str, Paired], first: str, federation: Federation, metric: str) -> go.Figure:
    """One row for all test images and one by hospital, with a mark for each other run; `metric` as a page calls it."""
    wanted = [ALL, *(hospital.id for hospital in federation.hospital)]
    held = {score.hospital: score.n_images for pair in pairs.values() for score in pair.scores}
    places = [place for place in wanted if place in held]
    figure = go.Figure()
    for number, (run, pair) in enumerate(pairs.items(), start=1):
        shift = SPREAD * ((number - 0.5) / len(pairs) - 0.5)
        shown = [score for score in pair.scores if not math.isnan(score.difference.value)]
        if not shown:
            continue
        value, low, high = ([100 * end for end in ends] for ends in zip(*(s.difference for s in shown), strict=True))
        figure.add_scatter(
            x=value,
            y=[places.index(score.hospital) + shift for score in shown],
            error_x={
                "array": [end - middle for end, middle in zip(high, value, strict=True)],
                "arrayminus": [middle - end for end, middle in zip(low, value, strict=True)],
                "thickness": 2,
                "width": 5,
            },
            mode="markers",
            name=f"{run} less {first}",
            showlegend=True,
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 10, "color": RUNS[number % len(RUNS)]},
            customdata=[
                [column_name(federation, score.hospital), score.n_images, *ends]
                for score, *ends in zip(shown, low, high, strict=True)
            ],
            hovertemplate=f"{run} less {first}, {metric}<br>%{{customdata[0]}}, n = %{{customdata[1]:,}}<br>"
            "%{x:+.1f} points (%{customdata[2]:+.1f} to %{customdata[3]:+.1f})<extra></extra>",
        )
    names = [f"{_wrap(column_name(federation, place))}<br>n = {held[place]:,}" for place in places]
    figure.add_vline(x=0, line={"width": 1.5, "color": "#808c9b"})
    figure.update_layout(
        height=120 + (44 + 16 * len(pairs)) * len(places),
        margin={"l": 8, "r": 8, "t": 32, "b": 8},
        hovermode="closest",
        dragmode=False,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        xaxis={"title": f"{metric}, points", "zeroline": False, "fixedrange": True},
        yaxis={
            "tickvals": list(range(len(places))), "ticktext": names, "range": [len(places) - 0.5, -0.5],
            "fixedrange": True, "automargin": True, "showgrid": False, "zeroline": False,
        },
    )  # fmt: skip
    return figure


def _wrap(name: str) -> str:
    return "<br>".join(textwrap.wrap(name, 18, break_long_words=False))
