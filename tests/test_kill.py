"""`kill -9` at any moment, then `--resume`: the end is that of a run which nobody stopped.

20 moments in `make test`, 200 in `make soak` (CONSILIUM_SOAK=1). Half of the moments are seconds of the process's
life, the other half file operations (the process dies right before its n-th one), each half spread evenly over the
whole life with a seeded jitter. Processes come from one fork server that has imported torch, which alone takes seconds.
"""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.config import Federation, load_federation
from engine.results.audit_log import Resumed, RoundDone
from engine.results.run_folder import Run

PROJECT = Path(__file__).resolve().parent.parent
MOMENTS = 200 if os.environ.get("CONSILIUM_SOAK") == "1" else 20
SETTINGS = (
    "model.architecture='compact-cnn'",
    "model.image_size_px=32",
    "training.rounds=3",
    "training.batch_size=8",
    "training.threads=1",
    "training.device='cpu'",
)
COUNTS = {f"hospital-{letter}": {"glioma": 6, "meningioma": 6, "notumor": 6, "pituitary": 6} for letter in "abc"}
UNKILLED_SECONDS = 120
FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
TIMED = ("config.json", "environment.json", "rounds.jsonl", "training.log", "audit-log.jsonl", "manifest.json")
OWN = (*TIMED, "metrics/fit_")  # hold times

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@dataclass(frozen=True)
class Moment:
    """When a process dies: after some seconds, or right before its n-th operation on files of the run."""

    seconds: float | None = None
    operation: int | None = None


@dataclass(frozen=True)
class Whole:
    """A run that nobody stopped, and how long its life was."""

    folder: Path
    seconds: float
    operations: int


def engine(arguments: list[str], artifacts: Path, cache: Path, said: Path, die_at: int, told: Path) -> None:
    """The whole life of one process: `python -m engine ARGUMENTS`, killed before its `die_at`-th file operation."""
    with said.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ["CONSILIUM_CACHE"] = str(cache)
    count = 0

    def count_operation(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event in FILE_OPERATIONS and str(details[0]).startswith(str(artifacts)):
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_operation)
    sys.argv = ["engine", *arguments]
    from engine.cli import main

    try:
        main()
    finally:
        told.write_text(str(count))


class Bench:
    """Starts trainings in processes of their own and kills them."""

    def __init__(self, data: Path, artifacts: Path, cache: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["pytest", "engine.cli", "engine.federation.training_run", "pandas"])
        self.data, self.artifacts, self.cache = data, artifacts, cache
        self.said, self.told = artifacts.with_name("said.txt"), artifacts.with_name("operations.txt")

    def train(self, resume: bool, moment: Moment | None = None) -> int:
        """The exit status; -9 where the moment came before the end."""
        more = ["--resume", "run-001"] if resume else [f"--set={setting}" for setting in SETTINGS]
        folders = ["--data", str(self.data), "--artifacts", str(self.artifacts)]
        arguments = ["train", str(PROJECT / "federations" / "phantoms.toml"), *folders, *more]
        die_at = (moment.operation if moment else None) or -1
        process = self.context.Process(
            target=engine, args=(arguments, self.artifacts, self.cache, self.said, die_at, self.told)
        )
        process.start()
        process.join(moment.seconds if moment and moment.seconds is not None else UNKILLED_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return process.exitcode

    def finish(self) -> None:
        """Go on until the run is finished, as a person would who reads what the program says."""
        if not (self.artifacts / "run-001").is_dir():
            assert self.train(resume=False) == 0, self.said.read_text()
        elif self.train(resume=True) != 0:
            said = self.said.read_text()
            assert "was stopped before it began" in said, said
            shutil.rmtree(self.artifacts / "run-001")
            assert self.train(resume=False) == 0, self.said.read_text()


@pytest.fixture(scope="module")
def kill_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.data.phantoms import write_phantoms

    root = tmp_path_factory.mktemp("kill-data") / "phantoms"
    write_phantoms(root, seed=5, size_px=48, images_per_hospital=COUNTS)
    return root


@pytest.fixture(scope="module")
def bench(kill_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Bench]]:
    """A bench with an artifacts folder of its own; the images are decoded once for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))  # for the fork server, which starts with the first process
        # A child runs its parent's main module first, and after an AppTest that is a page of the dashboard.
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
        cache = tmp_path_factory.mktemp("kill-cache")
        yield lambda folder: Bench(kill_data, folder / "artifacts", cache)


@pytest.fixture(scope="module")
def whole(bench: Callable[[Path], Bench], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    for attempt in ("warm-up", "measured"):  # the first one decodes images and starts the fork server
        one = bench(folder / attempt)
        (folder / attempt).mkdir()
        started = time.perf_counter()
        assert one.train(resume=False) == 0, one.said.read_text()
        seconds = time.perf_counter() - started
    return Whole(one.artifacts / "run-001", seconds, int(one.told.read_text()))


def moment_of(number: int, whole: Whole, generator: random.Random) -> Moment:
    """Even numbers die by the clock, odd ones by their file operations."""
    share = (number // 2 + generator.random()) / (MOMENTS // 2)
    if number % 2 == 0:
        return Moment(seconds=share * whole.seconds)
    return Moment(operation=1 + int(share * whole.operations))


def without_seconds(row: Any) -> Any:
    if isinstance(row, dict):
        return {key: without_seconds(value) for key, value in row.items() if key != "seconds"}
    return [without_seconds(value) for value in row] if isinstance(row, list) else row


def steady(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on when it was trained."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    content: dict[str, Any] = {
        name: None if name.startswith(OWN) else path.read_bytes() for name, path in files.items()
    }
    content["rounds.jsonl"] = [without_seconds(json.loads(row)) for row in files["rounds.jsonl"].open()]
    for name in ("metrics/fit_metrics.csv", "metrics/fit_client_metrics.csv"):
        content[name] = [without_seconds(row) for row in csv.DictReader(files[name].open())]
    return content


def told_rounds(run: Run) -> list[RoundDone]:
    """Those of the audit log that stand; a round that it tells twice was lost once, and the resume between says so."""
    standing: dict[int, RoundDone] = {}
    for entry in run.verify_audit_log().entries:
        if isinstance(entry.what, Resumed):
            standing = {number: done for number, done in standing.items() if number <= entry.what.after_round}
        elif isinstance(entry.what, RoundDone):
            assert entry.what.round == len(standing) + 1
            standing[entry.what.round] = entry.what
    return list(standing.values())


@pytest.fixture(scope="module")
def federation() -> Federation:
    return load_federation(PROJECT / "federations" / "phantoms.toml", SETTINGS)


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_killed_training_resumes_to_the_same_end(
    number: int, whole: Whole, bench: Callable[[Path], Bench], federation: Federation, tmp_path: Path
) -> None:
    generator = random.Random(f"kill {number}")
    one = bench(tmp_path)
    if number % 5 == 4:
        one.cache = tmp_path / "cache"  # the kill may come while images are decoded
    moments = [moment_of(number, whole, generator)]
    one.train(resume=False, moment=moments[0])
    while generator.random() < 0.3 and (one.artifacts / "run-001" / "config.json").is_file():
        moments.append(moment_of(2 * generator.randrange(MOMENTS // 2) + generator.randrange(2), whole, generator))
        one.train(resume=True, moment=moments[-1])
    if not (one.artifacts / "run-001" / "manifest.json").is_file():
        one.finish()
    run = Run(one.artifacts / "run-001")
    assert run.federation == federation, moments
    run.verify(with_weights=True)
    expected, got = steady(whole.folder), steady(run.folder)
    assert got.keys() == expected.keys(), moments
    assert [name for name in expected if got[name] != expected[name]] == [], moments
    assert told_rounds(run) == told_rounds(Run(whole.folder)), moments
    assert {path.name for path in one.artifacts.iterdir()} <= {"run-001", ".run-001.lock"}, moments


def test_kills_around_the_manifest_leave_nothing_behind(
    whole: Whole, bench: Callable[[Path], Bench], tmp_path: Path
) -> None:
    """Chance seldom meets these few moments; here each is met."""

    def nearly_finished(name: str) -> Bench:
        one = bench(tmp_path / name)
        run = shutil.copytree(whole.folder, one.artifacts / "run-001")
        (run / "manifest.json").unlink()
        (run / "checkpoint.done").mkdir()
        return one

    counted = nearly_finished("counted")
    assert counted.train(resume=True) == 0, counted.said.read_text()
    last = int(counted.told.read_text())
    for operation in range(last - 7, last + 1):
        one = nearly_finished(str(operation))
        assert one.train(resume=True, moment=Moment(operation=operation)) == -signal.SIGKILL
        if not (one.artifacts / "run-001" / "manifest.json").is_file():
            one.finish()
        Run(one.artifacts / "run-001").verify(with_weights=True)
        assert steady(one.artifacts / "run-001") == steady(whole.folder), operation
        assert told_rounds(Run(one.artifacts / "run-001")) == told_rounds(Run(whole.folder)), operation
