"""A finished run as one zip: what its manifest lists, the manifest, the audit log, and nothing else."""

import shutil
import tempfile
import zipfile
from io import BufferedReader
from pathlib import Path

from engine.errors import RunError
from engine.results.audit_log import AUDIT_LOG
from engine.results.run_folder import Run


def weights_bytes(run: Run) -> int:
    """Of those weights files of a finished run that are on this machine."""
    entries = run.manifest.files.items()
    return sum(entry.bytes for name, entry in entries if entry.detached and (run.folder / name).is_file())


def why_no_archive(run: Run) -> str:
    """What stands in the way of a zip, before it is begun; empty where nothing does."""
    entries = run.manifest.files.items()
    for name, entry in entries:
        if not entry.detached and not (run.folder / name).is_file():
            return f"{run.folder / name}: is missing; the run folder is damaged, restore it from a copy"
    n_bytes = sum(entry.bytes for _, entry in entries)
    if shutil.disk_usage(tempfile.gettempdir()).free < n_bytes:
        return f"{tempfile.gettempdir()}: has no room for the zip; free disk space"
    return ""


def archive_run(run: Run, *, with_weights: bool) -> BufferedReader:
    """The zip, open at its start; its file goes with its last reader. Built on the disk, a block at a time.

    Weights that are not on this machine are left out: a run folder may lack them. Raises RunError where another file
    is missing, or where the disk takes no more.
    """
    names = [*run.manifest.files, "manifest.json"]
    if (run.folder / AUDIT_LOG).is_file():
        names.append(AUDIT_LOG)
    detached = {name for name, entry in run.manifest.files.items() if entry.detached}
    try:
        with tempfile.NamedTemporaryFile(suffix=".zip") as file:  # removed here, read on through the open file below
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                for name in names:
                    path = run.folder / name
                    if name in detached and not (with_weights and path.is_file()):
                        continue
                    how = zipfile.ZIP_STORED if name in detached else zipfile.ZIP_DEFLATED  # weights hardly shrink
                    archive.write(path, f"{run.name}/{name}", how)
            file.flush()
            return Path(file.name).open("rb")
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: is missing; the run folder is damaged, restore it from a copy") from None
    except OSError as error:
        raise RunError(f"{run.folder}: cannot make its zip: {error.strerror or error}; free disk space") from None
