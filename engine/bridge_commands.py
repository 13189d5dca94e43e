"""Commands to and from other systems: `import-run` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from engine.options import Artifacts, Models
from engine.publishing.layouts import LAYOUTS, describe, export_run, export_version
from engine.results.imported import import_run, read_imported
from engine.results.published import find_source, models_folder
from engine.results.run_folder import RUN_NAME, artifacts_folder, find_run
from engine.terminal import say


def import_run_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Flower's result as JSON or log, or NVFlare's JSON")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="For pages; default the file's name")] = None,
    artifacts: Artifacts = None,
) -> None:
    """Show what another system trained: a Flower result or log, or NVFlare's cross_val_results.json, as a run."""
    run = import_run(file, artifacts_folder(artifacts), name)
    imported = read_imported(run)
    say(*(f"left out, being no single number: {what}" for what in imported.left_out[:10]))
    if (rest := len(imported.left_out) - 10) > 0:
        say(f"left out too: {rest:,} more; imported.json names them")
    say(f"Imported {imported.form}, as {run.folder}; its figures compare with no other run's")


def export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="run-NNN, NAME (served version) or NAME@vN")],
    layout: Annotated[str, typer.Option(metavar="LAYOUT", help="; ".join(map(describe, LAYOUTS)))],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A new or empty folder; mlflow takes others too")],
    artifacts: Artifacts = None,
    models: Models = None,
) -> None:
    """Write a run or a published version as other programs read it. Needs no images."""
    if not RUN_NAME.fullmatch(source):
        export_version(find_source(models_folder(models), source), layout, Path(to))
    elif layout == "mlflow":
        from engine.publishing.mlflow_export import export_mlflow

        export_mlflow(find_run(artifacts_folder(artifacts), source), to)
    else:
        export_run(find_run(artifacts_folder(artifacts), source), layout, Path(to))
    say(f"Exported {source} to {to}")
