"""Commands for hospital IT: `certificates`, `coordinator`, `hospital`, `hospital check`, `hospital leave`."""

import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from engine.config import Federation, load_federation, networked
from engine.errors import ConfigError, ConsiliumError
from engine.health import health_endpoint
from engine.options import Arms, Artifacts, FederationFile, Overrides, settings
from engine.results.run_folder import JOINED, Run, artifacts_folder
from engine.results.words import count
from engine.terminal import output, say

if TYPE_CHECKING:  # it imports torch
    from engine.federation.transports.flower import FlowerLink

hospital_app = typer.Typer(invoke_without_command=True, help="A hospital's own node: start it, check it, leave.")
HealthPort = Annotated[int | None, typer.Option("--health-port", help="GET /healthz here; none where not given")]
HealthHost = Annotated[str, typer.Option("--health-host", help="Listen for /healthz on this address")]
State = Annotated[Path, typer.Option("--state", metavar="DIR", help="What must outlive a restart")]
Id = Annotated[
    str | None, typer.Option("--id", help="The hospital's id in the federation file", envvar="CONSILIUM_HOSPITAL")
]
OwnData = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The hospital's class folders", envvar="CONSILIUM_HOSPITAL_DATA"),
]
Address = Annotated[str | None, typer.Option("--coordinator", metavar="HOST:PORT", envvar="CONSILIUM_COORDINATOR")]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="The coordinator's ca.crt", envvar="CONSILIUM_CA")
]
Key = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="This hospital's node.key", envvar="CONSILIUM_KEY")
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="policy.toml: what this node accepts", envvar="CONSILIUM_POLICY"),
]


def make_certificates_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    host: Annotated[
        list[str] | None, typer.Option(help="A name or address of the coordinator; may be given again")
    ] = None,
    hospital: Annotated[
        list[str] | None, typer.Option(help="A hospital's id: make its key; may be given again")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the server's certificate is valid")] = 365,
) -> None:
    """Make a CA, the coordinator's certificate and hospitals' keys. What is there already stays."""
    from engine.federation.certificates import make_certificates

    made = make_certificates(folder, host or [], hospital or [], days)
    for path in made:
        say(str(path))
    if any(path.name == "ca.key" for path in made):
        say(f"Keep {folder / 'ca.key'} apart: who has it can pass for the coordinator. No hospital needs it.")


def coordinate(
    federation_file: FederationFile,
    certificates: Annotated[Path, typer.Option("--certificates", metavar="DIR", help="As `certificates` made them")],
    host: Annotated[str, typer.Option(envvar="FLOWER_HOST", help="Listen on this address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="FLOWER_PORT", help="Listen on this port")] = 8443,
    artifacts: Artifacts = None,
    state: State = Path("coordinator-state"),
    resume: Annotated[str | None, typer.Option(metavar="run-NNN", help="Go on with an unfinished run")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a hospital has for one answer")] = 3600.0,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for hospitals that are not connected")
    ] = 600.0,
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
    overrides: Overrides = None,
    arms: Arms = None,
) -> None:
    """Train with hospitals on other machines: listen for them, ask them round by round, write the run folder."""
    from engine.federation.training_run import reopen_run
    from engine.federation.transports.flower.apps import settings_of
    from engine.federation.transports.flower.serve import opened_link

    changes, folder = [*settings_of({}, os.environ), *settings(overrides, arms)], artifacts_folder(artifacts)
    if resume is not None:
        refuse_changes(overrides, arms)
        run = reopen_run(folder, resume)
        federation = run.federation
    else:
        run, federation = None, networked(load_federation(federation_file, changes))
    status = {"state": "waiting for hospitals", "run": resume or ""}
    again = ["coordinator", federation_file.as_posix(), "--certificates", str(certificates), "--state", str(state)]
    again += ["--host", host, "--port", str(port), "--artifacts", str(folder)]
    with (
        json_log(sys.stderr),
        ended_by_sigterm(),
        health_endpoint(health_host, health_port, lambda: True, status),
        opened_link(
            federation, certificates, state, host=host, port=port, timeout_s=timeout, patience_s=patience
        ) as link,
    ):
        train_through(link, run, federation, federation_file, folder, changes, again, status)


def refuse_changes(overrides: Sequence[str] | None, arms: str | None) -> None:
    """Raise ConfigError where a resume is given settings."""
    if overrides or arms:
        raise ConfigError("--resume goes on with the run's own settings; take --set and --arms away")


def train_through(
    link: "FlowerLink",
    run: Run | None,
    federation: Federation,
    federation_file: Path,
    artifacts: Path,
    changes: Sequence[str],
    again: Sequence[str],
    status: dict[str, str],
) -> None:
    """From joining, or from where `run` stopped, to the finished run folder. `again` is the command that goes on."""
    from engine.federation.networked_run import join, new_training, start_networked_run, train_networked_run

    if run is None:
        training = new_training()
        joined = join(federation, link, training)
        run = start_networked_run(federation, training, joined, federation_file.as_posix(), artifacts, changes)
    else:  # as joining does: going on would begin with the first of them
        hospitals = set(run.read_json(JOINED)["hospitals"])
        link.wait_for(hospitals, len(hospitals))
    status |= {"state": "training", "run": run.name}
    say(f"Training into {run.folder}")
    try:
        train_networked_run(run, link)
    except (KeyboardInterrupt, ConsiliumError):
        say(f"Go on with: {shlex.join(['python', '-m', 'engine', *again, '--resume', run.name])}")
        raise
    say(f"Finished {run.folder}")


@hospital_app.callback()
def hospital(
    context: typer.Context,
    hospital_id: Id = None,
    data: OwnData = None,
    coordinator: Address = None,
    ca: Ca = None,
    key: Key = None,
    state: State = Path("hospital-state"),
    policy: PolicyFile = None,
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
) -> None:
    """Take part: connect outwards to a coordinator and answer it from this hospital's own images, until stopped."""
    if context.invoked_subcommand is not None:
        return
    from engine.federation.node import HospitalNode
    from engine.federation.policy import read_policy
    from engine.federation.transports.flower.serve import serve_hospital

    given = _require(hospital_id, data, coordinator, ca, key)
    node = HospitalNode(given.hospital, given.data, state, read_policy(policy))
    stop, status = threading.Event(), {"hospital": given.hospital}
    with (
        json_log(sys.stderr),
        ended_by_sigterm(),
        health_endpoint(health_host, health_port, lambda: status.get("connection") == "running", status),
    ):
        say(f"{given.hospital} answers {given.coordinator}; stop it with Ctrl-C")
        serve_hospital(node, given.coordinator, given.ca, given.key, state, stop, status)


@hospital_app.command("check")
def check_hospital(
    hospital_id: Id = None,
    data: OwnData = None,
    coordinator: Address = None,
    ca: Ca = None,
    key: Key = None,
    policy: PolicyFile = None,
) -> None:
    """Whether this machine could take part: folder, key, certificate, policy, proxy, port, TLS and clock."""
    from engine.federation.hospital_check import check

    given = _require(hospital_id, data, coordinator, ca, key)
    results = list(check(given.data, given.coordinator, given.ca, given.key, policy))
    for result in results:
        say(f"{'ok  ' if result.is_well else 'FAIL'} {result.what}: {result.said}", to=output())
    if not all(result.is_well for result in results):
        raise typer.Exit(2)


@hospital_app.command("leave")
def leave(
    state: State = Path("hospital-state"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Delete all that trainings left in the state folder: own models, predictions, splits, privacy accounts."""
    from engine.federation.node import forget

    if not state.is_dir():
        raise ConfigError(f"{state}: no such state folder; nothing was deleted")
    if not yes:
        typer.confirm(f"Delete every training's state in {state.resolve()}?", abort=True)
    gone = forget(state)
    say(f"Deleted from {state}: the state of {count(len(gone), 'training')}. Images stay as they are.")
    say("Ask the coordinator to take this hospital out of the federation file and to delete its node.pub.")


@dataclass(frozen=True)
class _Given:
    hospital: str
    data: Path
    coordinator: str
    ca: Path
    key: Path


def _require(
    hospital: str | None, data: Path | None, coordinator: str | None, ca: Path | None, key: Path | None
) -> _Given:
    if hospital is None or data is None or coordinator is None or ca is None or key is None:
        raise ConfigError("a hospital needs --id, --data, --coordinator, --ca and --key; see: hospital --help")
    for option, path in (("--ca", ca), ("--key", key)):
        if not path.is_file():
            raise ConfigError(f"{option} {path}: no such file; the coordinator's `certificates` made it")
    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder; it holds the hospital's class folders")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator {coordinator}: write it as HOST:PORT")
    return _Given(hospital, data, coordinator, ca, key)


@contextlib.contextmanager
def json_log(stream: TextIO) -> Iterator[None]:
    """Structured lines, one JSON object each, for whatever collects logs here."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            said = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
            return json.dumps({"time": said, "level": record.levelname, "message": record.getMessage()})

    log = logging.getLogger("consilium")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """As Ctrl-C does: whoever runs services sends SIGTERM."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
