"""A seat is free again when its reader closes the page."""

from collections.abc import Callable
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 60_000

pytestmark = pytest.mark.browser


def test_a_seat_is_free_when_its_reader_leaves(
    serve_dashboard: Callable[[Path, Path], str],
    browser: "sync_api.Browser",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSILIUM_SESSIONS", "1")
    address = serve_dashboard(tmp_path / "artifacts", tmp_path / "models")
    first, second = browser.new_context().new_page(), browser.new_context().new_page()
    first.goto(address)
    first.get_by_text("Published federations").wait_for(timeout=PATIENCE_MS)
    second.goto(address)
    second.get_by_text("every place is taken").wait_for(timeout=PATIENCE_MS)
    first.reload()
    first.get_by_text("Published federations").wait_for(timeout=PATIENCE_MS)
    first.context.close()
    published = second.get_by_text("Published federations")
    for _ in range(PATIENCE_MS // 2000):  # until the server has heard of it
        second.get_by_role("button", name="Try again").click()
        second.wait_for_timeout(2000)
        if published.count():
            break
    published.wait_for(timeout=PATIENCE_MS)
    second.context.close()
