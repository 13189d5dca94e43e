"""`python -m engine sweep` and `table`: many trainings of one federation, and what came of them, side by side."""

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from engine.config import load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError, RunError
from engine.options import Arms, Artifacts, DataFolder, FederationFile, Overrides, settings
from engine.results.run_folder import artifacts_folder
from engine.results.sweep_table import make_table
from engine.results.sweeps import sweep_runs
from engine.results.table_formats import FORMATS, as_csv, as_latex, as_markdown
from engine.results.words import join_words
from engine.sweep_grid import covers, expand
from engine.terminal import progress_bar, say, stepper

SPLITS = ("test", "external")


def train_sweep(
    federation_file: FederationFile,
    grids: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2", help="Or KEY=V1|V2,OTHER=W: alternatives of several settings"),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N", help="training.seed; splits and partition stay")] = "0",
    overrides: Overrides = None,
    arms: Arms = None,
    artifacts: Artifacts = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the federation file's")] = None,
    data: DataFolder = None,
) -> None:
    """Train every point of a grid with every seed. The same command goes on where it stopped, or adds what is new."""
    from engine.federation.sweep import Job, Point, run_sweep

    given = settings(overrides, arms)
    given_keys = [change.partition("=")[0].strip() for change in given]
    points = []
    for chosen in expand(grids or [], seeds):
        chosen_keys = [one.partition("=")[0].strip() for one in chosen]
        if twice := [(one, key) for one, key in itertools.product(given_keys, chosen_keys) if covers(key, one)]:
            one, key = twice[0]
            where = "" if one == key else f" (as '{key}')"
            raise ConfigError(f"--set {one}: is in the sweep's grid or seeds too{where}; leave one away")
        changes = (*given, *chosen)
        try:
            points.append(Point(load_federation(federation_file, changes), changes))
        except ConfigError as error:
            told = str(error)
            for key in chosen_keys:
                told = told.replace(f"--set {key}", f"--grid {key}", 1)
            raise ConfigError(told) from None
    if any(point.federation.pretext is not None for point in points):
        raise ConfigError(f"{federation_file}: learns without labels, so a table would have no scores; train and probe")
    name = name or re.sub(r"[^a-z0-9-]+", "-", federation_file.stem.lower()).strip("-")
    folder = artifacts_folder(artifacts)
    with progress_bar() as bar:
        all_runs, current = bar.add_task("Runs", total=None), bar.add_task("Starting", total=None)

        def plan(jobs: Sequence[Job]) -> None:
            n_done = sum(job.is_done for job in jobs)
            begun = sum(job.run is not None for job in jobs) - n_done
            say(f"Sweep {name}: {len(jobs)} runs, {n_done} finished before, {begun} to go on with")
            bar.update(all_runs, total=len(jobs))

        def show(progress: Any) -> None:
            bar.update(
                current,
                description=f"Round {progress.round}/{progress.rounds} {progress.model}",
                completed=progress.images_done,
                total=progress.images_total,
            )

        def read(federation: Any) -> FederationData:
            return read_federation_data(federation, data, stepper(bar))

        try:
            failures = run_sweep(
                name,
                points,
                federation_file=federation_file.as_posix(),
                artifacts=folder,
                read=read,
                on_plan=plan,
                on_run=lambda n_done: bar.update(all_runs, completed=n_done),
                on_training=show,
            )
        except KeyboardInterrupt:
            bar.stop()
            say("Stopped. The same command goes on from here")
            raise typer.Exit(130) from None
    if failures:
        say(*(f"failed: {run}: {why}" for run, why in failures.items()))
        raise RunError(f"sweep {name}: {join_words(list(failures))} failed; the same command tries again")
    where = f" --artifacts {artifacts}" if artifacts else ""
    say(f"Finished sweep {name}. See it with: python -m engine table {name}{where}")


def show_table(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name")],
    layout: Annotated[str, typer.Option("--format", metavar="FORMAT", help=", ".join(FORMATS))] = "markdown",
    metric: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Default: the federation's headline; or recall/CLASS, ...")
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help=" or ".join(SPLITS))] = "test",
    artifacts: Artifacts = None,
) -> None:
    """One row per grid point of a sweep: means over seeds, intervals, bytes, seconds, and the gap to pooled."""
    writers = dict(zip(FORMATS, (as_csv, as_markdown, as_latex), strict=True))
    if layout not in writers:
        raise ConfigError(f"--format {layout}: must be one of {', '.join(FORMATS)}")
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    runs = sweep_runs(artifacts_folder(artifacts), name)
    headline = runs[0].federation.headline if runs else "macro_f1"
    made = make_table(name, runs, metric or headline, split)
    if unfinished := [run.name for run in runs if not run.is_finished]:
        say(f"left out, not finished: {', '.join(unfinished)}; repeat the sweep's command")
    typer.echo(writers[layout](made), nl=False)
