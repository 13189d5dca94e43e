"""Every page in Chromium at two widths, light and dark: `PYTHONPATH=. python docs/screenshots.py FOLDER`.

With --docs the few that the README shows are written to docs/ instead. An image for Compare is given with --image.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Browser, Page, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("Home", "Hospitals", "Training", "Evaluation", "Compare", "Runs")
HEIGHTS_PX = {1280: 900, 400: 860}
DRAWN = '[data-testid="stApp"][data-test-script-state="notRunning"]'
PORT = 8597
WHOLE_PX = 2600
SETTLE_MS = 1500  # plotly and the map draw after the script has ended


@contextmanager
def dashboard() -> Iterator[str]:
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={PORT}", "--server.headless=true"]
    server = subprocess.Popen([*command, "--server.address=127.0.0.1"], cwd=PROJECT, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        yield address
    finally:
        server.terminate()
        server.wait()


def open_page(
    browser: Browser, address: str, name: str, width: int, height: int, scheme: str, model: str, image: Path | None
) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    paths = {"Home": "", "Compare": f"Compare?model={model}"}
    page.goto(f"{address}/{paths.get(name, name)}")
    page.locator("h1").first.wait_for(timeout=60_000)
    page.locator(DRAWN).wait_for(timeout=60_000)
    if name == "Compare":
        understood = page.get_by_role("button", name="I understand")
        understood.click(timeout=60_000)
        understood.wait_for(state="detached", timeout=60_000)
        page.locator(DRAWN).wait_for(timeout=60_000)
        if image is not None:
            page.locator("input[type=file]").set_input_files(image)
            page.locator(".opinions li:has(.bar)").last.wait_for(timeout=60_000)
    page.wait_for_timeout(SETTLE_MS)
    return page


def main(
    folder: Annotated[Path, typer.Argument(help="Where the pictures go")] = Path("docs"),
    image: Annotated[Path | None, typer.Option(help="An image to show on Compare")] = None,
    model: Annotated[str, typer.Option(help="The published model on Compare")] = "brain-mri",
    docs: Annotated[bool, typer.Option(help="Only what the README shows")] = False,
    chromium: Annotated[str, typer.Option(help="The browser")] = "/usr/bin/chromium",
) -> None:
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(name, width, scheme) for name in PAGES for width in HEIGHTS_PX for scheme in ("light", "dark")]
    if docs:
        wanted = [(name, 1280, "light") for name in PAGES] + [("Compare", 400, "dark")]
    with dashboard() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, scheme in wanted:
            height = HEIGHTS_PX[width] if docs else WHOLE_PX  # a page scrolls inside itself
            page = open_page(browser, address, name, width, height, scheme, model, image)
            page.screenshot(path=folder / f"{name.lower()}-{width}-{scheme}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    typer.run(main)
