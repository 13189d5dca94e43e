"""What every reader of another system's file asks of it. The file may be anybody's: nothing in it is trusted."""

import json
import math
from typing import Any, Literal, NamedTuple, NoReturn

from engine.errors import RunError

MAX_LABEL = 120
Curves = tuple[tuple[int, float], ...]


class Reading(NamedTuple):
    """What a file says; see `Imported` for the shapes. `left_out` are its words that are no single figure."""

    system: Literal["Flower", "NVFlare"]
    form: str
    curves: dict[str, dict[str, Curves]]
    cross_site: dict[str, dict[str, dict[str, float]]]
    left_out: tuple[str, ...]


def parse_json(text: str) -> Any:
    """Raises RunError where it is no JSON, holds NaN or an infinity, or is nested beyond reason."""

    def refuse(constant: str) -> NoReturn:
        raise RunError(f"holds {constant}, which is no figure; mend it where it was written")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise RunError("is nested too deeply to be a result") from None
    except ValueError as error:
        raise RunError(f"is no JSON ({str(error)[:120]})") from None


def require_label(label: object, what: str) -> str:
    """A name of a metric, model or hospital as it may stand on a page."""
    if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL or not label.isprintable():
        raise RunError(f"{what}: {short(label)} is no name (printable, at most {MAX_LABEL} characters)")
    return label


def figure(value: object, what: str) -> float | None:
    """The number; None where it is something else, which is left out. Raises RunError for one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RunError(f"{what} is {short(value)}, which is no figure; mend it where it was written")
    return number


def require_object(value: object, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise RunError(f"{what}: {short(value)} stands where an object belongs")
    return value


def short(value: object) -> str:
    """As it may stand in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or nested beyond reason
        return "something too long to write"
    return text if len(text) <= 60 else f"{text[:57]}..."
