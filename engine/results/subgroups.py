"""Scores apart by what a manifest's columns say of the images: age band, sex, body site."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.errors import RunError
from engine.results.answers import Answers
from engine.results.bootstrap import Estimate, mean_score
from engine.results.run_folder import SUBGROUPS, Run

UNKNOWN = "unknown"  # an empty cell
FEWEST_GROUPS = 10  # below that a score says little, and might be of one patient


class Subgroup(NamedTuple):
    """`score` is None below FEWEST_GROUPS; `n_classes` are those among its images, which macro scores are means of."""

    word: str
    n_images: int
    n_groups: int
    n_classes: int
    score: Estimate | None


def read_subgroups(run: Run) -> dict[str, dict[str, str]]:
    """By column the word of every image that was not trained on, by its path; empty where the run recorded none.

    Raises RunError where the file is damaged.
    """
    if SUBGROUPS not in run.manifest.files:
        return {}
    content = run.read_json(SUBGROUPS)
    try:
        if content["schema_version"] != 1:
            raise RunError(f"{run.folder / SUBGROUPS}: has schema {content['schema_version']!r}; update this program")
        return {name: dict(zip(content["paths"], words, strict=True)) for name, words in content["columns"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunError(f"{run.folder / SUBGROUPS}: is not as a run writes it; the run folder is damaged") from None


def score_subgroups(answers: Answers, model: str, words: Mapping[str, str], metric: str) -> list[Subgroup]:
    """The words in the order of reading, numbers by their size and "unknown" last; `words` are those of one column."""
    word_of = np.array([words.get(path, UNKNOWN) for path in answers.images["path"]], object)
    found = []
    for word in in_order(list(set(word_of))):
        mine = answers.chosen(word_of == word)
        enough = mine.n_groups >= FEWEST_GROUPS
        score = mean_score(mine.logits[model], mine.labels, mine.groups, mine.classes, metric) if enough else None
        found.append(Subgroup(word, len(mine), mine.n_groups, int(mine.images["label"].nunique()), score))
    return found


def in_order(words: Sequence[str]) -> list[str]:
    """Bands of numbers from below, then words by name, "unknown" last."""

    def place(word: str) -> tuple[int, float, str]:
        if word == UNKNOWN:
            return 3, 0.0, ""
        first, _, rest = word.partition(" ")
        try:
            return (0, float(rest), "") if first == "below" else (1, float(first), "")
        except ValueError:
            return 2, 0.0, word

    return sorted(words, key=place)
