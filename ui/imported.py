"""Runs of other systems, on every page: what their file says, and in plain words what it does not.

Names in it are anybody's, so they stand in tables and widgets that take no markup, never in a sentence.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.errors import ConsiliumError
from engine.results.imported import Imported, read_imported
from engine.results.run_folder import Run
from engine.results.words import count
from ui.curves import SYMBOLS, round_axis
from ui.palette import FEDERATED, STARTED, UNTRAINED
from ui.selection import stop_with
from ui.tables import DASH, files_table, when
from ui.words import format_bytes

Page = Literal["Hospitals", "Training", "Evaluation", "Runs"]
WHERE = {  # of a Flower result: what its words mean, and how their line looks
    "evaluate": ("Evaluated by hospitals, mean", FEDERATED, "solid"),
    "server": ("Evaluated by the server", STARTED, "dash"),
    "train": ("Training at hospitals, mean", UNTRAINED, "dot"),
}
INFO = ":material/info:"
NOT_COMPARABLE = (
    "Another system measured these figures, on images that are not known here. They stand as they were written, "
    "without intervals, and do not compare with those of any other run."
)


def draw_imported(run: Run, page: Page) -> None:
    """In place of the page's own content. Ends the page with one sentence where the run is damaged."""
    try:
        imported = read_imported(run)
        files = run.manifest.files
    except ConsiliumError as error:
        stop_with(error)
    st.badge(f"imported from {imported.system}", color="violet", icon=":material/download:")
    if page == "Hospitals":
        _draw_hospitals(imported, run.name)
    elif page == "Training":
        _draw_training(imported, run.name)
    elif page == "Evaluation":
        _draw_evaluation(imported)
    else:
        st.markdown(
            f"Imported {when(imported.imported_at)} from {imported.form}. When it was trained, "
            "with which settings and on what machine is not in the file; nor are splits, predictions and weights. So "
            "it can be neither published, exported nor compared."
        )
        st.dataframe(_source_table(imported), hide_index=True)
        if imported.left_out:
            st.markdown(f"{count(len(imported.left_out), 'value')} of the file left out, being no single number:")
            st.dataframe(pd.DataFrame({"Left out": imported.left_out}), hide_index=True)
        st.dataframe(files_table(files), hide_index=True)


def curves_figure(curves: Mapping[str, Sequence[tuple[int, float]]], metric: str) -> go.Figure:
    """One metric over rounds, {where: ((round, value), ...)}; the axis holds zero."""
    figure = go.Figure()
    for symbol, where in zip(SYMBOLS, (where for where in WHERE if where in curves), strict=False):
        name, colour, dash = WHERE[where]
        figure.add_scatter(
            x=[point[0] for point in curves[where]],
            y=[point[1] for point in curves[where]],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"symbol": symbol, "size": 6, "color": colour},
            hovertemplate=f"Round %{{x}}<br>{name}<br>%{{y:.4g}}<extra></extra>",
        )
    rounds = [point[0] for points in curves.values() for point in points]
    axis = round_axis(max(rounds)) | {"range": [min(rounds) - 0.5, max(rounds) + 0.5]}
    figure.update_layout(
        height=400,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        hovermode="closest",
        showlegend=True,
        legend={"orientation": "h", "yanchor": "top", "y": -0.12, "x": 0},
        xaxis=axis,
        yaxis={"title": html.escape(metric), "rangemode": "tozero"},
    )
    return figure


def last_figures(imported: Imported) -> pd.DataFrame:
    """The last round that each metric of a Flower result has, and its value there."""
    rows = [
        [metric, number_text(points[-1][1]), WHERE[where][0], f"{points[-1][0]}"]
        for where in WHERE
        for metric, points in imported.curves.get(where, {}).items()
    ]
    return pd.DataFrame(rows, columns=["Metric", "Value", "Where", "Round"])


def cross_site_table(imported: Imported, metric: str) -> pd.DataFrame:
    """Models in rows, the server's first; in columns the hospitals whose images they were scored on."""
    models = list(dict.fromkeys(model for scored in imported.cross_site.values() for model in scored))
    models.sort(key=lambda model: not model.startswith("SRV_"))
    columns = {
        hospital: [number_text(scored.get(model, {}).get(metric)) for model in models]
        for hospital, scored in imported.cross_site.items()
    }
    return pd.DataFrame({"Model": models} | {f"on {hospital}": cells for hospital, cells in columns.items()})


def number_text(value: float | None) -> str:
    """Four digits, for no more is known of what it means; a dash where there is none."""
    return DASH if value is None else f"{value:.4g}"


def _draw_hospitals(imported: Imported, run: str) -> None:
    if not imported.cross_site:
        st.info(
            "Flower's result names no hospital: it holds means over those that answered, and not how many did.",
            icon=INFO,
        )
        st.page_link("pages/2_Training.py", label="See its curves on Training", query_params={"run": run})
        return
    st.markdown(
        f"{count(len(imported.cross_site), 'hospital')} scored models on their own images. Where they are, how many "
        "images they hold and of which classes is not in the file, so there is neither a map nor an audit."
    )
    rows = [[hospital, len(models)] for hospital, models in imported.cross_site.items()]
    st.dataframe(pd.DataFrame(rows, columns=["Hospital", "Models scored there"]), hide_index=True)


def _draw_training(imported: Imported, run: str) -> None:
    if not imported.curves:
        st.info("A cross-site validation holds no rounds: it scores models once they are trained.", icon=INFO)
        st.page_link("pages/3_Evaluation.py", label="See its scores on Evaluation", query_params={"run": run})
        return
    metrics = list(dict.fromkeys(metric for where in WHERE for metric in imported.curves.get(where, {})))
    metric = st.selectbox("Metric", metrics, key="imported_metric", width=320)
    curves = {where: found[metric] for where, found in imported.curves.items() if metric in found}
    st.plotly_chart(curves_figure(curves, metric), config={"displayModeBar": False}, key="imported_curves")
    st.caption(
        f"{NOT_COMPARABLE} How the means were weighed, single hospitals, seconds, bytes and the chosen round are not "
        "in the file."
    )


def _draw_evaluation(imported: Imported) -> None:
    if imported.curves:
        st.dataframe(last_figures(imported), hide_index=True)
        st.caption(f"The last round of each metric. {NOT_COMPARABLE}")
    else:
        scored = [metrics for models in imported.cross_site.values() for metrics in models.values()]
        metrics = list(dict.fromkeys(metric for found in scored for metric in found))
        metric = st.selectbox("Metric", metrics, key="imported_metric", width=320)
        st.dataframe(cross_site_table(imported, metric), hide_index=True)
        st.caption(
            f"Models in rows (SRV_: the server's; else the hospital's of that name), in columns the hospitals whose "
            f"images they were scored on. {NOT_COMPARABLE}"
        )
    st.caption("Confusion matrices, scores by class, calibration and numbers of images are not in the file.")


def _source_table(imported: Imported) -> pd.DataFrame:
    rows = {
        "File": imported.file,
        "Size": format_bytes(imported.bytes),
        "SHA-256": imported.sha256,
        "Rounds": f"{imported.rounds:,}" if imported.rounds else DASH,
    }
    return pd.DataFrame(rows.items(), columns=["What", "Value"])
