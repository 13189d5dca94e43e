"""What runs there are and how each of them stands, read without trusting any of them."""

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.imported import read_imported
from engine.results.lock import lock_holder
from engine.results.rounds import ALL
from engine.results.run_folder import EVALUATION, Run, list_runs, weights_name

State = Literal["finished", "running", "stopped", "damaged", "imported"]
STOPPED_AFTER_SECONDS = 120
MAX_ENTRIES = 2000  # of them about a kilobyte each is kept
UNREADABLE = "Unreadable runs"


@dataclass(frozen=True)
class RunEntry:
    """One run in a list. `problem` says what is wrong with a damaged one; `federation` is then a best guess.

    `macro_f1` is the federated model's on its `n_test` test images. `weights` is what the run started from, `origin`
    that file's SHA-256, `left_out` the hospital that it is to test on, and `best` the SHA-256 of its own federated
    weights. What a run has not is None.
    """

    name: str
    folder: str
    federation: str
    state: State
    problem: str = ""
    started_at: str = ""
    finished_at: str = ""
    arms: tuple[str, ...] = ()
    rounds: int = 0
    macro_f1: float | None = None
    n_test: int | None = None
    weights: str = ""
    origin: str | None = None
    left_out: str | None = None
    best: str | None = None

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


def _files(folder: Path | str, inside: str = "") -> list[tuple[str, int, int]]:
    """(name, bytes, modified); a run being written renames and removes files meanwhile: what is gone is left out."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # a page asks it of hundreds of folders
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    found += _files(entry.path, f"{inside}{entry.name}/")
                    continue
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    found.append((inside + entry.name, status.st_size, status.st_mtime_ns))
    return found


def _entry(run: Run) -> RunEntry:
    if run.is_finished:
        return _finished_entry(str(run.folder), folder_stamp(run.folder))
    try:
        config = run.config
    except ConsiliumError as error:
        return RunEntry(run.name, str(run.folder), UNREADABLE, "damaged", str(error))
    federation = config.federation
    return RunEntry(
        name=run.name,
        folder=str(run.folder),
        federation=federation.name,
        state="running" if is_running(run) else "stopped",
        started_at=config.started_at,
        arms=federation.arms,
        rounds=federation.training.rounds,
        weights=federation.model.weights,
        origin=config.starting_weights_sha256,
    )


@st.cache_resource(max_entries=MAX_ENTRIES, show_spinner=False)
def _finished_entry(folder: str, stamp: str) -> RunEntry:
    """`stamp` is in the key so that a file changed later is hashed anew. Entries are frozen: sessions share them."""
    run = Run(Path(folder))
    known: dict[str, Any] = {"federation": UNREADABLE}
    try:
        manifest = run.manifest
        known = {
            "federation": manifest.federation,
            "arms": manifest.arms,
            "started_at": manifest.started_at,
            "finished_at": manifest.finished_at,
        }
        best = manifest.files.get(weights_name("global"))
        known["rounds"] = read_imported(run).rounds if run.is_imported else run.federation.training.rounds
        run.verify()
        if not run.is_imported:
            known |= {
                "weights": run.federation.model.weights,
                "origin": run.config.starting_weights_sha256,
                "left_out": run.federation.left_out,
                "best": best.sha256 if best else None,
                **_test_score(run),
            }
    except ConsiliumError as error:
        known["federation"] = _guess(run, known["federation"])
        return RunEntry(name=run.name, folder=folder, state="damaged", problem=str(error), **known)
    state: State = "imported" if run.is_imported else "finished"
    return RunEntry(name=run.name, folder=folder, state=state, **known)


def _test_score(run: Run) -> dict[str, Any]:
    if EVALUATION not in run.manifest.files:
        return {}
    try:
        cell = run.read_json(EVALUATION)["splits"]["test"]["global"][ALL]
        return {"macro_f1": float(cell["macro_f1"]), "n_test": int(cell["n_images"])}
    except (ConsiliumError, KeyError, TypeError, ValueError):  # no federated model, or no test images
        return {}


def _guess(run: Run, federation: str) -> str:
    if federation != UNREADABLE:
        return federation
    try:
        return run.federation.name
    except ConsiliumError:
        return UNREADABLE
