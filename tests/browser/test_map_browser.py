"""The map of hospitals draws in a real Chromium that reaches nothing but this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 60_000

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(
    serve_dashboard: Callable[[Path, Path], str],
    copy_run: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A dashboard over two copies of the phantom run."""
    artifacts = tmp_path_factory.mktemp("map-artifacts")
    for name in ("run-001", "run-002"):
        copy_run(artifacts / name)
    return serve_dashboard(artifacts, artifacts / "models")


@pytest.fixture
def page(browser: "sync_api.Browser") -> Iterator["sync_api.Page"]:
    """Every request beyond loopback is refused and noted in `page.refused`."""
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
    page.close()


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
