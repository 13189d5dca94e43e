"""Numbers as the pages alone show them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.config import Federation
from engine.results.bootstrap import Estimate
from engine.results.metrics import wilson_interval
from engine.results.words import count, percent

DASH = "\u2013"


def score_text(cell: Mapping[str, Any], metric: str) -> str:
    """A score with its 95% interval, where the run recorded one: "94.2% (91.1-96.4)"."""
    interval = cell.get("intervals", {}).get(metric)
    if interval is None or interval[0] == interval[1]:  # none wrong, or all: a bootstrap cannot tell how sure that is
        return percent(cell[metric])
    low, high = (f"{100 * end:.1f}" for end in interval)
    return f"{percent(cell[metric])} ({low}-{high})"


def share_text(hits: int, n_images: int) -> str:
    """A share of images with its Wilson interval: "97.5% (95.8-98.6)"."""
    low, high = (f"{100 * end:.1f}" for end in wilson_interval(hits, n_images))
    return f"{percent(hits / n_images)} ({low}-{high})"


def estimate_text(estimate: Estimate) -> str:
    """A share with its 95% interval, where there is one that tells something: "94.2% (91.1-96.4)"."""
    if not math.isfinite(estimate.value):
        return DASH
    if not math.isfinite(estimate.low) or estimate.low == estimate.high:
        return percent(estimate.value)
    return f"{percent(estimate.value)} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"


def points_text(difference: Estimate | None) -> str:
    """A difference of two shares in points: "+6.5 (+2.1 to +11.1)"; a dash where there is none. Without its interval
    where that is one point: of one group, or where all say the same, a bootstrap cannot tell how sure it is."""
    if difference is None or not math.isfinite(difference.value):
        return DASH
    if not math.isfinite(difference.low) or difference.low == difference.high:
        return f"{100 * difference.value:+.1f}"
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def trainers_text(federation: Federation) -> str:
    """Whose images train and validate: "all hospitals", or "the 2 hospitals that train" where one is left out."""
    if federation.left_out is None:
        return "all hospitals"
    return f"the {count(len(federation.trainers), 'hospital that trains', 'hospitals that train')}"


class Errors(NamedTuple):
    """Of two classes: the disease, how many of its images are missed, and how many others are called it."""

    positive: str
    missed: int
    cases: int
    false_alarms: int
    others: int

    @property
    def sensitivity(self) -> str:
        return share_text(self.cases - self.missed, self.cases)

    @property
    def specificity(self) -> str:
        return share_text(self.others - self.false_alarms, self.others)

    def sentence(self, name: str) -> str:
        return (
            f"{name} misses **{self.missed:,} of {self.cases:,}** {self.positive} images, a sensitivity of "
            f"{self.sensitivity}, and raises **{count(self.false_alarms, 'false alarm')}** on {self.others:,} others, "
            f"a specificity of {self.specificity}."
        )


def format_bytes(number: float) -> str:
    """44_700_000 -> "44.7 MB" (powers of ten, as disks and networks are sold)."""
    if number < 1000:
        return count(int(number), "byte")
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:,.1f} TB"


def duration(seconds: float) -> str:
    """192 -> "3 min 12 s". Two units at most."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"
