"""The map of hospitals draws in a real Chromium that reaches nothing but this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PROJECT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine"),
]


@pytest.fixture(scope="module")
def address(phantom_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard over two copies of the phantom run, on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    artifacts = tmp_path_factory.mktemp("map-artifacts")
    for name in ("run-001", "run-002"):
        shutil.copytree(phantom_run / "run-001", artifacts / name)
    log = artifacts / "server.log"
    environment = {**os.environ, "CONSILIUM_ARTIFACTS": str(artifacts), "CONSILIUM_MODELS": str(artifacts / "models")}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.address=127.0.0.1"]
    command += [f"--server.port={port}", "--server.headless=true", "--server.fileWatcherType=none"]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture
def page() -> Iterator["sync_api.Page"]:
    """Every request beyond loopback is refused and noted in `page.refused`."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.refused = []

        def decide(route: "sync_api.Route") -> None:
            parts = urlsplit(route.request.url)
            if parts.scheme in ("data", "blob") or parts.hostname == "127.0.0.1":
                route.continue_()
            else:
                page.refused.append(route.request.url)
                route.abort()

        page.route("**/*", decide)
        yield page
        browser.close()


def test_coastline_and_pins_draw_without_internet(page: "sync_api.Page", address: str) -> None:
    page.goto(f"{address}/Hospitals")
    leaflet = page.frame_locator("iframe[title*='folium']")
    pins = leaflet.locator("path.leaflet-interactive[fill='#e69f00'], path.leaflet-interactive[fill='#56b4e9']")
    pins.first.wait_for(timeout=PATIENCE_MS)
    assert pins.count() == 2
    assert leaflet.locator(".leaflet-marker-icon").all_inner_texts() == ["1", "2", "3"], "every pin has its number"
    # Inside the frame, on the screen, and not a dot: the view is zoomed to the hospitals.
    frame = leaflet.locator("#map_div").bounding_box()
    for pin in pins.all():
        box = pin.bounding_box()
        assert box["width"] >= 12
        assert frame["x"] < box["x"] < frame["x"] + frame["width"]
        assert frame["y"] < box["y"] < frame["y"] + frame["height"]
    outlines = leaflet.locator("path").evaluate_all("paths => paths.map(path => path.getAttribute('d').length)")
    assert max(outlines) > 3000, "the coastline is one long path"
    pins.first.hover()
    tooltip = leaflet.locator(".leaflet-tooltip")
    tooltip.wait_for(timeout=PATIENCE_MS)
    assert "(simulated)" in tooltip.inner_text()
    assert page.refused == []


def test_a_link_to_a_run_survives_a_reload(page: "sync_api.Page", address: str) -> None:
    """On a server where nothing ran before, and the choice follows to the next page."""
    page.goto(f"{address}/Evaluation?run=run-001")
    page.get_by_text("Showing run-001").wait_for(timeout=PATIENCE_MS)
    page.reload()
    page.get_by_text("Showing run-001").wait_for(timeout=PATIENCE_MS)
    assert "run=run-001" in page.url
    page.get_by_test_id("stSidebarNav").get_by_text("Training").click()
    page.get_by_text("The federated model was best").wait_for(timeout=PATIENCE_MS)
    page.get_by_text("Showing run-001").wait_for(timeout=PATIENCE_MS)
    page.locator(".js-plotly-plot").first.wait_for(timeout=PATIENCE_MS)
    assert page.refused == []
