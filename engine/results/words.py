"""Sentences that stand in several places, and numbers and lists as people read them, on pages, paper and screens."""

from collections.abc import Sequence

DISCLAIMER = "Research demonstration, not for diagnosis."
SHARED_IMAGES = "These models share training images, so agreement is no independent evidence."


def percent(fraction: float, digits: int = 1) -> str:
    """0.942 -> "94.2%". What is not quite all or nothing never reads as "100.0%" or "0.0%"."""
    smallest = 10.0**-digits
    value = 100 * fraction
    if 0 < value < smallest / 2:
        return f"<{smallest:.{digits}f}%"
    if 100 - smallest / 2 <= value < 100:
        return f">{100 - smallest:.{digits}f}%"
    return f"{value:.{digits}f}%"


def count(number: int, one: str, many: str | None = None) -> str:
    """1024, "image" -> "1,024 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def join_words(words: Sequence[str], last: str = "and") -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
