"""How it learned: validation over rounds, the price of a round, and a run while it is being written.

Where the server allows it, trainings are started, stopped and gone on with here too.
"""

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.run_folder import artifacts_folder
from ui.frame import draw_frame, show_federation
from ui.imported import draw_imported
from ui.live import watch_state
from ui.run_index import read_entries
from ui.selection import select_run, stop_with
from ui.training import draw_training
from ui.training_controls import draw_controls
from ui.training_form import draw_training_centre, wants_to_start

draw_frame("Training", "How it learned.")
if wants_to_start():
    draw_training_centre(artifacts_folder())
    st.stop()
run = select_run("any")
if run.is_imported:
    draw_imported(run, "Training")
    st.stop()
try:
    show_federation(run.federation)
except ConsiliumError as error:
    stop_with(error)
newest = read_entries(artifacts_folder())[0]
if newest.state == "running" and newest.name != run.name:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge("running", color="blue", icon=":material/sync:")
        st.page_link(
            "pages/2_Training.py", label=f"{newest.name} is being trained now", query_params={"run": newest.name}
        )
state = watch_state(run)
draw_controls(run, state)
draw_training(run, state)
