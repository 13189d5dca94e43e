"""What is taken away from a page: tables as CSV and LaTeX, figures as SVG, a run as a zip. Made only when asked for."""

from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from engine.results.run_archive import archive_run, weights_bytes, why_no_archive
from engine.results.run_folder import Run
from engine.results.table_formats import latex_tabular
from ui.words import format_bytes

MAX_WEIGHTS_BYTES = 100_000_000  # a server holds what it hands over in memory until it is fetched


def svg_config(name: str) -> dict[str, Any]:
    """Of a plotly chart: one button that saves it as SVG, as it stands on the page. The browser draws it, not we."""
    image = {"format": "svg", "filename": f"consilium-{name}"}
    return {
        "displayModeBar": True,
        "displaylogo": False,
        "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": image,
    }


def draw_table_downloads(table: pd.DataFrame, name: str, *, n_left: int = 1, said: Sequence[str] = ()) -> None:
    """`said` are the LaTeX table's notes. `n_left` columns are flush left there."""

    def csv() -> bytes:
        return table.to_csv(index=False).encode()

    def latex() -> bytes:
        rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
        return latex_tabular([str(head) for head in table.columns], rows, n_left=n_left, said=said).encode()

    with st.container(horizontal=True):
        for kind, make, ending, mime in (("CSV", csv, "csv", "text/csv"), ("LaTeX", latex, "tex", "text/x-tex")):
            st.download_button(
                f"Table as {kind}", make, f"consilium-{name}.{ending}", mime,
                key=f"{name}_{ending}", on_click="ignore", icon=":material/download:", type="tertiary",
            )  # fmt: skip


def draw_run_download(run: Run) -> None:
    """The whole folder of a finished run as it was written; its weights only where they are here and wanted."""
    n_bytes = weights_bytes(run)
    with_weights = False
    if 0 < n_bytes <= MAX_WEIGHTS_BYTES:
        with_weights = st.toggle(f"With its weights, {format_bytes(n_bytes)}", key="zip_weights")
    elif n_bytes:
        st.caption(
            f"Its weights, {format_bytes(n_bytes)}, are too large to come through a page: copy "
            f"`{run.folder / 'weights'}`. The zip has everything else."
        )
    else:
        st.caption("Its weights are not on this machine, so the zip has everything else.")
    folder = str(run.folder)

    def zipped() -> BufferedReader:
        return archive_run(Run(Path(folder)), with_weights=with_weights)

    if why_not := why_no_archive(run):
        st.warning(why_not, icon=":material/warning:")
        return
    st.caption(
        "The zip holds no image, but the paths and hashes of all images that the run was made with, what its models "
        "said of each, subgroups where it has them, and in its audit log who trained it on which machine."
    )
    st.download_button(
        "Run as zip", zipped, f"{run.name}.zip", "application/zip",
        key="zip", on_click="ignore", icon=":material/folder_zip:",
    )  # fmt: skip
