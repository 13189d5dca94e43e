"""`python -m engine estimate`: what a training will cost, before it begins."""

from typing import Annotated

import typer
from rich.table import Table

from engine.config import load_federation
from engine.data.federation_data import read_federation_data
from engine.options import Arms, Artifacts, DataFolder, FederationFile, Overrides, Preset, settings
from engine.results.estimate import Estimate
from engine.results.run_folder import artifacts_folder
from engine.results.words import join_words
from engine.terminal import output, progress_bar, stepper


def estimate_training_command(
    federation_file: FederationFile,
    overrides: Overrides = None,
    arms: Arms = None,
    artifacts: Artifacts = None,
    data: DataFolder = None,
    preset: Preset = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr")] = False,
) -> None:
    """Bytes, memory and time of a training with these settings; refused for what the training would be refused for."""
    from engine.federation.estimate import estimate_training

    federation = load_federation(federation_file, settings(overrides, arms, preset))
    with progress_bar() as bar:
        found = read_federation_data(federation, data, stepper(bar))
    estimate = estimate_training(found, artifacts_folder(artifacts))
    if as_json:
        typer.echo(estimate.model_dump_json(indent=2))
    else:
        _print(estimate)


def _print(estimate: Estimate) -> None:
    table = Table(title=f"{estimate.n_training_images:,} training images")
    for column in ("What", "Estimate", "From"):
        table.add_column(column)
    runs = ", ".join(sorted(set(estimate.timed_by.values())))
    if estimate.seconds is None:
        table.add_row("Time", "not known", f"no run on such a machine has timed {join_words(estimate.not_timed)}")
    else:
        table.add_row("Time of all rounds", f"{estimate.seconds / 60:,.1f} min", f"measured by {runs}")
    counted = ", ".join(f"{name} {n_bytes / 1e6:,.1f}" for name, n_bytes in estimate.memory_bytes.items())
    table.add_row("Memory, at least", f"{sum(estimate.memory_bytes.values()) / 1e6:,.1f} MB", counted)
    for hospital, traffic in estimate.hospitals.items():
        ways = f"{traffic.bytes_down / 1e6:,.1f} MB down, {traffic.bytes_up / 1e6:,.1f} MB up"
        table.add_row(f"Bytes of {hospital}", ways, f"{traffic.rounds:,} rounds")
    output().print(table)
