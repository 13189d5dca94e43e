"""A sweep's table as text: CSV with every number in a column of its own, Markdown and LaTeX with intervals in brackets.

Markdown and LaTeX carry notes that say what the numbers are.
"""

import csv
import io
from collections.abc import Sequence

from engine.results.bootstrap import REPLICATES, Estimate
from engine.results.sweep_table import Row, SweepTable
from engine.results.words import percent

FORMATS = ("csv", "markdown", "latex")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_csv(table: SweepTable) -> str:
    """Fractions in 0..1, bytes, seconds; an empty field where there is nothing to say."""
    out = io.StringIO()
    rows = [{**row.settings, **_figures(table, row)} for row in table.rows]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_markdown(table: SweepTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells) + " |"

    heads, rows = _cells(table)
    rule = "| " + " | ".join(["---"] * len(table.keys) + ["---:"] * (len(heads) - len(table.keys))) + " |"
    return "\n".join([line(heads), rule, *map(line, rows), "", *(f"- {note}" for note in notes(table))]) + "\n"


def as_latex(table: SweepTable) -> str:
    heads, rows = _cells(table)
    return latex_tabular(heads, rows, n_left=len(table.keys), said=notes(table))


def latex_tabular(heads: Sequence[str], rows: Sequence[Sequence[str]], *, n_left: int, said: Sequence[str] = ()) -> str:
    """A tabular whose first `n_left` columns are flush left and the others flush right; `said` follows as comments."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"

    columns = "l" * n_left + "r" * (len(heads) - n_left)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    body = [begin, r"\hline", line(heads), r"\hline", *map(line, rows), r"\hline", end]
    comments = (f"% {' '.join(note.split())}" for note in said)
    return "\n".join([*body, *comments]) + "\n"


def notes(table: SweepTable) -> list[str]:
    """What the numbers are, a sentence each."""
    where = "test images of all hospitals" if table.split == "test" else table.federation.display_name("external")
    said = [
        f"{table.federation.name}, sweep {table.name}: {_named(table.metric)} of the federated model on {where}, mean "
        "over seeds (training.seed: starting weights of new layers, order and augmentation of images). In brackets: "
        f"95%, percentile bootstrap over groups of these images ({REPLICATES} replicates, the same groups for every "
        "seed); it does not hold what another seed would change: sd is the standard deviation over seeds.",
    ]
    if any(row.gap for row in table.rows):
        said.append(
            "Gap: federated less pooled, the same seeds and images, paired bootstrap over groups. To 99%: the first "
            "round whose validation macro-F1 is at least 99% of the best of the pooled model with the same seed; mean "
            "over the seeds that got there."
        )
    if any(row.versus_first for row in table.rows):
        said.append(
            "Vs first row: less the first row on the same data, the same seeds and images, paired bootstrap over "
            "groups; empty in that row itself and where seeds differ."
        )
    said.append(
        "Up and down: tensors of all hospitals' updates and of the messages they answer. Pooling once: the files of "
        "all training images. Seconds: all hospitals, one after the other on one machine, validation included"
        + (", a frozen backbone's features not." if table.federation.model.freeze_backbone else ".")
    )
    if table.common:
        said.append(f"All rows with {', '.join(table.common)}.")
    if table.left_out:
        said.append(f"Left out: {', '.join(table.left_out)}, which leave no one federated model for external images.")
    if table.federation.simulated:
        said.append(f"Simulated federation: {table.federation.simulated}")
    return said


def _figures(table: SweepTable, row: Row) -> dict[str, object]:
    missing = Estimate(*[float("nan")] * 3)
    gap, versus = row.gap or missing, row.versus_first or missing
    reached = row.n_reached is not None and row.rounds_to_reach is None
    figures: dict[str, object] = {
        "metric": table.metric,
        "scored_on": table.split,
        "mean": row.score.value,
        "low": row.score.low,
        "high": row.score.high,
        "sd_seeds": row.spread,
        "vs_first": versus.value,
        "vs_first_low": versus.low,
        "vs_first_high": versus.high,
        "n_seeds": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "n_images": row.n_images,
        "n_groups": row.n_groups,
        "pooled": row.pooled,
        "gap": gap.value,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "worst_hospital": row.worst_hospital,
        "worst_hospital_mean": row.worst_score,
        "rounds": row.rounds,
        "best_round": row.best_round,
        "bytes_up_per_round": row.bytes_up_per_round,
        "bytes_down_per_round": row.bytes_down_per_round,
        "bytes_up": row.bytes_up,
        "bytes_down": row.bytes_down,
        "pooling_once_bytes": row.pooling_once_bytes,
        "seconds": row.seconds,
        "seeds_reaching_99": row.n_reached,
        "rounds_to_99": "not reached" if reached else row.rounds_to_reach,
        "seconds_to_99": "not reached" if reached else row.seconds_to_reach,
    }
    return {key: "" if value is None or value != value else value for key, value in figures.items()}


def _cells(table: SweepTable) -> tuple[list[str], list[list[str]]]:
    heads = [
        *table.keys, f"{_named(table.metric)} (95%)", "sd", "vs first row (95%)", "seeds", "images", "pooled",
        "gap to pooled (95%)", "worst hospital", "best round", "up / down a round", "up / down in all", "pooling once",
        "seconds", "to 99% of pooled",
    ]  # fmt: skip
    rows = []
    for row in table.rows:
        worst = "" if row.worst_score is None else f"{percent(row.worst_score)} ({row.worst_hospital})"
        rows.append(
            [
                *(row.settings[key] for key in table.keys),
                _interval(row.score),
                "" if row.spread is None else f"{100 * row.spread:.1f}",
                "" if row.versus_first is None else _points(row.versus_first),
                str(len(row.seeds)),
                f"{row.n_images:,}",
                "" if row.pooled is None else percent(row.pooled),
                "" if row.gap is None else _points(row.gap),
                worst,
                f"{row.best_round:.1f} of {row.rounds}",
                f"{_bytes(row.bytes_up_per_round)} / {_bytes(row.bytes_down_per_round)}",
                f"{_bytes(row.bytes_up)} / {_bytes(row.bytes_down)}",
                _bytes(row.pooling_once_bytes),
                f"{row.seconds:,.1f}",
                _reached(row),
            ]
        )
    return heads, rows


def _interval(score: Estimate) -> str:
    return f"{percent(score.value)} ({100 * score.low:.1f}-{100 * score.high:.1f})"


def _points(gap: Estimate) -> str:
    return f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def _bytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"


def _reached(row: Row) -> str:
    if row.n_reached is None:
        return ""
    if row.rounds_to_reach is None or row.seconds_to_reach is None:
        return "not reached"
    some = "" if row.n_reached == len(row.seeds) else f" ({row.n_reached} of {len(row.seeds)} seeds)"
    return f"round {row.rounds_to_reach:.1f}, {row.seconds_to_reach:,.1f} s{some}"


def _named(metric: str) -> str:
    return metric.replace("macro_f1", "macro-F1").replace("recall/", "recall of ").replace("_", " ")
