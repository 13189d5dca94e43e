"""Numbers as people read them."""

import pytest

from engine.results.words import count, join_words, percent
from ui.words import duration, format_bytes


@pytest.mark.parametrize(
    ("fraction", "read"),
    [(0.942, "94.2%"), (0.0, "0.0%"), (1.0, "100.0%"), (0.5, "50.0%"), (0.99996, ">99.9%"), (0.00004, "<0.1%")],
)
def test_percent(fraction: float, read: str) -> None:
    assert percent(fraction) == read


def test_percent_without_decimals() -> None:
    assert percent(0.96, 0) == "96%"
    assert percent(0.999, 0) == ">99%"


def test_count() -> None:
    assert count(1024, "image") == "1,024 images"
    assert count(1, "image") == "1 image"
    assert count(0, "image") == "0 images"
    assert count(2, "copy", "copies") == "2 copies"


@pytest.mark.parametrize(
    ("number", "read"),
    [
        (1, "1 byte"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (44_700_000, "44.7 MB"),
        (999_990, "1.0 MB"),
        (2e12, "2.0 TB"),
    ],
)
def test_format_bytes(number: float, read: str) -> None:
    assert format_bytes(number) == read


@pytest.mark.parametrize(
    ("seconds", "read"),
    [
        (0.42, "0.4 s"), (9.96, "10 s"), (12, "12 s"), (59.7, "1 min"), (192, "3 min 12 s"), (180, "3 min"),
        (3_600, "1 h"), (5_430, "1 h 30 min"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, read: str) -> None:
    assert duration(seconds) == read


def test_join_words() -> None:
    assert join_words([]) == ""
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b"]) == "a and b"
    assert join_words(["a", "b", "c"], "or") == "a, b or c"
