"""The notebooks run from top to bottom, in the order a newcomer opens them, on tiny phantoms."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.results.run_folder import find_run
from tests.conftest import PROJECT

NOTEBOOKS = ("train", "compare", "reload")
RUN = """
import json, os, sys
from pathlib import Path

here = os.getcwd()
for path in map(Path, sys.argv[1:]):
    os.chdir(here)
    space = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name} {cell['id']}", "exec"), space)
"""


def read_notebook(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PROJECT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return content


def test_all_notebooks_run(phantom_root: Path, tmp_path: Path) -> None:
    for name in ("federations", "models", "notebooks"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "run-001").symlink_to(PROJECT / "artifacts" / "run-001")
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "CONSILIUM_DATA": str(phantom_root.parent)}
    for name in ("CONSILIUM_MODELS", "CONSILIUM_ARTIFACTS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *(f"notebooks/{name}.ipynb" for name in NOTEBOOKS)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert find_run(tmp_path / "artifacts", "run-002").is_finished


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_no_output(name: str) -> None:
    """What ran on one machine, or shows one patient, does not travel with it."""
    notebook = read_notebook(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in notebook["cells"])


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in (PROJECT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)
