"""Cached reading of run folders and published models.

Every cache is bounded and keyed by the folder and its manifest's hash (for a run being written: by the file's size and
time), so that nothing old is shown and tests with other folders see their own. Uploaded images enter no cache.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.data.audit import Audit
from engine.errors import RunError
from engine.inference.panel import Panel, open_panel, read_calibration
from engine.results.files import sha256_of
from engine.results.metrics import balanced_accuracy
from engine.results.published import PublishedVersion
from engine.results.rounds import RoundLine
from engine.results.run_folder import JOINED, PRIVACY, Run
from ui.memory import give_back

SPLITS = ("train", "validation", "test")


def load_evaluation(run: Run) -> dict[str, Any]:
    """`evaluation.json`: "splits" is {split: {model: {hospital id or "all": cell}}}."""
    return _evaluation(str(run.folder), run_stamp(run, "evaluation.json"))


def load_privacy(run: Run) -> dict[str, Any] | None:
    """`privacy.json`; None where the run was trained without [privacy], or lists no such file."""
    return _privacy(str(run.folder), run_stamp(run, PRIVACY)) if PRIVACY in run.manifest.files else None


def load_rounds(run: Run) -> pd.DataFrame:
    """One row per line of `rounds.jsonl`; see `rounds_table` for the columns."""
    return _rounds(str(run.folder), run_stamp(run, "rounds.jsonl"))


def load_splits(run: Run) -> pd.DataFrame:
    """Images by hospital, label and split: columns hospital, label, train, validation, test."""
    if run.config.transport == "flower":
        return _counts_told(str(run.folder), run_stamp(run, JOINED))
    return _splits(str(run.folder), run_stamp(run, "dataset_splits.json"))


def load_audit(run: Run) -> Audit:
    return _audit(str(run.folder), run_stamp(run, "audit.json"))


@st.cache_resource(max_entries=1, show_spinner="Loading the models")
def load_panel(folder: str, manifest_sha256: str) -> Panel:
    """The models of one published version. Only the shown version stays in memory; `manifest_sha256` is its key.

    The last one goes before the next one comes: the cache by itself would hold both meanwhile."""
    load_panel.clear()
    give_back()
    panel = open_panel(PublishedVersion(Path(folder)))
    give_back()  # what reading and checking the files took
    return panel


@st.cache_data(max_entries=10, show_spinner=False)
def load_calibration(folder: str, manifest_sha256: str) -> dict[str, Any] | None:
    """`calibration.json` without its gate; None where a version has none. Raises ModelError where it is damaged."""
    version = PublishedVersion(Path(folder))
    version.verify()
    calibration = read_calibration(version)
    return None if calibration is None else calibration.model_dump(mode="json", exclude={"gate"})


def rounds_table(lines: list[RoundLine]) -> pd.DataFrame:
    """Columns arm, model, round, hospital, failure, is_best_so_far, seconds (of the round, "all" only);
    n_trained, train_loss, train_accuracy, fit_seconds, bytes_down, bytes_up; n_images, loss, accuracy, macro_f1,
    balanced_accuracy of validation. What a line has not is missing (NaN)."""
    rows = []
    for line in lines:
        fit, seen = line.fit, line.validation
        matrix = seen.confusion_matrix if seen else None
        rows.append(
            {
                "arm": line.arm,
                "model": line.model,
                "round": line.round,
                "hospital": line.hospital,
                "failure": line.failure,
                "is_best_so_far": line.is_best_so_far,
                "seconds": line.seconds,
                "n_trained": fit.n_images if fit else None,
                "train_loss": fit.loss if fit else None,
                "train_accuracy": fit.accuracy if fit else None,
                "fit_seconds": fit.seconds if fit else None,
                "bytes_down": fit.bytes_down if fit else None,
                "bytes_up": fit.bytes_up if fit else None,
                "n_images": seen.n_images if seen else None,
                "loss": seen.loss if seen else None,
                "accuracy": seen.accuracy if seen else None,
                "macro_f1": seen.macro_f1 if seen else None,
                "balanced_accuracy": None if matrix is None else balanced_accuracy(np.array(matrix)),
            }
        )
    columns = "arm model round hospital failure is_best_so_far seconds n_trained train_loss train_accuracy fit_seconds"
    columns += " bytes_down bytes_up n_images loss accuracy macro_f1 balanced_accuracy"
    frame = pd.DataFrame(rows, columns=columns.split())
    texts = ("arm", "model", "hospital", "failure", "is_best_so_far")
    return frame.assign(**{str(name): pd.to_numeric(frame[name]) for name in frame.columns if name not in texts})


def split_counts(images: list[dict[str, Any]]) -> pd.DataFrame:
    """Count `dataset_splits.json`'s images: one row per hospital and label, one column per split, and `unlabelled`:
    those of the training images whose labels stayed unused."""
    frame = pd.DataFrame(images, columns=["hospital", "label", "split", "labelled"])
    counts = pd.crosstab([frame["hospital"], frame["label"]], frame["split"])
    counts = counts.reindex(columns=list(SPLITS), fill_value=0)
    unused = frame["labelled"].eq(False)  # used where it says nothing
    counts["unlabelled"] = unused.groupby([frame["hospital"], frame["label"]]).sum()
    return counts.reset_index().rename_axis(columns=None)


def run_stamp(run: Run, file: str) -> str:
    """The manifest's hash; while there is none, the file's own size and time."""
    manifest = run.folder / "manifest.json"
    try:
        if manifest.is_file():
            return sha256_of(manifest)
        stat = (run.folder / file).stat()
    except OSError:
        return "absent"
    return f"{stat.st_size}-{stat.st_mtime_ns}"


@st.cache_data(max_entries=20, show_spinner=False)
def _evaluation(folder: str, stamp: str) -> dict[str, Any]:
    return _known_schema(Run(Path(folder)), "evaluation.json")


@st.cache_data(max_entries=20, show_spinner=False)
def _privacy(folder: str, stamp: str) -> dict[str, Any]:
    return _known_schema(Run(Path(folder)), PRIVACY)


@st.cache_data(max_entries=20, show_spinner=False)
def _rounds(folder: str, stamp: str) -> pd.DataFrame:
    return rounds_table(Run(Path(folder)).rounds())


@st.cache_data(max_entries=20, show_spinner=False)
def _splits(folder: str, stamp: str) -> pd.DataFrame:
    return split_counts(_known_schema(Run(Path(folder)), "dataset_splits.json")["images"])


@st.cache_data(max_entries=20, show_spinner=False)
def _counts_told(folder: str, stamp: str) -> pd.DataFrame:
    """The same of hospitals on machines of their own, whose splits stay there: they told how many."""
    told = _known_schema(Run(Path(folder)), JOINED)["hospitals"]
    rows = [
        {"hospital": hospital, "label": label, "unlabelled": 0}
        | {part: counts[label] for part, counts in one["counts"].items()}
        for hospital, one in told.items()
        for label in one["counts"]["train"]
    ]
    return pd.DataFrame(rows)


@st.cache_data(max_entries=20, show_spinner=False)
def _audit(folder: str, stamp: str) -> Audit:
    return Audit.model_validate(_known_schema(Run(Path(folder)), "audit.json"))


def _known_schema(run: Run, name: str) -> dict[str, Any]:
    content = run.read_json(name)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != 1:
        raise RunError(f"{run.folder / name}: has schema {found!r}, unknown to this program; update it")
    return content
