"""Trainings that are started from a page: processes of their own that outlive it, known by files alone.

The last one is known by two files beside the runs: `.training.json`, which process it is, and `.training.log`, what it
said. Every browser and every later server reads the same. What publishes is started so too (ui/publishing.py).
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from engine.errors import ConsiliumError, RunError
from engine.results.estimate import Estimate
from engine.results.files import cannot_write, read_model, write_json
from engine.results.lock import lock_holder
from engine.results.run_folder import JOINED, Run, find_run, list_runs, now
from engine.results.run_folder import LOOPBACK as LOOPBACK_STATE

SETTING = "CONSILIUM_TRAINING"
RECORD, LOG = ".training.json", ".training.log"
PUBLISHING = ".publishing.json"  # the same of what publishes
ENGINE = (sys.executable, "-m", "engine")
TRAIN, LOOPBACK, COORDINATOR = "train", "loopback", "coordinator"  # the engine's commands that train


class Launch(BaseModel):
    """`.training.json`: the process that a page started last."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pid: int
    command: tuple[str, ...]
    started_at: str

    @property
    def resumes(self) -> str | None:
        """The run that it was to go on with."""
        return self.command[self.command.index("--resume") + 1] if "--resume" in self.command else None

    @property
    def engine(self) -> str:
        """The engine's command."""
        return self.command[3]

    @property
    def is_alive(self) -> bool:
        """By its command line too, because a number is given again once its process has ended."""
        return _command_of(self.pid) == self.command


@dataclass(frozen=True)
class Said:
    """What a started training told: the run it trains into, and why it ended in an error."""

    run: str | None
    error: str | None


def training_enabled() -> bool:
    """Off unless whoever runs the server says so: a public page must not be able to burn it."""
    return os.environ.get(SETTING) == "1"


def why_not_here() -> str:
    """Why no training can be started here although it is enabled; empty where one can."""
    if sys.platform != "linux":
        return "Trainings are started from this page on Linux alone. Elsewhere: `python -m engine train FEDERATION`."
    if importlib.util.find_spec("torch") is None:
        return (
            "No training can be started here, because torch is not installed: "
            "`pip install -r requirements-engine.txt`, then start the dashboard again."
        )
    return ""


def last_launch(artifacts: Path, record: str = RECORD) -> Launch | None:
    file = artifacts / record
    if not file.is_file():
        return None
    try:
        return read_model(file, Launch, RunError, "delete it")
    except RunError:  # it only helps to watch: nothing depends on it
        return None


def what_it_said(artifacts: Path) -> Said:
    text, error = read_log(artifacts / LOG)
    runs = re.findall(r"^Training into .*?(run-\d+)$", text, re.MULTILINE)
    return Said(runs[-1] if runs else None, error)


def read_log(file: Path) -> tuple[str, str | None]:
    """What a started process said, and why it ended in an error."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    errors = re.findall(r"^error: (.+)$", text, re.MULTILINE)
    if not errors and "Traceback" in text:
        errors = [f"it ended in an error that it did not expect; {file} has it"]
    return text, errors[-1] if errors else None


def trained_now(artifacts: Path) -> str | None:
    """The run that a process of this machine trains now, wherever it was started."""
    return next((run.name for run in reversed(list_runs(artifacts)) if lock_holder(run.lock_file)), None)


def getting_ready(artifacts: Path) -> Launch | None:
    """The training that was started and has no run to go on with yet: it reads the images."""
    launch = last_launch(artifacts)
    return launch if launch is not None and launch.is_alive and what_it_said(artifacts).run is None else None


def estimate_training(arguments: Sequence[str]) -> Estimate:
    """What `engine estimate` answers. Raises ConsiliumError with its one line."""
    command = [*ENGINE, "estimate", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return Estimate.model_validate_json(done.stdout)
    said = re.findall(r"^error: (.+)$", done.stderr, re.MULTILINE)
    raise ConsiliumError(said[-1] if said else f"no estimate: the engine ended with status {done.returncode}")


def goes_on_with(run: Run) -> str:
    """The engine's command that resumes it: where the run's hospitals are decides."""
    if run.config.transport == "in_process":
        return TRAIN
    try:
        training = run.read_json(JOINED)["training"]
    except ConsiliumError:
        return COORDINATOR
    return LOOPBACK if any(LOOPBACK_STATE.glob(f"*/{training}")) else COORDINATOR


def start_training(artifacts: Path, arguments: Sequence[str], engine: str = TRAIN) -> None:
    """`engine train`, or `loopback`, with these arguments, in a session of its own. Raises RunError where none may be
    started now."""
    if not training_enabled():
        raise RunError(f"trainings are not started from here; {SETTING}=1 in the server's environment allows it")
    if why := why_not_here():
        raise RunError(why)
    if name := trained_now(artifacts):
        raise RunError(f"{name} is being trained on this machine, and it trains one at a time; wait for it or stop it")
    publishing = last_launch(artifacts, PUBLISHING)
    if publishing is not None and publishing.is_alive:
        raise RunError("a run is being published on this machine; wait for it")
    command = (*ENGINE, engine, *arguments, "--artifacts", str(artifacts))
    start_process(artifacts, command, RECORD, LOG, "another training is beginning or ending; wait for it or stop it")


def start_process(artifacts: Path, command: tuple[str, ...], record: str, log_name: str, busy: str) -> None:
    """The command in a session of its own: which process it is goes to the record, what it says to the log. Raises
    RunError with `busy` where the last one that writes this log has not ended."""
    import fcntl  # here, because only Linux gets this far

    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with (artifacts / log_name).open("a") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it: it is held until that ends
            log.truncate(0)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except BlockingIOError:
        raise RunError(busy) from None
    except OSError as error:
        raise cannot_write(artifacts / log_name, error) from None
    threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie stays
    write_json(artifacts / record, Launch(pid=process.pid, command=command, started_at=now()).model_dump(mode="json"))


def stop_run(artifacts: Path, name: str) -> None:
    """Stop the process that holds the run's lock."""
    pid = lock_holder(find_run(artifacts, name).lock_file)
    if pid is None:
        raise RunError(f"{name} is not being trained on this machine; there is nothing to stop")
    stop_process(pid)


def stop_process(pid: int) -> None:
    """Ask a training to stop, as Ctrl-C does. Raises RunError, and leaves alone, whatever is none."""
    try:
        handle = os.pidfd_open(pid)  # from here on it is this process or none, whoever gets its number next
    except OSError:
        raise RunError(f"process {pid} has ended already") from None
    try:
        command = _command_of(pid)
        if command[1:3] != ("-m", "engine") or command[3:4] not in ((TRAIN,), (LOOPBACK,)):
            raise RunError(f"process {pid} is no `python -m engine train` or `loopback`; stop it where it was started")
        signal.pidfd_send_signal(handle, signal.SIGINT)
    except PermissionError:
        raise RunError(f"process {pid} belongs to somebody else; stop it where it was started") from None
    except ProcessLookupError:
        raise RunError(f"process {pid} has ended already") from None
    finally:
        os.close(handle)


def _command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty where there is none, or only what is left of it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ()
    return tuple(words.removesuffix("\0").split("\0")) if words else ()
