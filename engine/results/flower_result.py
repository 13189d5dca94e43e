"""What a Flower strategy leaves behind: its `Result`, the `History` of older versions, or the log that ends in either.

Flower writes no file of its own. People keep the console's log (`flwr run . --stream`, `flwr log`), which ends in the
whole result, or dump the object as JSON; docs/bridges.md has the two lines. Read against flwr 1.41.0:
flwr/serverapp/strategy/result.py, strategy.py (`Strategy.start`), flwr/server/history.py and server.py (`run_fl`).
Figures are means that the strategy made over the replies of a round, except the server's own evaluation.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from engine.errors import RunError
from engine.results.foreign import Curves, Reading, figure, require_label, require_object, short

RESULT = {
    "train_metrics_clientapp": "train",
    "evaluate_metrics_clientapp": "evaluate",
    "evaluate_metrics_serverapp": "server",
}
HISTORY_LOSSES = {"losses_distributed": "evaluate", "losses_centralized": "server"}
HISTORY = {"metrics_distributed_fit": "train", "metrics_distributed": "evaluate", "metrics_centralized": "server"}
TITLES = {  # of a log's last block, and the key of the same in JSON
    "Aggregated ClientApp-side Train Metrics:": "train_metrics_clientapp",
    "Aggregated ClientApp-side Evaluate Metrics:": "evaluate_metrics_clientapp",
    "ServerApp-side Evaluate Metrics:": "evaluate_metrics_serverapp",
    "History (loss, distributed):": "losses_distributed",
    "History (loss, centralized):": "losses_centralized",
    "History (metrics, distributed, fit):": "metrics_distributed_fit",
    "History (metrics, distributed, evaluate):": "metrics_distributed",
    "History (metrics, centralized):": "metrics_centralized",
}
ENDS = ("Final results:", "[SUMMARY]")
LINE = re.compile(
    r"(?:\x1b\[\d+m)*(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d{4}-\d\d-\d\d [\d:,]+)?(?:\x1b\[\d+m)*: *(?P<said>.*)"
)
NO_FIGURE = re.compile(r"\b(nan|inf)\b")
LOSS = re.compile(r"round (\d{1,9}): (\S+)")


def read_flower_json(content: Any) -> Reading | None:
    """None where no key is one of Flower's. Raises RunError for one that holds something else than Flower writes."""
    if not isinstance(content, dict):
        return None
    left_out: list[str] = []
    found: list[tuple[str, str, Any, Any]] = []  # where, metric, round, value
    known = [key for key in (*RESULT, *HISTORY_LOSSES, *HISTORY) if content.get(key) is not None]
    if not known:
        return None
    for key in known:
        if key in RESULT:
            for number, metrics in require_object(content[key], key).items():
                rows = require_object(metrics, f"{key}, round {_round(number)}")
                found += [(RESULT[key], metric, number, value) for metric, value in rows.items()]
        elif key in HISTORY_LOSSES:
            found += [(HISTORY_LOSSES[key], "loss", *pair) for pair in _pairs(content[key], key)]
        else:
            for metric, pairs in require_object(content[key], key).items():
                found += [(HISTORY[key], metric, *pair) for pair in _pairs(pairs, key)]
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for where, metric, number, value in found:
        what = f"{where}, {require_label(metric, where)}, round {_round(number)}"
        point = figure(value, what)
        if point is None:
            left_out.append(what)
            continue
        points = curves.setdefault(where, {}).setdefault(metric, {})
        if points.setdefault(_round(number), point) != point:
            raise RunError(f"{what} stands twice with two values; keep the training that is meant")
    form = f"Flower's {'Result' if any(key in RESULT for key in known) else 'History'}, as JSON"
    return Reading("Flower", form, {where: _sorted(metrics) for where, metrics in curves.items()}, {}, tuple(left_out))


def read_flower_log(text: str) -> Reading:
    """The result at the end of a log, to the five digits that it prints. Raises RunError where there is none, several,
    or one that is not whole."""
    lines = [match["said"].strip() if (match := LINE.fullmatch(row)) else None for row in text.splitlines()]
    ends = [place for place, said in enumerate(lines) if said in ENDS]
    if not ends:
        raise RunError(
            "is neither JSON nor a log that ends in Flower's result ('Final results:' or '[SUMMARY]'); a training that "
            "was stopped has none"
        )
    if len(ends) > 1:
        raise RunError(f"is the log of {len(ends)} trainings; cut it so that one is left")
    content: dict[str, Any] = {}
    for title, rows in _blocks(said for said in lines[ends[0] + 1 :] if said is not None):
        key = TITLES[title]
        try:
            content[key] = _losses(rows) if key in HISTORY_LOSSES else ast.literal_eval("\n".join(rows))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            if NO_FIGURE.search("\n".join(rows)):
                raise RunError(f"'{title}' holds nan or inf, which is no figure; that training diverged") from None
            raise RunError(f"'{title}' is not as Flower prints it; the log is cut or mixed with another") from None
    reading = read_flower_json(content)
    if reading is None:
        raise RunError("its log ends before the result; give a whole one")
    return reading._replace(form=reading.form.replace("as JSON", "from a log"))


def _blocks(said: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """Each title with the rows under it."""
    title = ""
    rows: list[str] = []
    for row in said:
        if row in TITLES or not row:
            if title:
                yield title, rows
            title, rows = (row, []) if row in TITLES else ("", [])
        elif title:
            rows.append(row)
    if title:
        yield title, rows


def _losses(rows: list[str]) -> list[tuple[str, str]]:
    found = []
    for row in rows:
        match = LOSS.fullmatch(row)
        if match is None:
            raise ValueError(row)
        found.append((match[1], match[2]))
    return found


def _pairs(content: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """[[round, value], ...] as JSON has a history's tuples."""
    if not isinstance(content, list | tuple):
        raise RunError(f"{key}: holds no list of (round, value)")
    for pair in content:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RunError(f"{key}: holds no list of (round, value)")
        yield pair[0], pair[1]


def _round(number: Any) -> int:
    """JSON makes text of a whole number that is a key."""
    text = number if isinstance(number, str) else short(number)
    if isinstance(number, bool) or not re.fullmatch(r"\d{1,9}", text):
        raise RunError(f"{text[:40]!r} is no number of a round")
    return int(text)


def _sorted(metrics: dict[str, dict[int, float]]) -> dict[str, Curves]:
    return {metric: tuple(sorted(points.items())) for metric, points in metrics.items()}
