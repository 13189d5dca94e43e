"""Stop and Resume, and what is being trained while another run is shown. Only where trainings may be started here."""

import time
from pathlib import Path

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.lock import lock_holder
from engine.results.run_folder import Run
from ui.launch import (
    COORDINATOR,
    getting_ready,
    goes_on_with,
    last_launch,
    start_training,
    stop_process,
    stop_run,
    trained_now,
    training_enabled,
    what_it_said,
    why_not_here,
)
from ui.live import WatchState, resume_command

PATIENCE_SECONDS = 20


def draw_controls(run: Run, state: WatchState) -> None:
    """Stop where the run is being trained, Resume where it has stopped."""
    if not training_enabled() or why_not_here():
        return
    artifacts = run.folder.parent
    if state == "running" and lock_holder(run.lock_file) is not None:
        draw_stop(run.name, artifacts)
    elif state == "stopped":
        busy = trained_now(artifacts)
        if busy or getting_ready(artifacts):
            st.caption(f"{busy or 'Another run'} is being trained now; {run.name} can go on after it.")
        elif (engine := goes_on_with(run)) == COORDINATOR:
            st.caption("Its hospitals are on machines of their own. It goes on where its coordinator is started:")
            st.code(resume_command(run), language="bash", wrap_lines=True)
        elif st.button("Resume", icon=":material/play_arrow:", type="primary", key="resume"):
            try:
                start_training(artifacts, [run.config.federation_file, "--resume", run.name], engine)
            except ConsiliumError as error:
                st.error(str(error), icon=":material/error:")
            else:
                st.rerun()
        launch, said = last_launch(artifacts), what_it_said(artifacts)
        if launch is not None and launch.resumes == run.name and said.run is None and said.error:
            st.error(f"{run.name} could not go on: {said.error}", icon=":material/error:")


def draw_stop(name: str | None, artifacts: Path) -> None:
    """Of a run, or of a training that has none yet. It asks first."""
    with st.popover("Stop", icon=":material/stop_circle:", key="stop"):
        kept = "The round in flight is lost; whole rounds are kept, and Resume goes on after them."
        st.markdown(f"Stop {name}? {kept}" if name else "Stop it? It has trained nothing yet, and nothing is kept.")
        if st.button("Stop this training", type="primary", key="stop_now"):
            try:
                _stop(name, artifacts)
            except ConsiliumError as error:
                st.error(str(error), icon=":material/error:")
            else:
                st.rerun()


def _stop(name: str | None, artifacts: Path) -> None:
    launch = last_launch(artifacts)
    if name is not None:
        stop_run(artifacts, name)
    elif launch is not None and launch.is_alive:
        stop_process(launch.pid)
    with st.spinner("It ends its step"):
        for _ in range(10 * PATIENCE_SECONDS):
            if trained_now(artifacts) is None and (launch is None or not launch.is_alive):
                return
            time.sleep(0.1)
