"""The commands `python -m engine ...`. Exit 0: done; 2: something a person can mend, said in one line on stderr.

Commands that train or publish import torch when they are called, so that the others run where torch is absent.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine.config import ARMS, Federation, load_federation
from engine.data.federation_data import FederationData, OnProgress, read_federation_data
from engine.errors import ConfigError, ConsiliumError
from engine.results.run_folder import artifacts_folder, list_runs

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Consilium's training engine."
)
screen = Console(stderr=True)

FederationFile = Annotated[Path, typer.Argument(metavar="FEDERATION", help="A federation file, federations/NAME.toml")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Images; default $CONSILIUM_DATA/NAME, else data/NAME")
]
Artifacts = Annotated[
    Path | None, typer.Option("--artifacts", metavar="DIR", help="Run folders; default artifacts/")
]


def main() -> None:
    """Run one command; every error a person can mend is one line and exit status 2."""
    try:
        app()
    except ConsiliumError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "torchvision", "safetensors", "onnx"}:
            raise
        _fail(f"{error.name} is not installed: this command trains or converts models; "
              "run: pip install -r requirements-engine.txt")


@app.command()
def audit(federation_file: FederationFile, data: DataFolder = None) -> None:
    """What each hospital holds, and what is wrong with it."""
    federation = load_federation(federation_file)
    found = _read(federation, data)
    table = Table(title=f"{federation.name}: images per hospital and class")
    for column in ("Hospital", *federation.classes, "All", "Unreadable", "Exact copies"):
        table.add_column(column, justify="left" if column == "Hospital" else "right")
    for hospital, counts in found.audit.hospitals.items():
        cells = [counts.class_counts[label] for label in federation.classes]
        row = [*cells, counts.n_images, counts.unreadable, counts.exact_duplicates]
        table.add_row(federation.display_name(hospital), *(f"{cell:,}" for cell in row))
    out = Console()
    out.print(table)
    for finding in found.audit.findings:
        out.print(f"{finding.severity}: {finding.sentence}", markup=False, highlight=False)


@app.command()
def train(
    federation_file: FederationFile,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting")] = None,
    arms: Annotated[str | None, typer.Option(metavar="ARM,ARM", help=f"Some of {','.join(ARMS)}")] = None,
    artifacts: Artifacts = None,
    resume: Annotated[str | None, typer.Option(metavar="run-NNN", help="Go on with an unfinished run")] = None,
    data: DataFolder = None,
) -> None:
    """Train every arm on the same splits and budget, and write a run folder."""
    from engine.federation.training_run import reopen_run, start_run, train_run

    changes = list(overrides or [])
    if arms is not None:
        changes.append(f"arms={json.dumps([arm.strip() for arm in arms.split(',') if arm.strip()])}")
    federation = load_federation(federation_file, changes)
    folder = artifacts_folder(artifacts)
    run = None
    if resume is not None:
        if changes:
            raise ConfigError("--resume goes on with the run's own settings; leave --set and --arms away")
        run = reopen_run(folder, resume)
        if run.federation.name != federation.name:
            raise ConfigError(f"{resume} trained '{run.federation.name}', not '{federation.name}'")
        federation = run.federation
    found = _read(federation, data)
    for finding in found.audit.findings:
        screen.print(f"{finding.severity}: {finding.sentence}", markup=False, highlight=False)
    if run is None:
        run = start_run(found, federation_file.as_posix(), folder)
    screen.print(f"Training into {run.folder}", markup=False, highlight=False)
    try:
        with _bar() as bar:
            task = bar.add_task("Starting", total=None)

            def show(progress: Any) -> None:
                who = progress.model if progress.model.startswith("local/") else f"{progress.model}, {progress.hospital}"
                bar.update(
                    task,
                    description=f"Round {progress.round}/{progress.rounds} {who}",
                    completed=progress.images_done,
                    total=progress.images_total,
                )

            run = train_run(run, found, show)
    except KeyboardInterrupt:
        screen.print(
            f"Stopped. Go on with: python -m engine train {federation_file} --resume {run.name}",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(130) from None
    _print_scores(federation, run.read_json("evaluation.json")["splits"]["test"])
    screen.print(f"Finished {run.folder}", markup=False, highlight=False)


@app.command()
def runs(artifacts: Artifacts = None) -> None:
    """List the runs."""
    table = Table()
    for column in ("Run", "Federation", "State", "Arms", "Started"):
        table.add_column(column)
    found = list_runs(artifacts_folder(artifacts))
    for run in found:
        try:
            state = "finished" if run.is_finished and run.manifest else "unfinished"
            config = run.config
            row = [config.federation.name, state, ", ".join(config.federation.arms), config.started_at]
        except ConsiliumError as error:
            row = ["", f"damaged: {error}", "", ""]
        table.add_row(run.name, *row)
    if not found:
        screen.print("No runs yet. Make one with: python -m engine train federations/phantoms.toml", highlight=False)
    else:
        Console().print(table)


def _read(federation: Federation, data: Path | None) -> FederationData:
    with _bar() as bar:
        return read_federation_data(federation, data, _stepper(bar))


def _stepper(bar: Progress) -> OnProgress:
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=of)

    return show


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen) as bar:
        yield bar


def _print_scores(federation: Federation, models: dict[str, Any]) -> None:
    table = Table(title="Test images of all hospitals")
    for column in ("Model", "Accuracy", "Balanced accuracy", "Macro F1", "Images"):
        table.add_column(column, justify="left" if column == "Model" else "right")
    for model, cells in models.items():
        values = cells["all"]
        name = federation.display_name(model.removeprefix("local/")) if model.startswith("local/") else model
        scores = [f"{values[key]:.3f}" for key in ("accuracy", "balanced_accuracy", "macro_f1")]
        table.add_row(name, *scores, f"{values['n_images']:,}")
    Console().print(table)


def _fail(message: str) -> None:
    screen.print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
