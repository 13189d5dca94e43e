"""Subgroups of a manifest's images (age band, sex, body site): what its columns say, refused where it names somebody.

Numbers are kept as bands alone. A column is taken for an identifier where it has more words than a table can show,
where a word belongs to few patients on average, or where its words are bare numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import DataError
from engine.results.subgroups import UNKNOWN

MAX_WORDS = 30
FEWEST_PATIENTS = 5  # of a word, on average


def subgroup_values(
    manifest: Path,
    rows: Sequence[tuple[int, Mapping[str, str]]],
    subgroups: Mapping[str, Sequence[float]],
    patients: Sequence[str | None],
) -> list[tuple[str, ...]]:
    """Of every row (its line, its cells) its words in the columns of `subgroups`, in their order. `patients` are those
    of the rows; one who is unknown counts for himself. Raises DataError."""
    words: dict[str, list[str]] = {}
    for column, edges in subgroups.items():
        words[column] = [_word(manifest, line, column, cells[column], edges) for line, cells in rows]
        _refuse_identifier(f"{manifest}: column '{column}' (source.subgroups)", words[column], edges, patients)
    return [tuple(words[column][place] for column in subgroups) for place in range(len(rows))]


def _refuse_identifier(
    column: str, words: Sequence[str], edges: Sequence[float], patients: Sequence[str | None]
) -> None:
    known = {word for word in words if word != UNKNOWN}
    if not edges and known and all(map(_is_number, known)):
        raise DataError(f"{column} holds numbers alone: give it edges, or take it away if it says who somebody is")
    if len(set(words)) > MAX_WORDS:
        raise DataError(
            f"{column} has {len(set(words)):,} different words, more than {MAX_WORDS}: give numbers their edges, or "
            "take the column away if it says who somebody is"
        )
    people = [str(row) if patient is None else f"patient {patient}" for row, patient in enumerate(patients)]
    belonging = {(word, person) for word, person in zip(words, people, strict=True) if word != UNKNOWN}
    if known and len(belonging) < FEWEST_PATIENTS * len(known):
        raise DataError(
            f"{column} has {len(known):,} different words of {len(belonging) / len(known):.1f} patients each on "
            f"average, fewer than {FEWEST_PATIENTS}: give it fewer edges or words, or take it away if it says who "
            "somebody is"
        )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _word(manifest: Path, line: int, column: str, cell: str, edges: Sequence[float]) -> str:
    if not cell or cell.casefold() in ("unknown", "nan", "na", "n/a"):
        return UNKNOWN
    if not edges:
        return cell
    try:
        value = float(cell)
    except ValueError:
        raise DataError(
            f"{manifest}:{line}: '{cell}' (column '{column}') is no number; take its edges out of source.subgroups"
        ) from None
    below = [edge for edge in edges if edge <= value]
    above = [edge for edge in edges if edge > value]
    if not below:
        return f"below {_named(above[0])}"
    return f"{_named(below[-1])} to below {_named(above[0])}" if above else f"{_named(below[-1])} and above"


def _named(edge: float) -> str:
    return f"{edge:.12g}"  # with the six digits of :g two bands of large numbers would be called the same
