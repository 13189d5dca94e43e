"""What was done, exactly: all runs, one run in full, two runs side by side."""

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.published import models_folder
from engine.results.run_folder import artifacts_folder
from ui.frame import draw_frame, show_federation
from ui.imported import draw_imported
from ui.lineage import came_from, label, versions_by_run
from ui.run_details import VIEWS, draw_comparison, draw_details, draw_family, draw_lineage
from ui.run_index import read_entries
from ui.selection import select_run, stop_with
from ui.tables import matching, runs_table

draw_frame("Runs", "What was done, exactly.")
entries = read_entries(artifacts_folder())
versions, unreadable = versions_by_run(models_folder())


def take_row() -> None:
    """A click on a row chooses the run; the choice lives in the URL."""
    rows = st.session_state["runs"]["selection"]["rows"]
    if rows:
        st.query_params["run"] = str(shown.iloc[rows[0]]["Run"])


if entries:
    published = {run: ", ".join(map(label, made)) for run, made in versions.items()}
    text = st.text_input("Filter", placeholder="run, federation, state ...", key="filter", width=420)
    shown = matching(runs_table(entries, published), text)
    st.dataframe(shown, hide_index=True, on_select=take_row, selection_mode="single-row", key="runs")
    st.caption(f"{len(shown)} of {len(entries)} runs, newest first. Choose a row to see it below.")
for sentence in unreadable:
    st.warning(sentence, icon=":material/warning:")

run = select_run("any")
st.subheader(run.name, anchor=False)
if run.is_imported:
    draw_imported(run, "Runs")
    st.stop()
try:
    show_federation(run.federation)
    draw_lineage(run, [version for version in versions.get(run.name, []) if came_from(version, run)])
    draw_family(run)
    view = st.segmented_control("Show", VIEWS, default=VIEWS[0], key="run_view", required=True)
    if view == VIEWS[-1]:
        draw_comparison(run, [entry for entry in entries if entry.name != run.name and entry.state == "finished"])
    else:
        draw_details(run, str(view))
except ConsiliumError as error:
    stop_with(error)
