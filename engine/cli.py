"""The commands `python -m engine ...`. Exit 0: done; 2: something a person can mend, said in one line on stderr.

Commands that train or publish import torch when they are called, so that the others run where torch is absent.
"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from engine.audit_log_commands import audit_log_app
from engine.bridge_commands import export, import_run_command
from engine.config import EXTERNAL, Federation, load_federation
from engine.data.audit import require_trainable
from engine.data.federation_data import FederationData, read_federation_data
from engine.data_commands import data_app
from engine.errors import ConfigError, ConsiliumError
from engine.estimate_command import estimate_training_command
from engine.leakage_command import measure_run_leakage
from engine.loopback_command import train_on_loopback
from engine.network_commands import coordinate, hospital_app, make_certificates_command
from engine.notes_command import note_run
from engine.opinion_commands import evaluate, predict
from engine.options import Arms, Artifacts, DataFolder, FederationFile, Models, Overrides, Preset, Without, settings
from engine.probe_command import probe_encoders
from engine.results.publishable import require_publishable
from engine.results.published import (
    current_version,
    exact_version,
    find_source,
    list_versions,
    models_folder,
    published_names,
    set_current,
)
from engine.results.rounds import ALL
from engine.results.run_folder import artifacts_folder, find_run, list_runs
from engine.sweep_commands import show_table, train_sweep
from engine.terminal import fail, output, print_audit, print_scores, progress_bar, say, screen, stepper

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Consilium's training engine."
)
app.add_typer(data_app, name="data")
app.add_typer(audit_log_app, name="audit-log")
app.command("estimate")(estimate_training_command)
app.command("sweep")(train_sweep)
app.command("table")(show_table)
app.command("note")(note_run)
app.command("probe")(probe_encoders)
app.command("leakage")(measure_run_leakage)
app.command("import-run")(import_run_command)
app.command("export")(export)
app.command("evaluate")(evaluate)
app.command("predict")(predict)
app.command("certificates")(make_certificates_command)
app.command("coordinator")(coordinate)
app.command("loopback")(train_on_loopback)
app.add_typer(hospital_app, name="hospital")
MLFLOW_ONLY = {"mlflow"}
FLOWER_ONLY = {"flwr", "grpc", "httpx", "fastapi", "sqlalchemy", "alembic", "tomli", "tomli_w", "pathspec", "iterators"}
ENGINE_ONLY = {
    "torch", "torchvision", "safetensors", "onnx", "onnxscript", "imagehash", "scipy", "filelock", "opacus",
    "cryptography",
}  # fmt: skip


def main() -> None:
    """Run one command; every error a person can mend is one line and exit status 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except ConsiliumError as error:
        fail(str(error))
    except typer.exceptions.TyperException as error:
        fail(f"{error.format_message() or 'which command?'} (see: python -m engine --help)")
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be imported"
        if package in ENGINE_ONLY:
            fail(f"{package} {state}: this command needs the engine; run: pip install -r requirements-engine.txt")
        if package in FLOWER_ONLY:
            fail(f"{package} {state}: this command needs Flower; run: pip install --no-deps -r requirements-flower.txt")
        if package in MLFLOW_ONLY:
            fail(f"{package} {state}: this layout needs it; run: pip install -r requirements-mlflow.txt")
        raise


@app.command()
def audit(federation_file: FederationFile, data: DataFolder = None) -> None:
    """What each hospital holds, and what is wrong with it."""
    federation = load_federation(federation_file)
    found = _read(federation, data)
    print_audit(federation, found.audit)


@app.command()
def train(
    federation_file: FederationFile,
    overrides: Overrides = None,
    arms: Arms = None,
    artifacts: Artifacts = None,
    resume: Annotated[str | None, typer.Option(metavar="run-NNN", help="Go on with an unfinished run")] = None,
    data: DataFolder = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processor threads; default torch's")] = None,
    preset: Preset = None,
    without: Without = None,
) -> None:
    """Train every arm on the same splits and budget, and write a run folder."""
    from engine.federation.training_run import reopen_run, start_run, train_run

    changes = settings(overrides, arms, preset, threads, without)
    federation = load_federation(federation_file, changes)
    folder = artifacts_folder(artifacts)
    run = None
    if resume is not None:
        if changes:
            raise ConfigError(
                "--resume goes on with the run's own settings; leave everything else that changes them away"
            )
        run = reopen_run(folder, resume)
        if run.federation.name != federation.name:
            raise ConfigError(f"{resume} trained '{run.federation.name}', not '{federation.name}'")
        federation = run.federation
    found = _read(federation, data)
    require_trainable(found.audit)
    say(*(f"{finding.severity}: {finding.sentence}" for finding in found.audit.findings))
    if run is None:
        run = start_run(found, federation_file.as_posix(), folder, changes=changes)
    say(f"Training into {run.folder}")
    try:
        with progress_bar() as bar:
            task = bar.add_task("Starting", total=None)

            def show(progress: Any) -> None:
                who = (
                    progress.model if progress.model.startswith("local/") else f"{progress.model}, {progress.hospital}"
                )
                bar.update(
                    task,
                    description=f"Round {progress.round}/{progress.rounds} {who}",
                    completed=progress.images_done,
                    total=progress.images_total,
                )

            run = train_run(run, found, show)
    except KeyboardInterrupt:
        say(f"Stopped. Go on with: python -m engine train {federation_file} --resume {run.name}")
        raise typer.Exit(130) from None
    if federation.pretext is not None:
        where = [*(["--artifacts", str(artifacts)] if artifacts else []), *(["--data", str(data)] if data else [])]
        probe = shlex.join(["python", "-m", "engine", "probe", run.name, "--labels", "0.1", *where])
        say(f"Finished {run.folder}", f"What its encoder is worth: {probe}")
        return
    splits = run.read_json("evaluation.json")["splits"]
    titles = {"test": "Test images of all hospitals", EXTERNAL: f"External: {federation.display_name(EXTERNAL)}"}
    for split in (split for split in titles if split in splits):
        print_scores(federation, {model: cells[ALL] for model, cells in splits[split].items()}, titles[split])
    say(f"Finished {run.folder}")


@app.command()
def demo() -> None:
    """Train the synthetic phantoms (once), publish them, and open the dashboard."""
    from engine import demo as steps

    artifacts, models = artifacts_folder(), models_folder()
    run = steps.newest_run(artifacts, load_federation(steps.FEDERATION_FILE))
    if run is None or not run.is_finished:
        train(steps.FEDERATION_FILE, resume=run.name if run else None)
        run = steps.newest_run(artifacts, load_federation(steps.FEDERATION_FILE))
    if run is not None and not steps.is_published(models, run):
        publish(run.name, steps.MODEL_NAME)
    say("Opening the dashboard; stop it with Ctrl-C")
    raise typer.Exit(steps.open_dashboard())


@app.command()
def doctor() -> None:
    """What is installed, where data, runs and models lie, how much disk is free, and what is missing."""
    from engine.doctor import examine

    for check in examine():
        say(f"{check.what}: {check.found}" + (f" -> {check.remedy}" if check.remedy else ""), to=output())


@app.command()
def runs(artifacts: Artifacts = None) -> None:
    """List the runs."""
    table = Table()
    for column in ("Run", "Federation", "State", "Arms", "Started"):
        table.add_column(column)
    found = list_runs(artifacts_folder(artifacts))
    for run in found:
        try:
            if run.is_finished:
                run.verify()
            if run.is_imported:
                table.add_row(run.name, run.manifest.federation, "imported", "", "")
                continue
            state = "finished" if run.is_finished else "unfinished"
            config = run.config
            row = [config.federation.name, state, ", ".join(config.federation.arms), config.started_at]
        except ConsiliumError as error:
            row = ["", f"damaged: {error}", "", ""]
        table.add_row(run.name, *row)
    if not found:
        say("No runs yet. Make one with: python -m engine train federations/phantoms.toml")
    else:
        output().print(table)


@app.command()
def publish(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, run-NNN")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name below models/")],
    artifacts: Artifacts = None,
    models: Models = None,
    data: DataFolder = None,
) -> None:
    """Export a run's models to ONNX, quantise them, and serve them as the next version of NAME."""
    from engine.publishing.publish import publish_run

    run = find_run(artifacts_folder(artifacts), run_name)
    require_publishable(run, name, models_folder(models))
    run.verify(with_weights=True)
    found = _read(run.federation, data)
    with progress_bar() as bar:
        task = bar.add_task("Publishing", completed=-1)
        begun: list[str] = []

        def show(model: str, of: int) -> None:
            bar.update(task, description=f"Publishing {model}", total=of, advance=1)
            begun.append(model)
            if not screen.is_terminal:  # where no bar moves, a log is read
                say(f"Publishing {model}, {len(begun)} of {of}")

        version = publish_run(run, name, found, models_folder(models), show)
        bar.update(task, description="Published", advance=1)
    for model, file in version.manifest.models.items():
        say(
            f"{model}: {file.precision}, validation accuracy {file.accuracy_before:.3f} -> {file.accuracy_after:.3f} "
            f"on {file.validation_images:,} images {file.note}".rstrip()
        )
    say(f"Published {version.folder}; it is served now")


@app.command()
def calibrate(
    source: Annotated[str, typer.Argument(metavar="NAME", help="NAME (served version) or NAME@vN")],
    artifacts: Artifacts = None,
    models: Models = None,
    data: DataFolder = None,
) -> None:
    """Fit a published version's probabilities, prediction sets and refusal gate anew. Its ONNX files stay."""
    from engine.publishing.publish import calibrate_version

    version = find_source(models_folder(models), source)
    run = find_run(artifacts_folder(artifacts), version.manifest.run)
    calibrate_version(version, run, _read(run.federation, data))
    say(f"Calibrated {version.folder} anew; its card says what it is worth")


@app.command("models")
def list_models(models: Models = None) -> None:
    """List the published models and their versions; * marks the served one."""
    folder = models_folder(models)
    if not (names := published_names(folder)):
        say("No published model yet. Make one with: python -m engine publish run-001 NAME")
        return
    table = Table()
    for column in ("Model", "Version", "Run", "Federation", "Published", "Size"):
        table.add_column(column)
    damage = []
    for name in names:
        served = None
        try:
            served = current_version(folder, name).version
        except ConsiliumError as error:
            damage.append(str(error))
        for version in list_versions(folder, name):
            mark = f"{version.version} *" if version.version == served else version.version
            try:
                manifest = version.manifest
                version.verify()
            except ConsiliumError as error:
                damage.append(str(error))
                table.add_row(name, mark, "damaged")
                continue
            size = sum(entry.bytes for entry in manifest.files.values())
            row = (manifest.run, manifest.federation.name, manifest.published_at, f"{size / 1e6:,.1f} MB")
            table.add_row(name, mark, *row)
    output().print(table)
    say(*(f"damaged: {what}" for what in damage))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version to serve, vN")],
    models: Models = None,
) -> None:
    """Serve another version of NAME from now on."""
    folder = models_folder(models)
    chosen = exact_version(folder, name, version)
    set_current(folder, chosen)
    say(f"{name} serves {version} now")


def _read(federation: Federation, data: Path | None) -> FederationData:
    with progress_bar() as bar:
        return read_federation_data(federation, data, stepper(bar))
