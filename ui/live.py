"""A run being written: what happens now, how far it is, and what is left, said truthfully."""

import datetime
import shlex
from typing import Literal

import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.run_folder import HospitalState, Progress, Run
from ui.launch import COORDINATOR, goes_on_with, last_launch, training_enabled, what_it_said, why_not_here
from ui.log import why_stopped
from ui.pretext import elsewhere
from ui.run_index import is_running, seconds_since_written
from ui.words import duration

ENOUGH_SECONDS = 20
WatchState = Literal["starting", "running", "stopped", "finished"]
# Never colour alone: a word and a sign too.
DOING: dict[HospitalState | Literal["not asked"], tuple[str, Literal["gray", "blue", "green", "red"], str]] = {
    "waiting": ("waiting", "gray", ":material/schedule:"),
    "training": ("training now", "blue", ":material/sync:"),
    "trained": ("trained", "green", ":material/check:"),
    "failed": ("failed", "red", ":material/error:"),
    "not asked": ("not asked in this round", "gray", ":material/remove:"),
}


def watch_state(run: Run) -> WatchState:
    if run.is_finished:
        return "finished"
    if is_running(run):
        return "running"
    launch, said = last_launch(run.folder.parent), what_it_said(run.folder.parent)
    if launch is None or not launch.is_alive:
        return "stopped"
    if said.run is None:
        return "starting" if launch.resumes == run.name else "stopped"
    return "running" if said.run == run.name else "stopped"  # it has let go of the run and ends


def seconds_left(progress: Progress) -> float | None:
    """At the pace of this sitting (a resumed run counts from its resume); None while that is too short to tell."""
    started = datetime.datetime.fromisoformat(progress.started_at)
    seconds = (datetime.datetime.fromisoformat(progress.updated_at) - started).total_seconds()
    done = progress.images_done - progress.images_at_start
    if seconds < ENOUGH_SECONDS or done <= 0:
        return None
    return max(0, progress.images_total - progress.images_done) * seconds / done


def roughly(seconds: float) -> str:
    """No precision that an estimate has not."""
    return f"about {duration(60 * round(seconds / 60))}" if seconds >= 90 else "about a minute"


def describe(progress: Progress, federation: Federation) -> str:
    """What is happening now, in one sentence."""
    where = f"Round {progress.round} of {progress.rounds}"
    if progress.model == "global":
        trained = set(progress.hospitals.values()) in ({"trained"}, {"trained", "failed"})
        doing = "is validated" if trained else f"{federation.display_name(progress.hospital)} trains"
        return f"{where} of the federated model: {doing}"
    if progress.model == "central":
        return f"{where} of the pooled model, for reference"
    return f"{where} of {federation.model_name(progress.model)} alone"


def resume_command(run: Run) -> str:
    """Exactly what to type."""
    engine = goes_on_with(run)
    keys = ["--certificates", "DIR"] if engine == COORDINATOR else []
    command = ["python", "-m", "engine", engine, run.config.federation_file, "--resume", run.name, *keys]
    return shlex.join([*command, *elsewhere(run)])


def hospital_states(progress: Progress, federation: Federation) -> dict[str, HospitalState | Literal["not asked"]]:
    """By display name what each hospital does in the round in flight; empty where the run does not tell."""
    if not progress.hospitals:
        return {}
    if progress.model == "central":
        return {"Pooled images": progress.hospitals.get(progress.hospital, "waiting")}
    shown = [one.id for one in federation.hospital] if progress.model == "global" else list(progress.hospitals)
    return {federation.display_name(one): progress.hospitals.get(one, "not asked") for one in shown}


def draw_progress(run: Run, state: WatchState) -> None:
    """Bar, sentence, estimate and hospitals, or that the run has stopped and how to go on."""
    try:
        progress = run.progress()
    except ConsiliumError:  # the checkpoint goes away while the run is being finished
        progress = None
    share = min(progress.images_done / progress.images_total, 1.0) if progress and progress.images_total else 0.0
    if state == "stopped":
        st.badge("stopped", color="orange", icon=":material/pause_circle:")
        why = why_stopped(run)
        rest = f": {why.removesuffix('.')}" if why else "; its whole rounds are kept"
        st.progress(share, text=f"Stopped {duration(seconds_since_written(run.folder))} ago{rest}.")
        if not training_enabled() or why_not_here():
            st.markdown("To go on:")
            st.code(resume_command(run), language="bash", wrap_lines=True)
        return
    st.badge("running", color="blue", icon=":material/sync:")
    if state == "starting":
        st.progress(share, text="Getting ready: images are read and checked.")
        return
    if progress is None:
        st.progress(0.0, text="Getting ready, or writing the last results.")
        return
    if share >= 1:
        st.progress(1.0, text="Every round is trained; models are being evaluated and results written.")
        return
    left = seconds_left(progress)
    rest = "too early to say how long the rest takes" if left is None else f"{roughly(left)} left at this pace"
    st.progress(share, text=f"{describe(progress, run.federation)}. {share:.0%} of the training, {rest}.")
    with st.container(horizontal=True, key="hospital_states"):
        for name, state_of_it in hospital_states(progress, run.federation).items():
            word, colour, icon = DOING[state_of_it]
            st.badge(f"{name}: {word}", color=colour, icon=icon)
