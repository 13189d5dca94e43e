"""`python -m engine audit-log verify` and `show`: what a run's audit log says, and whether it can be trusted."""

from typing import Annotated

import typer

from engine.options import Artifacts
from engine.results.audit_log import Event, Finished, Resumed, RoundDone, Started, Stopped
from engine.results.run_folder import Run, artifacts_folder, find_run
from engine.results.words import count, join_words
from engine.terminal import output, say

audit_log_app = typer.Typer(no_args_is_help=True, help="Who trained a run, and what came from whom in every round.")

RunName = Annotated[str, typer.Argument(metavar="RUN", help="run-NNN, finished or not")]


@audit_log_app.command("verify")
def verify(run_name: RunName, artifacts: Artifacts = None) -> None:
    """Say in one line that a run's audit log holds, or where it breaks."""
    _verify(find_run(artifacts_folder(artifacts), run_name))


@audit_log_app.command("show")
def show(run_name: RunName, artifacts: Artifacts = None) -> None:
    """One line per entry, then what `verify` says."""
    run = find_run(artifacts_folder(artifacts), run_name)
    log = run.audit_log()
    for entry in log.entries if log else ():
        say(f"{entry.number} {entry.at} {_sentence(entry.what)}", to=output())
    _verify(run)


def _verify(run: Run) -> None:
    log = run.verify_audit_log()
    said = f"{run.name}: its audit log holds: {count(len(log.entries), 'entry', 'entries')}, the last is {log.last}"
    if not run.is_finished:
        said += "; the run is not finished, so nothing says where the log must end"
    if log.torn:
        said += f"; after it {len(log.torn)} bytes of a line that is being written, or that a kill left"
    say(said, to=output())


def _sentence(what: Event) -> str:
    match what:
        case Started():
            files = ", ".join(f"{name} {sha256}" for name, sha256 in what.files.items())
            return f"started by {what.user} on {what.host}: {files}"
        case Resumed():
            torn = f"; took off {what.torn_bytes} bytes of a torn line" if what.torn_bytes else ""
            return f"resumed by {what.user} on {what.host} after federated round {what.after_round}{torn}"
        case RoundDone():
            updates = ", ".join(f"{hospital} {sha256}" for hospital, sha256 in what.updates.items())
            failures = "".join(f"; {hospital} failed: {reason}" for hospital, reason in what.failures.items())
            counted = join_words(list(what.participants))
            return f"federated round {what.round}: of {counted}: {updates}; weights {what.weights}{failures}"
        case Stopped():
            return f"stopped: {what.reason}"
        case Finished():
            return f"finished: manifest.json {what.manifest_sha256}"
