"""Which class a folder's name means: tolerant of case, spaces, '_' and '-', never of meaning."""

import difflib
import re
from collections.abc import Iterable, Mapping

from engine.config import normalise

DENIALS = {"no", "non", "not", "without", "minus", "un"}
TYPO = 0.8  # of the letters in common; "tumour" and "notumor" share 0.77


def match_label(folder: str, classes: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The class that a folder name means, or None. A class's own name wins over an alias."""
    wanted = normalise(folder)
    for name, label in [*((label, label) for label in classes), *aliases.items()]:
        if normalise(name) == wanted:
            return label
    return None


def nearest_class(folder: str, classes: Iterable[str]) -> str | None:
    """The class that the folder's name spells with other words around it, or misspells, for a hint; else None.

    Never one that the name may deny: "tumor" is not hinted to be "notumor", nor "abnormal" to be "normal".
    """
    by_name = {normalise(label): label for label in classes}
    words = re.split(r"[\s_-]+", folder.casefold())
    wanted = normalise(folder)
    if not DENIALS.isdisjoint(words):
        return None
    for name, label in by_name.items():
        if name in words:
            return label
    for close in difflib.get_close_matches(wanted, by_name, n=len(by_name), cutoff=TYPO):
        one_holds_the_other = close in wanted or wanted in close
        if not one_holds_the_other or wanted == f"{close}s":
            return by_name[close]
    return None
