"""Every layout that `export` writes, and the folder that it writes into."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from engine.errors import ConfigError, RunError
from engine.publishing.hugging_face import write_hugging_face
from engine.publishing.onnx_layout import write_run_onnx, write_version_onnx
from engine.results.published import PublishedVersion
from engine.results.run_folder import Run


class Layout(NamedTuple):
    """What is in it, and of what it is made."""

    holds: str
    of_run: bool
    of_version: bool


LAYOUTS = {
    "onnx": Layout("one ONNX file per model, labels, and a version's calibration", True, True),
    "hugging-face": Layout("README.md as the Hub's model card, beside what onnx holds", False, True),
    "mlflow": Layout("settings, curves, scores and papers, in a folder's mlflow.db or a tracking URI", True, False),
    "medisync": Layout("the global model as .pth, with its papers", True, False),
    "saved-models": Layout("the pooled model and each hospital's own as .pth", True, False),
    "poweranger": Layout("the global model of every round as .npz, and four CSV tables", True, False),
}


def export_run(run: Run, layout: str, to: Path) -> None:
    """Write the run as `layout` into `to`, a new or empty folder; a kill on the way leaves nothing there.

    Raises ConfigError for an unknown layout or a folder in use, RunError for what the run lacks or cannot be written.
    """
    require_layout(layout, of_run=True)
    from engine.publishing.reference_layouts import WRITERS  # has torch

    write = {"onnx": write_run_onnx, **WRITERS}[layout]

    def checked(folder: Path) -> None:
        run.verify(with_weights=True)
        run.require_labels()
        write(run, folder)

    _into_new_folder(to, checked)


def export_version(version: PublishedVersion, layout: str, to: Path) -> None:
    """The same of a published version, which is checked against its hashes first; needs no torch."""
    require_layout(layout, of_run=False)
    version.verify()
    write = {"onnx": write_version_onnx, "hugging-face": write_hugging_face}[layout]
    _into_new_folder(to, partial(write, version))


def describe(layout: str) -> str:
    """One line of help."""
    one = LAYOUTS[layout]
    made_of = [*(["run"] if one.of_run else []), *(["published version"] if one.of_version else [])]
    return f"{layout} ({' or '.join(made_of)}: {one.holds})"


def require_layout(layout: str, *, of_run: bool) -> None:
    """Raise ConfigError where there is no such layout of a run, or of a published version."""
    fitting = [name for name, one in LAYOUTS.items() if (one.of_run if of_run else one.of_version)]
    if layout in fitting:
        return
    of, other = ("a run", "a published version, NAME") if of_run else ("a published version", "a run, run-NNN")
    wrong = f"is of {other}" if layout in LAYOUTS else "no such layout"
    raise ConfigError(f"--layout '{layout}': {wrong}; of {of} there is {', '.join(fitting)}")


def _into_new_folder(to: Path, write: Callable[[Path], None]) -> None:
    target = to.resolve()
    if target == Path.cwd():
        raise ConfigError(f"--to {to}: is the folder you are in; give a new one")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"--to {to}: is there already and not an empty folder; give a new one")
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.exporting-"
        for left_over in target.parent.glob(f"{prefix}*"):  # of an export that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
            partly = Path(folder) / "export"
            partly.mkdir()
            write(partly)
            if target.is_dir():  # Windows renames over no folder, not even an empty one
                target.rmdir()
            partly.replace(target)
    except OSError as error:
        raise RunError(f"{to}: cannot write: {error.strerror or error}; give another folder to --to") from None
