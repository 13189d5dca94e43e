"""`python -m engine loopback`: a coordinator and every hospital as processes of their own on this machine, over TLS.

What a network carries, without a second machine: to try a federation, and for the dashboard to start.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.config import Federation, load_federation, networked
from engine.data.federation_data import find_root
from engine.errors import DataError, RunError
from engine.network_commands import ended_by_sigterm, json_log, refuse_changes, train_through
from engine.options import Arms, Artifacts, DataFolder, FederationFile, Overrides, settings
from engine.results.files import cannot_write
from engine.results.lock import alone_with
from engine.results.run_folder import JOINED, LOOPBACK, Run, artifacts_folder
from engine.results.words import count
from engine.terminal import progress_bar, say, stepper

if TYPE_CHECKING:  # Flower may not be installed
    from engine.federation.transports.flower.processes import Child

HERE = "127.0.0.1"
TIMEOUT_S = 3600.0
PATIENCE_S = 300.0  # several processes load torch at once


def train_on_loopback(
    federation_file: FederationFile,
    overrides: Overrides = None,
    arms: Arms = None,
    artifacts: Artifacts = None,
    resume: Annotated[str | None, typer.Option(metavar="run-NNN", help="Go on with an unfinished run")] = None,
    data: DataFolder = None,
    logs: Annotated[Path, typer.Option(metavar="DIR", help="coordinator.log, hospital-ID.log")] = Path("logs"),
    state: Annotated[
        Path, typer.Option(metavar="DIR", help="What hospitals keep: own models, splits, predictions; for --resume")
    ] = LOOPBACK,
) -> None:
    """Train with a coordinator and all hospitals as processes on this machine, talking TLS on 127.0.0.1."""
    from engine.federation.certificates import make_certificates
    from engine.federation.training_run import reopen_run
    from engine.federation.transports.flower.serve import opened_link

    changes, folder = settings(overrides, arms), artifacts_folder(artifacts)
    if resume is None:
        run, federation = None, networked(load_federation(federation_file, changes))
    else:
        refuse_changes(overrides, arms)
        run = reopen_run(folder, resume)
        federation = run.federation
        _require_begun_here(run, state)
    with progress_bar() as bar:
        folders = hospital_folders(federation, find_root(federation, data, stepper(bar)))
    with _private(state), ended_by_sigterm():
        _sweep(state)
        with tempfile.TemporaryDirectory(prefix="certificates-", dir=state) as made, _log(logs):
            # New keys in every sitting: a killed hospital's would seem in use for a minute.
            certificates, port = Path(made), _free_port()
            make_certificates(certificates, [HERE], list(folders), days=365)
            again = ["loopback", federation_file.as_posix(), *_elsewhere(artifacts, data, logs, state)]
            with (
                opened_link(
                    federation, certificates, state / "coordinator",
                    host=HERE, port=port, timeout_s=TIMEOUT_S, patience_s=PATIENCE_S,
                ) as link,
                _hospitals(folders, certificates, f"{HERE}:{port}", logs, state),
            ):  # fmt: skip
                say(f"{count(len(folders), 'hospital')} and the coordinator on {HERE}:{port}; logs in {logs}/")
                train_through(link, run, federation, federation_file, folder, changes, again, {})


def hospital_folders(federation: Federation, root: Path) -> dict[str, Path]:
    """What each hospital's process is given as --data. Where a column says whose an image is that is the whole source,
    of which a hospital reads its own. Raises DataError for a folder that is missing."""
    folders = {one.id: root / (one.folder or "") for one in federation.hospital}
    for hospital, folder in folders.items():
        if not folder.is_dir():
            raise DataError(f"{hospital}: {folder}: no such folder; it holds the hospital's class folders")
    return folders


def _require_begun_here(run: Run, state: Path) -> None:
    """Other hospitals than those that began it would go on from nothing, and nobody would notice."""
    if run.config.transport != "flower":
        raise RunError(f"{run.folder}: was begun in one process; go on with: train FEDERATION --resume {run.name}")
    known = run.read_json(JOINED)
    absent = [hospital for hospital in known["hospitals"] if not (state / hospital / known["training"]).is_dir()]
    if absent:
        raise RunError(
            f"{run.folder}: {state} has nothing of it for {', '.join(absent)}; give the --state it was begun with, or, "
            f"where its hospitals are on machines of their own, go on with: coordinator FEDERATION --resume {run.name}"
        )


@contextlib.contextmanager
def _private(state: Path) -> Iterator[None]:
    """The state folder, for its owner alone and for one training at a time."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise cannot_write(state, error) from None
    with alone_with(state / ".lock", f"{state}: is in use"):
        yield


def _sweep(state: Path) -> None:
    """What a kill left. The coordinator's database knows keys that nobody has any more."""
    for path in (state / "coordinator", *state.glob("certificates-*")):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _log(logs: Path) -> Iterator[None]:
    try:
        logs.mkdir(parents=True, exist_ok=True)
        stream = (logs / "coordinator.log").open("a", encoding="utf-8")
    except OSError as error:
        raise cannot_write(logs, error) from None
    with stream, json_log(stream):
        yield


@contextlib.contextmanager
def _hospitals(
    folders: Mapping[str, Path], certificates: Path, coordinator: str, logs: Path, state: Path
) -> Iterator[None]:
    """A process for each, until this one ends in whatever way: then the kernel stops them."""
    from engine.federation.transports.flower.processes import Child

    children: list[Child] = []
    try:
        for hospital, folder in folders.items():
            keys = certificates / hospital
            command = [
                *("-m", "engine", "hospital", "--id", hospital, "--data", str(folder), "--coordinator", coordinator),
                *("--ca", str(keys / "ca.crt"), "--key", str(keys / "node.key"), "--state", str(state / hospital)),
            ]
            children.append(Child(command, state / hospital / "flwr", logs / f"{_log_name(hospital)}.log"))
            children[-1].ensure()
        yield
    finally:
        with _undisturbed():
            _stop(children)


def _stop(children: "list[Child]") -> None:
    """All are asked before one is waited for."""
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.stop()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C while hospitals end would leave the rest of them to the kernel."""
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _log_name(hospital: str) -> str:
    return hospital if hospital.startswith("hospital-") else f"hospital-{hospital}"


def _elsewhere(artifacts: Path | None, data: Path | None, logs: Path, state: Path) -> list[str]:
    given = {"--artifacts": artifacts, "--data": data}
    given |= {"--logs": None if logs == Path("logs") else logs, "--state": None if state == LOOPBACK else state}
    return [word for option, path in given.items() if path is not None for word in (option, os.fspath(path))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])
