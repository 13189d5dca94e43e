"""The table of all runs: filtered, sorted, and the way to each of them."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from engine.results.notes import Note
from ui.deep_links import one_from_url, text_from_url, to_url
from ui.run_index import RunEntry
from ui.tables import DASH, MACRO_F1, ORDERS, in_order, matching, runs_table

COLUMNS = {
    MACRO_F1: st.column_config.NumberColumn(
        format="%.1f%%",
        help="Of the federated model on the test images of its run. Runs on other images cannot be compared by it; "
        "intervals stand under Beside other runs, and on Evaluation.",
    ),
    "Test images": st.column_config.NumberColumn(format="localized"),
}


def draw_runs(entries: Sequence[RunEntry], published: dict[str, str], notes: dict[str, Note]) -> None:
    """Filter and order live in the URL; a click on a row puts its run there too."""
    text_from_url("filter", "filter")
    one_from_url("sort", "sort", list(ORDERS), "newest")
    with st.container(horizontal=True):
        text = st.text_input(
            "Filter", placeholder="run, federation, state, tag, note ...", key="filter", width=420, on_change=to_url,
            args=("filter", "filter"),
        )  # fmt: skip
        order = st.selectbox(
            "Sort", list(ORDERS), format_func=lambda key: ORDERS[key][0], key="sort", width=220, on_change=to_url,
            args=("sort", "sort"),
        )  # fmt: skip
    tags = {run: ", ".join(note.tags) for run, note in notes.items() if note.tags}
    table = runs_table(entries, published, tags)
    shown = in_order(matching(table, text, {run: note.text for run, note in notes.items()}), order)
    st.dataframe(
        shown, hide_index=True, on_select=lambda: _take_row(shown), selection_mode="single-row", key="runs",
        column_config=COLUMNS, placeholder=DASH,
    )  # fmt: skip
    st.caption(f"{len(shown):,} of {len(entries):,} runs. Choose a row to see it below.")


def _take_row(shown: pd.DataFrame) -> None:
    rows = st.session_state["runs"]["selection"]["rows"]
    if rows:
        st.query_params["run"] = str(shown.iloc[rows[0]]["Run"])
