"""Twenty readers at once: each gets the answer to their own image, and to no other."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.config import Federation
from ui.examples import draw_example

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SESSIONS = 20
PATIENCE_MS = 120_000
ENDED = '[data-testid="stApp"][data-test-script-state="notRunning"]'

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_no_answer_reaches_another_session(
    serve_dashboard: Callable[[Path, Path], str],
    phantom_version: Path,
    tiny_federation: Federation,
    browser: "sync_api.Browser",
    tmp_path: Path,
) -> None:
    """Every image has a width of its own, which the page says beside it."""
    address = serve_dashboard(tmp_path / "no-artifacts", phantom_version)
    drawn = Image.open(io.BytesIO(draw_example(tiny_federation, "pituitary", 1).content))
    pages = []
    for number in range(SESSIONS):
        file = tmp_path / f"{number}.png"
        drawn.resize((200 + number, 200)).save(file)
        page = browser.new_context().new_page()
        page.goto(f"{address}/Compare")
        pages.append((page, file))
    for page, _ in pages:
        page.get_by_role("button", name="I understand").click(timeout=PATIENCE_MS)
    for page, file in pages:
        page.get_by_role("button", name="I understand").wait_for(state="detached", timeout=PATIENCE_MS)
        page.locator(ENDED).wait_for(timeout=PATIENCE_MS)  # until then what stood lower may stand twice
        page.locator("input[type=file]").wait_for(state="attached", timeout=PATIENCE_MS)
        page.set_input_files("input[type=file]", file)
    for number, (page, _) in enumerate(pages):
        page.get_by_text(f"{200 + number} x 200 px").first.wait_for(timeout=PATIENCE_MS)
        widths = set(re.findall(r"(\d+) x 200 px", page.inner_text("body")))
        assert widths == {str(200 + number)}
        page.context.close()
