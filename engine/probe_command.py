"""`python -m engine probe`: what a run's encoders are worth with few labels."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from engine.config import Federation
from engine.data.federation_data import read_federation_data
from engine.errors import ConfigError
from engine.options import Artifacts, DataFolder
from engine.results.files import write_json
from engine.results.probes import METHODS, encoder_name, probe_file
from engine.results.run_folder import artifacts_folder, find_run
from engine.results.words import percent
from engine.terminal import output, progress_bar, say, stepper


def probe_encoders(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, run-NNN")],
    labels: Annotated[str, typer.Option(metavar="F,F", help="Shares of the training labels, e.g. 0.01,0.1,1")] = "0.1",
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train a whole network from every encoder, not from scratch alone")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr")] = False,
    artifacts: Artifacts = None,
    data: DataFolder = None,
) -> None:
    """Score a run's encoders on test images with few labels, beside one that never learned anything."""
    from engine.federation.probe import probe_run

    fractions = _fractions(labels)
    folder = artifacts_folder(artifacts)
    run = find_run(folder, run_name)
    run.verify(with_weights=True)
    with progress_bar() as bar:
        found = read_federation_data(run.federation, data, stepper(bar))
        task = bar.add_task("Probing", total=None)

        def show(what: str, of: int) -> None:
            bar.update(task, description=f"Probing {what}", total=of, advance=1)

        results = probe_run(run, found, fractions, finetune=finetune, on_step=show)
    for result in results:
        file = probe_file(folder, run.name, result["labels"], finetune=finetune)
        write_json(file, result)
        say(f"Wrote {file}")
    if as_json:
        typer.echo(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for result in results:
            _print(run.federation, result)


def _fractions(text: str) -> list[float]:
    try:
        fractions = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--labels {text}: give shares of the training labels, such as 0.01,0.1,1") from None
    if len({f"{fraction:g}" for fraction in fractions}) < len(fractions):
        raise ConfigError(f"--labels {text}: two of these are the same to six digits; leave one away")
    return fractions


def _print(federation: Federation, result: dict[str, Any]) -> None:
    table = Table(
        title=f"Labels of {result['n_labels']:,} of {result['n_train']:,} training images "
        f"({percent(result['n_labels'] / result['n_train'])}; {result['n_groups']:,} groups), and of all "
        f"{result['n_validation']:,} validation images; {result['n_test']:,} test images; 95% intervals in brackets"
    )
    for column in ("Encoder", "Method", "Accuracy", "Balanced accuracy", "Macro-F1"):
        table.add_column(column, justify="left" if column in ("Encoder", "Method") else "right")
    for row in result["rows"]:
        name = encoder_name(federation, row["encoder"], row["method"])
        cells = [f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in row["scores"].values()]
        table.add_row(name, METHODS[row["method"]], *cells)
    output().print(table)
