"""A run being written: what is new shows by itself, and the rest of the page is not run again."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg

from tests.test_pages import make_unfinished

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 60_000
ENDED = '[data-testid="stApp"][data-test-script-state="notRunning"]'

pytestmark = pytest.mark.browser


def test_a_new_round_shows_by_itself(
    serve_dashboard: Callable[[Path, Path], str],
    copy_run: Callable[[Path], Path],
    phantom_run: Path,
    browser: "sync_api.Browser",
    tmp_path: Path,
) -> None:
    whole = (phantom_run / "run-001" / "rounds.jsonl").read_text().splitlines(keepends=True)
    federated = [line for line in whole if '"model":"global"' in line]
    run = copy_run(tmp_path / "artifacts" / "run-001")
    make_unfinished(run)
    (run / "rounds.jsonl").write_text("".join(federated[:8]))
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    asked: list[BackMsg] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: asked.append(BackMsg.FromString(frame))))
    page.goto(f"{serve_dashboard(run.parent, tmp_path / 'models')}/Training")
    page.get_by_text("of 2: macro-F1").wait_for(timeout=PATIENCE_MS)
    page.locator(".js-plotly-plot").first.wait_for(timeout=PATIENCE_MS)
    asked_before = len(asked)
    (run / "rounds.jsonl").write_text("".join(federated))
    page.get_by_text("of 3: macro-F1").wait_for(timeout=PATIENCE_MS)
    since = [message.rerun_script for message in asked[asked_before:] if message.HasField("rerun_script")]
    assert since
    assert all(rerun.fragment_id for rerun in since), "only the part that changes is drawn again"
    page.close()
