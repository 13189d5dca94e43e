"""A slice goes in through a real Chromium and five opinions come out; nothing leaves this machine."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.config import Federation
from ui.examples import draw_example

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
PATIENCE_MS = 60_000
ENDED = '[data-testid="stApp"][data-test-script-state="notRunning"]'

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(
    serve_dashboard: Callable[[Path, Path], str], phantom_version: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A fresh server with the phantoms published and no run."""
    return serve_dashboard(tmp_path_factory.mktemp("no-artifacts"), phantom_version)


@pytest.fixture
def slice_file(tiny_federation: Federation, tmp_path: Path) -> Path:
    file = tmp_path / "slice.png"
    file.write_bytes(draw_example(tiny_federation, "pituitary", 1).content)
    return file


def test_upload_to_opinions(address: str, browser: "sync_api.Browser", slice_file: Path) -> None:
    """By a deep link on a server that nobody asked anything before; then the image is taken away again."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    asked = _watch(page)
    _open_compare(page, address)
    page.set_input_files("input[type=file]", slice_file)
    _insist(page)

    rows = page.locator(".opinions li:has(.bar)")
    rows.nth(4).wait_for(timeout=PATIENCE_MS)
    assert rows.count() == 5
    assert "Federated" in rows.first.inner_text()
    assert "Pooled, for reference" in rows.last.inner_text()
    assert page.get_by_role("heading", name="Federated: ").is_visible()
    assert "no independent evidence" in page.inner_text("body")
    assert "Bars are calibrated" in page.inner_text("body")
    image = page.get_by_alt_text("The image the opinions are about")
    assert image.evaluate("image => image.complete && image.naturalWidth") == 128
    assert page.locator(".opinions .chip").count() >= 5
    if page.get_by_text("Show the opinions anyway").count() == 0:  # else the refusal comes first
        bottom = rows.last.evaluate("row => row.getBoundingClientRect().bottom")
        assert bottom <= 1000, f"the last opinion ends at {bottom} px, below the first screenful"

    page.get_by_text("One model's heatmap").click()
    page.locator(".legend").wait_for(timeout=PATIENCE_MS)
    assert image.evaluate("image => image.naturalWidth") == 512
    page.locator(ENDED).wait_for(timeout=PATIENCE_MS)  # each run of the page gives the button another file to ask for
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.get_by_role("button", name="Report as PDF").click()
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")

    page.get_by_role("button", name="Remove slice.png").click()
    page.get_by_role("heading", name="Who will answer").wait_for(timeout=PATIENCE_MS)
    rows.first.wait_for(state="detached", timeout=PATIENCE_MS)
    image.wait_for(state="detached", timeout=PATIENCE_MS)
    assert asked, "the page asked for nothing: the watch is broken"
    assert not _strangers(asked)
    page.close()


def test_several_images_and_a_reader_who_goes_first(
    address: str, browser: "sync_api.Browser", slice_file: Path, tmp_path: Path
) -> None:
    """With the keyboard, where it matters: the note, the reader's label, the button."""
    no_image = tmp_path / "notes.png"
    no_image.write_text("no image")
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    _open_compare(page, address)
    page.get_by_text("Read first, compare later").click()
    page.set_input_files("input[type=file]", [slice_file, no_image])
    page.get_by_role("cell", name="cannot be read").wait_for(timeout=PATIENCE_MS)
    _insist_or_read(page)
    page.locator(".opinions li:has(.bar)").nth(4).wait_for(timeout=PATIENCE_MS)
    page.close()


def test_an_upload_over_the_limit_is_refused_in_one_line_and_the_next_is_read(
    address: str, browser: "sync_api.Browser", slice_file: Path, tmp_path: Path
) -> None:
    too_large = tmp_path / "study.png"
    with too_large.open("wb") as file:
        file.truncate(26_500_000)  # .streamlit/config.toml allows 25 MB
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    _open_compare(page, address)
    page.set_input_files("input[type=file]", too_large)
    page.get_by_text("File must be 25.0MB or smaller").wait_for(timeout=PATIENCE_MS)
    assert page.locator(".opinions li:has(.bar)").count() == 0
    page.set_input_files("input[type=file]", slice_file)
    _insist(page)
    page.locator(".opinions li:has(.bar)").nth(4).wait_for(timeout=PATIENCE_MS)
    page.close()


def test_a_phone_needs_no_sideways_scroll(address: str, browser: "sync_api.Browser", slice_file: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 860})
    asked = _watch(page)
    _open_compare(page, address)
    page.set_input_files("input[type=file]", slice_file)
    _insist(page)
    page.locator(".opinions li:has(.bar)").nth(4).wait_for(timeout=PATIENCE_MS)
    page.get_by_text("All probabilities as a table").click()
    page.get_by_role("table").wait_for(timeout=PATIENCE_MS)
    page.get_by_text("Difference", exact=True).click()
    page.locator(".legend").wait_for(timeout=PATIENCE_MS)
    page.get_by_text("Adjust the view").click()
    page.get_by_text("4x", exact=True).click()
    page.get_by_text("Part shown: top to bottom").wait_for(timeout=PATIENCE_MS)
    assert _sideways_px(page) == 0
    legend = page.locator(".legend").bounding_box()
    assert legend["x"] >= 0
    assert legend["x"] + legend["width"] <= 400

    page.goto(address)
    page.get_by_text("Macro-F1 of the federated model").wait_for(timeout=PATIENCE_MS)
    assert _sideways_px(page) == 0
    assert not _strangers(asked)
    page.close()


def test_home_leads_to_the_opinions_of_a_published_version(address: str, browser: "sync_api.Browser") -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(address)
    page.get_by_role("link", name="Ask its 5 models").click(timeout=PATIENCE_MS)
    page.get_by_role("heading", name="Who will answer").wait_for(timeout=PATIENCE_MS)
    assert "model=phantoms" in page.url
    page.close()


def _open_compare(page: "sync_api.Page", address: str) -> None:
    """By a deep link, and past the note, by keyboard."""
    page.goto(f"{address}/Compare")
    page.get_by_role("heading", name="What each would say about this image").wait_for(timeout=PATIENCE_MS)
    understood = page.get_by_role("button", name="I understand")
    understood.wait_for(timeout=PATIENCE_MS)
    page.locator("input[type=file]").wait_for(state="attached", timeout=PATIENCE_MS)
    understood.focus()
    page.keyboard.press("Enter")
    understood.wait_for(state="detached", timeout=PATIENCE_MS)
    page.locator(ENDED).wait_for(timeout=PATIENCE_MS)  # until then what stood lower may stand twice


def _insist(page: "sync_api.Page") -> None:
    """A tiny model's gate may refuse anything; the opinions are wanted all the same."""
    page.get_by_text("Show the opinions anyway").or_(page.locator(".opinions li:has(.bar)").first).first.wait_for(
        timeout=PATIENCE_MS
    )
    if page.get_by_text("Show the opinions anyway").count():
        page.get_by_text("Show the opinions anyway").click()


def _insist_or_read(page: "sync_api.Page") -> None:
    """To the opinions: past a refusal where there is one, and past the reader's own label."""
    question = page.get_by_role("radiogroup", name="What do you see?")
    page.get_by_text("Show the opinions anyway").or_(question).first.wait_for(timeout=PATIENCE_MS)
    if page.get_by_text("Show the opinions anyway").count():
        page.get_by_text("Show the opinions anyway").click()
    question.wait_for(timeout=PATIENCE_MS)
    assert page.locator(".opinions li:has(.bar)").count() == 0
    question.get_by_text("glioma").click()
    page.get_by_role("button", name="Show the opinions", disabled=False).click(timeout=PATIENCE_MS)


def _watch(page: "sync_api.Page") -> list[str]:
    """Every address the page asks for from now on, WebSockets too."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    return asked


def _strangers(asked: list[str]) -> list[str]:
    """Those that are neither on this machine nor within the page itself."""
    return [
        url for url in asked if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname not in LOOPBACK
    ]


def _sideways_px(page: "sync_api.Page") -> int:
    """How far the page itself can be scrolled to the right."""
    return int(
        page.evaluate(
            """() => Math.max(...[document.documentElement, document.querySelector("[data-testid=stMain]")]
                .map(part => part.scrollWidth - part.clientWidth))"""
        )
    )
