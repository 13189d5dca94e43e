"""`python -m engine demo`: train the phantoms once, publish them, open the dashboard. What `make demo` runs."""

import subprocess
import sys
from pathlib import Path

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.published import PublishedVersion, current_version
from engine.results.run_folder import Run, list_runs

FEDERATION_FILE = Path("federations/phantoms.toml")
MODEL_NAME = "phantoms"
PROJECT = Path(__file__).resolve().parent.parent


def newest_run(artifacts: Path, federation: Federation) -> Run | None:
    """The newest sound run of exactly this federation, finished or not; a damaged one is passed over."""
    for run in reversed(list_runs(artifacts)):
        try:
            if run.federation == federation:
                if run.is_finished:
                    run.verify()
                return run
        except ConsiliumError:
            continue
    return None


def is_published(models: Path, run: Run) -> bool:
    """Whether the served version of the demo's model was made from this run and is sound."""
    try:
        version: PublishedVersion = current_version(models, MODEL_NAME)
        version.verify()
    except ConsiliumError:
        return False
    return version.manifest.run == run.name


def open_dashboard() -> int:
    """Serve the dashboard until it is stopped; returns its exit status."""
    try:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.address=localhost"]
        return subprocess.run(command, cwd=PROJECT, check=False).returncode
    except KeyboardInterrupt:
        return 0
