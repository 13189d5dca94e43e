"""What was done, exactly: all runs, one run in full, several runs side by side."""

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.published import models_folder
from engine.results.run_folder import artifacts_folder
from ui.frame import draw_frame, show_federation
from ui.imported import draw_imported
from ui.lineage import came_from, label, versions_by_run
from ui.notes import draw_note, draw_note_editor, read_notes
from ui.run_details import draw_family, draw_lineage, draw_view
from ui.run_index import read_entries
from ui.runs_list import draw_runs
from ui.selection import select_run, stop_with

draw_frame("Runs", "What was done, exactly.")
with st.spinner("Reading the run folders"):
    entries = read_entries(artifacts_folder())
    notes, unreadable_notes = read_notes(artifacts_folder(), entries)
versions, unreadable = versions_by_run(models_folder())
if entries:
    draw_runs(entries, {run: ", ".join(map(label, made)) for run, made in versions.items()}, notes)
for sentence in [*unreadable, *unreadable_notes]:
    st.warning(sentence, icon=":material/warning:")

run = select_run("any", entries)
st.subheader(run.name, anchor=False)
if run.is_imported:
    draw_imported(run, "Runs")
    st.stop()
try:
    show_federation(run.federation)
    draw_lineage(run, [version for version in versions.get(run.name, []) if came_from(version, run)])
    draw_family(run, entries)
    draw_note(notes.get(run.name))
    draw_note_editor(run, notes.get(run.name), sorted({tag for note in notes.values() for tag in note.tags}))
    draw_view(run, entries)
except ConsiliumError as error:
    stop_with(error)
