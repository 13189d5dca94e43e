"""Which class a folder's name means: tolerant of case, spaces, '_' and '-', never of meaning."""

import difflib
from collections.abc import Iterable, Mapping

from engine.config import normalise


def match_label(folder: str, classes: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The class that a folder name means, or None. A class's own name wins over an alias."""
    wanted = normalise(folder)
    for name, label in [*((label, label) for label in classes), *aliases.items()]:
        if normalise(name) == wanted:
            return label
    return None


def nearest_class(folder: str, classes: Iterable[str]) -> str | None:
    """The class whose name looks most like the folder's, for a hint; None when none is close."""
    by_name = {normalise(label): label for label in classes}
    wanted = normalise(folder)
    for name, label in by_name.items():
        if name in wanted or wanted in name:
            return label
    close = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.5)
    return by_name[close[0]] if close else None
