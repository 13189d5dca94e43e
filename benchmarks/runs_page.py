"""The Runs page over many runs: cold, then warm, in Chromium beside a bare Streamlit page, and as a script alone.

The runs are copies of one run, each with a seed and a time of its own; their large files are hard links of one copy.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from dashboard import BARE, PROJECT, memory_megabytes, open_path, serve, wait_for_server
from pairs import show
from playwright.sync_api import sync_playwright
from streamlit.testing.v1 import AppTest

from engine.results.files import sha256_of, write_json
from engine.results.notes import write_note
from engine.results.run_folder import Run

OWN_FILES = ("config.json", "manifest.json")


def lay_out(source: Path, artifacts: Path, n_runs: int) -> None:
    """run-001 ... as finished runs that verify, every fifth with a note and two tags."""
    first = artifacts / "run-001"
    shutil.copytree(source, first, ignore=shutil.ignore_patterns("weights", "audit-log.jsonl"))
    for number in range(1, n_runs + 1):
        folder = artifacts / f"run-{number:03d}"
        if folder != first:
            shutil.copytree(first, folder, copy_function=os.link, ignore=shutil.ignore_patterns(*OWN_FILES))
        _own(folder, first, number)


def _own(folder: Path, first: Path, number: int) -> None:
    started = f"2026-11-{1 + number % 28:02d}T{number % 24:02d}:00:00+00:00"
    config, manifest = (json.loads((first / name).read_text(encoding="utf-8")) for name in OWN_FILES)
    config["federation"]["training"]["seed"] = number
    config["started_at"] = started
    write_json(folder / "config.json", config)
    written = {"sha256": sha256_of(folder / "config.json"), "bytes": (folder / "config.json").stat().st_size}
    files = {**manifest["files"], "config.json": {**written, "detached": False}}
    given = {"run": folder.name, "started_at": started, "files": files, "audit_log": None}
    write_json(folder / "manifest.json", {**manifest, **given})
    if number % 5 == 0:
        write_note(Run(folder), f"Seed {number}.", ["seeds", f"batch-{number // 50}"])


def main(
    n_runs: Annotated[int, typer.Option(help="Run folders")] = 500,
    source: Annotated[Path, typer.Option(help="The run that is copied")] = PROJECT / "artifacts" / "run-001",
    repeats: int = 9,
    chromium: Annotated[str, typer.Option(help="The browser")] = "/usr/bin/chromium",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    rows: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        artifacts = Path(temporary) / "artifacts"
        artifacts.mkdir()
        lay_out(source, artifacts, n_runs)
        os.environ["CONSILIUM_ARTIFACTS"] = str(artifacts)
        bare = Path(temporary) / "bare.py"
        bare.write_text(BARE)
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        with serve(bare):
            wait_for_server()
            open_path(page)
            rows["a bare Streamlit page, in Chromium"] = _row([open_path(page) for _ in range(repeats)])
        with serve(PROJECT / "app.py") as server:
            wait_for_server()
            open_path(page)
            rows["cold, in Chromium"] = _row([open_path(page, "Runs")])
            for what, path in (("warm", "Runs"), ("warm, compared", "Runs?run=run-001&view=compare&compare=run-002")):
                open_path(page, path)
                seconds = [open_path(page, path) for _ in range(repeats)]
                rows[f"{what}, in Chromium"] = _row(seconds, memory_megabytes(server))
        app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=120).switch_page("pages/5_Runs.py").run()
        rows["warm, the script alone"] = _row([_script(app) for _ in range(repeats)])
    show(f"The Runs page with {n_runs} runs (goal: <= 1.5 s warm)", rows, as_json=as_json)


def _script(app: AppTest) -> float:
    started = time.perf_counter()
    app.run()
    return time.perf_counter() - started


def _row(seconds: list[float], megabytes: float | None = None) -> dict[str, object]:
    return {
        "median_seconds": statistics.median(seconds),
        "worst_seconds": max(seconds),
        "server_megabytes": "" if megabytes is None else megabytes,
    }


if __name__ == "__main__":
    typer.run(main)
