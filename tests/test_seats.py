"""More readers than a small machine holds: they are told, and nobody else loses anything."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ui import seats

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "_taken", set())


@pytest.mark.parametrize(("given", "meant"), [("3", 3), ("", 20), ("0", 20), ("-1", 20), ("many", 20)])
def test_how_many_seats(given: str, meant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_SESSIONS", given)
    assert seats.seats() == meant


def test_the_reader_after_the_last_seat_is_told_and_sits_down_once_somebody_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONSILIUM_SESSIONS", "1")
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path))
    seats._taken.add("somebody else")  # AppTest's server takes every session for a connected one
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()
    assert [info.value for info in app.info] == [
        "This machine holds 1 reader at once, and every place is taken. "
        "One is free as soon as somebody closes the page."
    ]
    assert not app.subheader, "the page itself is not made"
    seats._taken.clear()
    app.button(key="try_again").click().run()
    assert app.subheader[0].value == "Published federations"
    assert len(seats._taken) == 1
    app.run()
    assert len(seats._taken) == 1, "a reader takes one seat, however often a page runs"
