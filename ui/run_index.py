"""What runs there are and how each of them stands, read without trusting any of them."""

import contextlib
import hashlib
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.imported import read_imported
from engine.results.lock import lock_holder
from engine.results.run_folder import Run, list_runs

State = Literal["finished", "running", "stopped", "damaged", "imported"]
STOPPED_AFTER_SECONDS = 120
UNREADABLE = "Unreadable runs"


@dataclass(frozen=True)
class RunEntry:
    """One run in a list. `problem` says what is wrong with a damaged one; `federation` is then a best guess."""

    name: str
    folder: str
    federation: str
    state: State
    problem: str = ""
    started_at: str = ""
    finished_at: str = ""
    arms: tuple[str, ...] = ()
    rounds: int = 0

    @property
    def is_unfinished(self) -> bool:
        return self.state in ("running", "stopped")


def read_entries(artifacts: Path) -> list[RunEntry]:
    """Every run folder, newest first."""
    return [_entry(run) for run in reversed(list_runs(artifacts))]


def is_running(run: Run) -> bool:
    """Whether a process trains the run: one of this machine holds its lock, or one elsewhere has just written."""
    if not run.lock_file.exists():
        return False
    return lock_holder(run.lock_file) is not None or seconds_since_written(run.folder) < STOPPED_AFTER_SECONDS


def seconds_since_written(folder: Path) -> float:
    """Since a training last touched its run folder."""
    newest = max((modified_ns for _, _, modified_ns in _files(folder)), default=0)
    return time.time() - newest / 1e9


def folder_stamp(folder: Path) -> str:
    """Changes whenever a file of the folder is written: names, sizes and times, no content read."""
    return hashlib.sha256(repr(sorted(_files(folder))).encode()).hexdigest()


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, modified); a run being written renames and removes files meanwhile: what is gone is left out."""
    found = []
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return found


def _entry(run: Run) -> RunEntry:
    if run.is_finished:
        return _finished_entry(str(run.folder), folder_stamp(run.folder))
    try:
        config = run.config
    except ConsiliumError as error:
        return RunEntry(run.name, str(run.folder), UNREADABLE, "damaged", str(error))
    federation = config.federation
    state: State = "running" if is_running(run) else "stopped"
    rounds = federation.training.rounds
    return RunEntry(
        run.name, str(run.folder), federation.name, state, "", config.started_at, "", federation.arms, rounds
    )


@st.cache_data(max_entries=200, show_spinner=False)
def _finished_entry(folder: str, stamp: str) -> RunEntry:
    """`stamp` is in the key so that a file changed later is hashed anew."""
    run = Run(Path(folder))
    federation, started, finished, rounds = UNREADABLE, "", "", 0
    arms: tuple[str, ...] = ()
    try:
        manifest = run.manifest
        federation, arms = manifest.federation, manifest.arms
        started, finished = manifest.started_at, manifest.finished_at
        rounds = read_imported(run).rounds if run.is_imported else run.federation.training.rounds
        run.verify()
    except ConsiliumError as error:
        return RunEntry(
            run.name, folder, _guess(run, federation), "damaged", str(error), started, finished, arms, rounds
        )
    state: State = "imported" if run.is_imported else "finished"
    return RunEntry(run.name, folder, federation, state, "", started, finished, arms, rounds)


def _guess(run: Run, federation: str) -> str:
    if federation != UNREADABLE:
        return federation
    try:
        return run.federation.name
    except ConsiliumError:
        return UNREADABLE
