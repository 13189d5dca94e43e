"""A hospital's class mix against the federation's. Pure: data in, figure out."""

import pandas as pd
import plotly.graph_objects as go

from ui.palette import POOLED


def class_mix_figure(mix: pd.DataFrame, name: str, colour: str) -> go.Figure:
    """`mix` is what `ui.tables.class_mix_table` makes: shares of all images here and in the whole federation."""
    figure = go.Figure()
    bars = [("share_here", "n_here", name, colour, ""), ("share_all", "n_all", "All hospitals", POOLED, "/")]
    for share, n_images, title, fill, pattern in bars:
        figure.add_bar(
            y=mix["label"],
            x=mix[share],
            name=title,
            orientation="h",
            marker={"color": fill, "pattern": {"shape": pattern, "size": 5}},
            text=[f"{value:.0%}" for value in mix[share]],
            textposition="outside",
            cliponaxis=False,
            customdata=mix[[n_images]],
            hovertemplate=f"{title}<br>%{{y}}: %{{customdata[0]:,}} images, %{{x:.1%}}<extra></extra>",
        )
    figure.update_layout(
        height=110 + 52 * len(mix),
        margin={"l": 8, "r": 40, "t": 40, "b": 8},
        barmode="group",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        dragmode=False,
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero", fixedrange=True, title="Share of the images")
    figure.update_yaxes(autorange="reversed", fixedrange=True)
    return figure
