"""Two ways to do one thing, timed in turns (A B A B ...), so that a busy neighbour slows both alike."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table


def time_pairs(ours: Callable[[], object], bare: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Seconds of (ours, bare) per repeat, after one unmeasured turn of each."""

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    ours(), bare()
    return [(seconds(ours), seconds(bare)) for _ in range(repeats)]


def summarise(pairs: Sequence[tuple[float, float]]) -> dict[str, object]:
    ratios = [ours / bare for ours, bare in pairs]
    return {
        "ours_seconds": statistics.median(ours for ours, _ in pairs),
        "bare_seconds": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def show(title: str, rows: Mapping[str, Mapping[str, object]], *, as_json: bool) -> None:
    """One row per comparison: numbers as they are measured, ratios last."""
    console = Console(width=120)
    if as_json:
        console.print_json(json.dumps(rows))
        return
    columns = [name for name in next(iter(rows.values())) if name != "ratios"]
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    console.print(table)
