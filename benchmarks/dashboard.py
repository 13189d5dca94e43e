"""The dashboard in Chromium: cold start, warm pages, a reading, and the server's memory after every page.

Beside each time stands a bare Streamlit page's on the same machine in the same run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pairs import show
from playwright.sync_api import Page, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("Hospitals", "Training", "Evaluation", "Compare", "Runs")
BARE = "import streamlit as st\nst.title('bare')\nst.dataframe({'a': [1, 2, 3]})\n"
DRAWN = '[data-testid="stApp"][data-test-script-state="notRunning"]'
PORT = 8599
PATIENCE_SECONDS = 60


@contextmanager
def serve(app: Path, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """`before` is a command that runs the server and becomes it."""
    command = [
        *before,
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(app),
        f"--server.port={PORT}",
        "--server.headless=true",
    ]
    server = subprocess.Popen(
        [*command, "--server.address=127.0.0.1"], cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


def wait_for_server() -> None:
    until = time.perf_counter() + PATIENCE_SECONDS
    while time.perf_counter() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit("the dashboard did not answer")


def open_path(page: Page, path: str = "") -> float:
    """Seconds until the page stands and its script has ended."""
    started = time.perf_counter()
    page.goto(f"http://127.0.0.1:{PORT}/{path}", wait_until="commit")
    page.locator("h1").first.wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)
    return time.perf_counter() - started


def cold_start(page: Page, app: Path) -> float:
    """Seconds from starting the server to the first page drawn."""
    started = time.perf_counter()
    with serve(app):
        wait_for_server()
        open_path(page)
        return time.perf_counter() - started


def memory_megabytes(server: subprocess.Popen[bytes], field: str = "VmRSS") -> float:
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1000
    return float("nan")


def open_compare(page: Page, name: str) -> None:
    open_path(page, f"Compare?model={name}")
    understood = page.get_by_role("button", name="I understand")
    understood.click(timeout=PATIENCE_SECONDS * 1000)
    understood.wait_for(state="detached", timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)


def read_image(page: Page, image: Path) -> tuple[float, float]:
    """Seconds from giving Compare an image to every model's row, all maps computed, and from there to one laid over."""
    started = time.perf_counter()
    page.locator('input[type="file"]').set_input_files(image)
    page.locator(".opinions li:has(.bar)").last.wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)
    opinions = time.perf_counter() - started
    page.get_by_text("One model's heatmap").click()
    page.locator(".legend").wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)
    return opinions, time.perf_counter() - started - opinions


def exchange_image(page: Page, image: Path) -> float:
    """Seconds from giving another image, the first taken away and the heatmap still chosen, to rows and map of it."""
    page.get_by_role("button", name=f"Remove {image.name}").click()
    page.get_by_role("heading", name="Who will answer").wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)
    another = {"name": f"another{image.suffix}", "mimeType": "application/octet-stream", "buffer": image.read_bytes()}
    started = time.perf_counter()
    page.locator('input[type="file"]').set_input_files(files=[another])
    page.locator(".opinions li:has(.bar)").last.wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(".legend").wait_for(timeout=PATIENCE_SECONDS * 1000)
    page.locator(DRAWN).wait_for(timeout=PATIENCE_SECONDS * 1000)
    return time.perf_counter() - started


def main(
    name: Annotated[str, typer.Argument(help="A published model")],
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or DICOM")],
    repeats: int = 5,
    uploads: Annotated[int, typer.Option(help="Uploads to Compare, each on a page of its own")] = 50,
    chromium: Annotated[str, typer.Option(help="The browser")] = "/usr/bin/chromium",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    rows: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        pairs = [(cold_start(page, PROJECT / "app.py"), cold_start(page, bare)) for _ in range(repeats)]
        rows["cold start"] = _row(pairs)
        with serve(bare):
            wait_for_server()
            open_path(page)
            plain = [open_path(page) for _ in range(repeats)]
        with serve(PROJECT / "app.py") as server:
            wait_for_server()
            for path in ("", *PAGES):
                at = f"{path}?model={name}" if path == "Compare" else path
                open_path(page, at)
                seen = [open_path(page, at) for _ in range(repeats)]
                rows[f"warm {path or 'Home'}"] = _row(list(zip(seen, plain, strict=True)), memory_megabytes(server))
            readings = []
            together = []
            for _ in range(uploads):
                open_compare(page, name)
                readings.append(read_image(page, image))
                together.append(exchange_image(page, image))
            for what, seconds in (
                ("an upload to opinions", [opinions for opinions, _ in readings]),
                ("then to a heatmap", [heatmap for _, heatmap in readings]),
                ("an upload to opinions and heatmap", together),
            ):
                rows[f"{what}, median"] = _row([(one, None) for one in seconds])
                rows[f"{what}, p95"] = _row([(statistics.quantiles(seconds, n=20)[-1], None)])
            rows["after them"] = _row([], memory_megabytes(server))
            rows["peak"] = _row([], memory_megabytes(server, "VmHWM"))
        browser.close()
    show(f"The dashboard with {name}, and a bare Streamlit page (goal: memory <= 400 MB)", rows, as_json=as_json)


def _row(pairs: list[tuple[float, float | None]], megabytes: float | None = None) -> dict[str, object]:
    bare = [seconds for _, seconds in pairs if seconds is not None]
    return {
        "ours_seconds": statistics.median(seconds for seconds, _ in pairs) if pairs else "",
        "bare_seconds": statistics.median(bare) if bare else "",
        "ratio": statistics.median(ours / plain for ours, plain in pairs if plain is not None) if bare else "",
        "megabytes": megabytes if megabytes is not None else "",
    }


if __name__ == "__main__":
    typer.run(main)
