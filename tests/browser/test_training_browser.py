"""A training in a real Chromium: from the form over Stop, a reload and Resume to the finished run."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.results.run_folder import Run
from tests.browser.test_accessible import serious_violations

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_MS = 240_000
ROUNDS = 60  # long enough to be stopped on a fast machine, short enough to end on a slow one

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="trainings are started from a page on Linux alone"),
]


def test_from_the_form_to_a_finished_run(
    serve_dashboard: Callable[[Path, Path], str],
    phantom_root: Path,
    browser: "sync_api.Browser",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSILIUM_TRAINING", "1")
    monkeypatch.setenv("CONSILIUM_DATA", str(phantom_root.parent))
    address = serve_dashboard(tmp_path / "artifacts", tmp_path / "models")
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="dark")
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}/Training")
    page.get_by_text("Start a training").click()
    for arm in ("Each hospital alone", "Pooled, for reference"):  # federated alone
        page.get_by_role("button", name=arm, pressed=True).click()
        page.get_by_role("button", name=arm, pressed=False).wait_for()
    rounds = page.get_by_label("Rounds", exact=True)
    rounds.fill(str(ROUNDS))
    rounds.press("Tab")
    page.get_by_role("button", name="Estimate its cost").click()
    page.get_by_text("No image is among them").wait_for()
    page.get_by_role("button", name="Start training").click()

    # The session that started it is led to it; it trains while the page only reads.
    page.get_by_text(re.compile(rf"Round \d+ of {ROUNDS} of the federated model")).wait_for()
    page.get_by_text(re.compile(r"Phantom \w+ \(simulated\): (waiting|training now|trained)")).first.wait_for()
    assert "run=run-001" in page.url
    run = Run(tmp_path / "artifacts" / "run-001")
    other = browser.new_context(viewport={"width": 400, "height": 860}).new_page()
    other.set_default_timeout(PATIENCE_MS)
    other.goto(f"{address}/Training?task=start")
    other.get_by_text("run-001 is being trained").wait_for()
    assert other.get_by_role("button", name="Estimate its cost").count() == 0

    page.get_by_text("The federated model was best after round").wait_for()
    page.locator(".st-key-stop button").click()
    page.get_by_role("button", name="Stop this training").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert serious_violations(page) == []  # dark, with a primary button
    assert not run.lock_file.exists()
    done = run.rounds()[-1].round
    assert done < ROUNDS
    page.reload()
    page.get_by_text("its whole rounds are kept").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator(".st-key-stop button").wait_for()

    page.get_by_text("Showing run-001", exact=True).wait_for()
    page.get_by_text("Show the log").click()
    page.get_by_label("Search the log").fill("by hand")
    page.get_by_label("Search the log").press("Enter")
    page.get_by_text("1 of", exact=False).first.wait_for()
    assert "WARNING stopped by hand" in page.locator(".st-key-log").inner_text()
    other.goto(f"{address}/Training?run=run-001")
    other.get_by_text(f"of {ROUNDS}: macro-F1").wait_for()
    run.verify(with_weights=True)
    rounds_of = [line.round for line in run.rounds() if line.hospital == "all"]
    assert rounds_of == list(range(1, ROUNDS + 1))
    log = (run.folder / "training.log").read_text()
    assert f"global: from round {done} to {ROUNDS}" in log
    page.close()
    other.context.close()
