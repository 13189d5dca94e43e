"""Subgroups of a manifest's images (age band, sex, body site): what its columns say, cut so that nobody is named.

Numbers are kept as bands alone, and a column with more words than a table can show is taken for an identifier.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import DataError
from engine.results.subgroups import UNKNOWN

MAX_WORDS = 30


def subgroup_values(
    manifest: Path, rows: Sequence[tuple[int, Mapping[str, str]]], subgroups: Mapping[str, Sequence[float]]
) -> list[tuple[str, ...]]:
    """Of every row (its line, its cells) its words in the columns of `subgroups`, in their order. Raises DataError."""
    words: dict[str, list[str]] = {}
    for column, edges in subgroups.items():
        words[column] = [_word(manifest, line, column, cells[column], edges) for line, cells in rows]
        if len(set(words[column])) > MAX_WORDS:
            raise DataError(
                f"{manifest}: column '{column}' (source.subgroups) has {len(set(words[column])):,} different words, "
                f"more than {MAX_WORDS}: give numbers their edges, or take the column away if it says who somebody is"
            )
    return [tuple(words[column][place] for column in subgroups) for place in range(len(rows))]


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
        return f"below {above[0]:g}"
    return f"{below[-1]:g} to below {above[0]:g}" if above else f"{below[-1]:g} and above"
