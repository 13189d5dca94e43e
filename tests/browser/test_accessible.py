"""Every page in Chromium, light and dark: axe-core finds no serious violation of WCAG 2.1 AA."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config import Federation
from ui.examples import draw_example

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 60_000
ENDED = '[data-testid="stApp"][data-test-script-state="notRunning"]'
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# Streamlit's own: a sparkline's marks have no title, a wide table scrolls without taking the keyboard's focus.
STREAMLITS = {("svg-img-alt", "metric_chart"), ("scrollable-region-focusable", "st-emotion-cache")}

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(serve_dashboard: Callable[[Path, Path], str], phantom_run: Path, phantom_version: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSILIUM_TRAINING", "1")
        yield serve_dashboard(phantom_run, phantom_version)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["", "Hospitals", "Training", "Training?task=start", "Evaluation", "Compare", "Runs"])
def test_no_serious_violation(
    address: str, browser: "sync_api.Browser", name: str, scheme: str, tiny_federation: Federation
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme=scheme)
    page.goto(f"{address}/{name}")
    page.locator("h1").first.wait_for(timeout=PATIENCE_MS)
    if name == "Compare":
        _read(page, draw_example(tiny_federation, "pituitary", 1).content)
    page.wait_for_timeout(500)  # the script has begun by now
    page.locator(ENDED).wait_for(timeout=PATIENCE_MS)
    page.wait_for_function("() => !document.querySelector('[data-stale=true]')", timeout=PATIENCE_MS)  # pale until new
    page.wait_for_timeout(1500)  # charts draw, and colours fade in, after the script has ended
    serious = serious_violations(page)
    page.close()
    assert not serious, "\n".join(serious)


def serious_violations(page: "sync_api.Page") -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    page.add_style_tag(content="* {transition: none !important; animation: none !important}")  # no half-faded colours
    found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
        and not any(violation["id"] == rule and mark in node["html"] for rule, mark in STREAMLITS)
    ]


def _read(page: "sync_api.Page", content: bytes) -> None:
    understood = page.get_by_role("button", name="I understand")
    understood.click(timeout=PATIENCE_MS)
    understood.wait_for(state="detached", timeout=PATIENCE_MS)
    page.locator(ENDED).wait_for(timeout=PATIENCE_MS)
    page.set_input_files("input[type=file]", files=[{"name": "s.png", "mimeType": "image/png", "buffer": content}])
    anyway = page.get_by_text("Show the opinions anyway")
    anyway.or_(page.locator(".opinions li:has(.bar)").first).first.wait_for(timeout=PATIENCE_MS)
    if anyway.count():
        anyway.click()
    page.locator(".opinions li:has(.bar)").nth(4).wait_for(timeout=PATIENCE_MS)
    page.get_by_text("One model's heatmap").click()
    page.locator(".legend").wait_for(timeout=PATIENCE_MS)
