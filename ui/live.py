"""A run being written: what happens now, how far it is, and what is left, said truthfully."""

import datetime
import shlex

import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.run_folder import Progress, Run
from ui.pretext import elsewhere
from ui.run_index import STOPPED_AFTER_SECONDS, seconds_since_written
from ui.words import duration

ENOUGH_SECONDS = 20


def seconds_left(progress: Progress) -> float | None:
    """At the pace of this sitting (a resumed run counts from its resume); None while that is too short to tell."""
    started = datetime.datetime.fromisoformat(progress.started_at)
    seconds = (datetime.datetime.fromisoformat(progress.updated_at) - started).total_seconds()
    done = progress.images_done - progress.images_at_start
    if seconds < ENOUGH_SECONDS or done <= 0:
        return None
    return max(0, progress.images_total - progress.images_done) * seconds / done


def _roughly(seconds: float) -> str:
    """No precision that an estimate has not."""
    return f"about {duration(60 * round(seconds / 60))}" if seconds >= 90 else "about a minute"


def describe(progress: Progress, federation: Federation) -> str:
    """What is happening now, in one sentence."""
    where = f"Round {progress.round} of {progress.rounds}"
    if progress.model == "global":
        return f"{where} of the federated model: {federation.display_name(progress.hospital)} trains"
    if progress.model == "central":
        return f"{where} of the pooled model, for reference"
    return f"{where} of {federation.model_name(progress.model)} alone"


def resume_command(run: Run) -> str:
    """Exactly what to type."""
    command = ["python", "-m", "engine", "train", run.config.federation_file, "--resume", run.name]
    return shlex.join([*command, *elsewhere(run)])


def draw_progress(run: Run) -> None:
    """Bar, sentence and estimate, or that the run has stopped and how to go on."""
    try:
        progress = run.progress()
    except ConsiliumError:  # the checkpoint goes away while the run is being finished
        progress = None
    share = progress.images_done / progress.images_total if progress and progress.images_total else 0.0
    silent = seconds_since_written(run.folder)
    if silent > STOPPED_AFTER_SECONDS:
        st.badge("stopped", color="orange", icon=":material/pause_circle:")
        st.progress(min(share, 1.0), text=f"Stopped: nothing was written for {duration(silent)}. To go on:")
        st.code(resume_command(run), language="bash", wrap_lines=True)
        return
    st.badge("running", color="blue", icon=":material/sync:")
    if progress is None:
        st.progress(0.0, text="Getting ready, or writing the last results.")
        return
    if share >= 1:
        st.progress(1.0, text="Every round is trained; models are being evaluated and results written.")
        return
    left = seconds_left(progress)
    rest = "too early to say how long the rest takes" if left is None else f"{_roughly(left)} left at this pace"
    st.progress(share, text=f"{describe(progress, run.federation)}. {share:.0%} of the training, {rest}.")
