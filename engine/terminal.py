"""What the commands show: progress and lines on stderr, tables on stdout."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from engine.config import EXTERNAL, Federation
from engine.data.audit import Audit
from engine.data.federation_data import OnProgress
from engine.data.looks import LOOKS
from engine.data.skew import measure_skew
from engine.results.words import DISCLAIMER, join_words, percent

screen = Console(stderr=True)


def stepper(bar: Progress) -> OnProgress:
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=of)

    return show


@contextmanager
def progress_bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen) as bar:
        yield bar


def print_audit(federation: Federation, audit: Audit) -> None:
    skew = measure_skew({hospital: counts.class_counts for hospital, counts in audit.hospitals.items()})
    held = dict(audit.hospitals)
    if audit.external is not None:
        held[EXTERNAL] = audit.external
    table = Table(title=f"{federation.name}: images per hospital and class")
    for column in ("Hospital", *federation.classes, "All", "Unreadable", "Exact copies", "Divergence"):
        table.add_column(column, justify="left" if column == "Hospital" else "right")
    for hospital, counts in held.items():
        cells = [counts.class_counts[label] for label in federation.classes]
        row = [*cells, counts.n_images, counts.unreadable, counts.exact_duplicates]
        divergence = skew.from_federation.get(hospital)
        far = "" if divergence is None else f"{divergence:.2f}"
        table.add_row(federation.display_name(hospital), *(f"{cell:,}" for cell in row), far)
    ranges = Table(title="What 90% of a hospital's images lie between")
    for column in ("Hospital", "Width, px", "Height, px", "Brightness", "Contrast", "Sharpness"):
        ranges.add_column(column, justify="left" if column == "Hospital" else "right")
    for hospital, counts in held.items():
        ends = [(counts.looks[name].low, counts.looks[name].high) for name in LOOKS if name in counts.looks]
        cells_text = [f"{low:,.0f} - {high:,.0f}" if high > 1 else f"{low:.2f} - {high:.2f}" for low, high in ends]
        ranges.add_row(federation.display_name(hospital), *cells_text)
    out = output()
    out.print(table, ranges)
    if skew.pairwise_mean is not None:
        say(
            f"class mixes: Jensen-Shannon divergence {skew.pairwise_mean:.2f} on average and {skew.pairwise_max:.2f} "
            "at most between two hospitals (0: the same mix, 1: no class in common); Divergence: from them all",
            to=out,
        )
    say(*(f"{finding.severity}: {finding.sentence}" for finding in audit.findings), to=out)


@contextmanager
def download_bar() -> Iterator[Progress]:
    """Counts bytes."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen) as bar:
        yield bar


def print_opinions(federation: Federation, answers: list[dict[str, Any]], *, calibrated: bool) -> None:
    table = Table(title=f"{federation.name}: {DISCLAIMER.lower().rstrip('.')}", caption=_licence(federation))
    for column in ("Image", "Model", "Says", f"Probability ({'calibrated' if calibrated else 'not calibrated'})"):
        table.add_column(column)
    for answer in answers:
        if answer["refused"]:
            table.add_row(answer["image"], "refused", " ".join(answer["reasons"]))
        for model, opinion in answer["opinions"].items():
            share = percent(opinion["probabilities"][opinion["label"]])
            says = join_words(opinion["prediction_set"], "or")
            table.add_row(answer["image"], federation.model_name(model), says, share)
    output().print(table)


def print_scores(federation: Federation, models: dict[str, Any], title: str) -> None:
    """The federation's leading score first; of two classes before it what is missed and what is called falsely."""
    names = {"macro_f1": "Macro-F1", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
    names = {federation.headline: names[federation.headline]} | names
    errors = ("Missed", "False alarms") if federation.positive_class else ()
    table = Table(title=title, caption=_licence(federation))
    for column in ("Model", *errors, *names.values(), "Images"):
        table.add_column(column, justify="left" if column == "Model" else "right")
    for model, values in models.items():
        row = [federation.model_name(model)]
        if federation.positive_class:
            case = federation.classes.index(federation.positive_class)
            matrix = values["confusion_matrix"]
            row += [f"{matrix[case][1 - case]:,}", f"{matrix[1 - case][case]:,}"]
        table.add_row(*row, *(f"{values[key]:.3f}" for key in names), f"{values['n_images']:,}")
    output().print(table)


def _licence(federation: Federation) -> str | None:
    return f"Licence of the training images: {federation.licence}" if federation.licence else None


def output() -> Console:
    """stdout; as wide as it takes where nobody's terminal limits it, so that a pipe loses nothing."""
    return Console(markup=False) if sys.stdout.isatty() else Console(width=200, markup=False)


def say(*lines: str, to: Console = screen) -> None:
    """Whole lines, however narrow the terminal, so that paths and commands can be copied."""
    for line in lines:
        to.print(line, markup=False, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    say(f"error: {' '.join(message.split())}")
    sys.exit(2)
