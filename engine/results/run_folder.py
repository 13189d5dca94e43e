"""The run folder `artifacts/run-NNN/`: written once, read by everything after it.

No manifest, no finished run. Every file is listed in the manifest with its hash; weights are listed as detached,
because they may lie elsewhere.
"""

import datetime
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from engine.config import Federation
from engine.errors import RunError
from engine.results.audit_log import AUDIT_LOG, AuditLog, Finished, Log, read_log, require_beginning, require_end
from engine.results.files import M, json_bytes, read_json, read_model, sha256_of, write_atomically, write_bytes
from engine.results.rounds import RoundLine, read_rounds

RUN_NAME = re.compile(r"run-(\d{3,})")
EVALUATION = "evaluation.json"
JOINED = "hospitals.json"  # of runs whose hospitals were on machines of their own
PRIVACY = "privacy.json"  # of runs with [privacy] alone
SUBGROUPS = "subgroups.json"  # of runs with source.subgroups alone
SECURE_AGGREGATION = "secure_aggregation.json"  # of runs with [secure_aggregation] alone
IMPORTED = "imported.json"  # of runs of other systems, which have nothing else; engine/results/imported.py


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int
    detached: bool = False


class RunManifest(BaseModel):
    """`manifest.json`, written last. `audit_log` is the hash of that log's entry before the last, which in turn holds
    the manifest's; runs from before there was one have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    run: str
    federation: str
    arms: tuple[str, ...]
    started_at: str
    finished_at: str
    files: dict[str, FileEntry]
    audit_log: str | None = None


LOOPBACK = Path(".loopback")  # what the hospitals of `loopback` keep, by hospital and training
Transport = Literal["in_process", "flower"]  # hospitals in one process, or each on a machine of its own


class RunConfig(BaseModel):
    """`config.json`: the whole federation as it was trained.

    `changes` are the settings that were given beside the file, as `--set` takes them; `sweep` names the sweep that a
    run belongs to, and `starting_weights_sha256` is of the file that model.weights named: of run-NNN its federated
    model's. Runs from before there were any have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    started_at: str
    federation_file: str
    federation: Federation
    sweep: str | None = None
    changes: tuple[str, ...] = ()
    starting_weights_sha256: str | None = None
    transport: Transport = "in_process"


HospitalState = Literal["waiting", "training", "trained", "failed"]


class Progress(BaseModel):
    """`checkpoint/progress.json`: what an unfinished run does now. Images counted over all arms, rounds and epochs.

    `hospitals` are those that the round asked, in its order, by id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    round: int
    rounds: int
    hospital: str
    images_done: int
    images_total: int
    images_at_start: int
    started_at: str
    updated_at: str
    hospitals: dict[str, HospitalState] = {}


class Run:
    """One run folder, read lazily. Raises RunError with what is wrong and what to do."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such run; `python -m engine runs` lists them")
        self.folder = folder
        self.name = folder.name

    @property
    def is_finished(self) -> bool:
        return (self.folder / "manifest.json").is_file()

    @property
    def lock_file(self) -> Path:
        """Held by the process that trains the run, and gone once that process ends in its own time."""
        return self.folder.with_name(f".{self.name}.lock")

    @cached_property
    def manifest(self) -> RunManifest:
        if not self.is_finished:
            raise RunError(f"{self.folder}: is not finished (no manifest.json); go on with train --resume {self.name}")
        return _read_model(self.folder / "manifest.json", RunManifest)

    @property
    def is_imported(self) -> bool:
        """Whether it is another system's run, of which there is `imported.json` alone."""
        return (self.folder / IMPORTED).is_file() and not (self.folder / "config.json").exists()

    @cached_property
    def config(self) -> RunConfig:
        if self.is_imported:
            raise RunError(
                f"{self.folder}: was imported, so it has figures alone: no settings, splits, predictions or weights; "
                "choose a run that was trained here"
            )
        return _read_model(self.folder / "config.json", RunConfig)

    @property
    def federation(self) -> Federation:
        return self.config.federation

    def require_labels(self) -> None:
        """Raise RunError where the run learned without labels: it has an encoder, and no model that says anything."""
        if self.federation.pretext is not None:
            raise RunError(
                f"{self.folder}: learned without labels, so it has an encoder and no opinions; start a supervised "
                f"training with --set model.weights={self.name}, or ask what it is worth with probe {self.name}"
            )

    def require_whole(self, verb: str) -> None:
        """Raise RunError where a hospital was left out, to say what can be done instead."""
        if self.federation.left_out is not None:
            raise RunError(
                f"{self.folder}: left {self.federation.left_out} out, to test on it; {verb} a run of all hospitals"
            )

    def rounds(self) -> list[RoundLine]:
        return read_rounds(self.folder / "rounds.jsonl")

    def read_json(self, name: str) -> Any:
        try:
            return read_json(self.folder / name)
        except FileNotFoundError:
            if name == EVALUATION:
                self.require_labels()
            raise RunError(f"{self.folder / name}: is missing; the run folder is incomplete") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / name}: cannot be read ({error}); the run folder is damaged") from None

    def progress(self) -> Progress | None:
        """What an unfinished run does now; None before its first batch and after its end."""
        file = self.folder / "checkpoint" / "progress.json"
        try:
            return Progress.model_validate(read_json(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: cannot be read ({error}); the run folder is damaged") from None

    def predictions(self) -> pd.DataFrame:
        """Columns model, split, hospital, group, path, label, logits (float32 list), one row per image and model."""
        self.require_labels()
        try:
            return pd.read_parquet(self.folder / "predictions.parquet")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / 'predictions.parquet'}: cannot be read ({error})") from None

    def weights(self, model: str) -> Path:
        """The weights file of a model key; raises RunError where it is not on this machine."""
        return self._present(weights_name(model))

    def verified_weights(self, model: str) -> Path:
        """As `weights`; raises RunError too where the file is not as the manifest says it was written."""
        path = self.weights(model)
        entry = self.manifest.files.get(weights_name(model))
        if entry is None or sha256_of(path) != entry.sha256:
            raise RunError(f"{path}: is not as it was written; the run folder is damaged, restore it from a copy")
        return path

    def round_weights(self, model: str, number: int) -> Path:
        """The weights file of one round, which a run keeps with training.keep_rounds; raises as `weights` does."""
        return self._present(round_weights_name(model, number))

    def verify(self, *, with_weights: bool = False) -> None:
        """Raise RunError at the first file that is missing or not as it was written. Absent weights are allowed."""
        if self.manifest.run != self.name:
            raise RunError(f"{self.folder}: holds {self.manifest.run}, copied or renamed; give it its own name back")
        for name, entry in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                if entry.detached:
                    continue
                raise RunError(f"{path}: is missing; the run folder is damaged, restore it from a copy")
            changed = path.stat().st_size != entry.bytes
            if not changed and (with_weights or not entry.detached):
                changed = sha256_of(path) != entry.sha256
            if changed:
                raise RunError(f"{path}: is not as it was written; the run folder is damaged, restore it from a copy")
        if self.manifest.audit_log is not None:
            self.audit_log()

    def audit_log(self) -> Log | None:
        """Its entries, None where it has no audit log. Raises RunError where they do not hold together, or where a
        finished run's do not end as the manifest says."""
        path = self.folder / AUDIT_LOG
        head = self.manifest.audit_log if self.is_finished else None
        if head is None and not path.is_file():
            return None
        log = read_log(path)
        if self.is_finished:
            sha256 = sha256_of(self.folder / "manifest.json")
            require_end(path, log, head, manifest_sha256=sha256, finished_at=self.manifest.finished_at)
        return log

    def verify_audit_log(self) -> Log:
        """Raise RunError where there is no audit log, or where it or its beginning cannot be trusted."""
        log = self.audit_log()
        if log is None:
            raise RunError(
                f"{self.folder}: no audit log; a run that was imported, or trained before there were any, has none"
            )
        require_beginning(self.folder, log)
        return log

    def _present(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path}: these weights are not on this machine; copy the run's weights folder here")
        return path


def round_weights_name(model: str, number: int) -> str:
    return f"weights/rounds/{model.replace('/', '-')}-{number:03d}.safetensors"


def weights_name(model: str) -> str:
    """Path of a model's weights inside a run folder: "global" is the best round by validation."""
    return f"weights/{'global-best' if model == 'global' else model.replace('/', '-')}.safetensors"


def list_runs(artifacts: Path) -> list[Run]:
    """Every run folder, newest last. Reads nothing but names."""
    if not artifacts.is_dir():
        return []
    found = [path for path in artifacts.iterdir() if path.is_dir() and RUN_NAME.fullmatch(path.name)]
    return [Run(path) for path in sorted(found, key=lambda path: int(path.name.removeprefix("run-")))]


def find_run(artifacts: Path, name: str) -> Run:
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"'{name}' is no run; runs are called run-001, run-002, ...")
    return Run(artifacts / name)


def create_run(artifacts: Path) -> Path:
    """Make the next free run-NNN, safely beside other trainings."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        for number in _numbers_from(artifacts):
            folder = artifacts / f"run-{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise RunError(
            f"{artifacts}: cannot make a run folder: {error.strerror or error}; give --artifacts DIR"
        ) from None
    raise AssertionError("numbers do not end")


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """A CSV with its header even where there is no row."""
    frame = pd.DataFrame(rows, columns=list(columns))
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))


def write_manifest(folder: Path, config: RunConfig, audit_log: AuditLog) -> None:
    """Hash every file, end the audit log, then declare the run finished.

    The log's end holds the manifest's hash, so the manifest cannot hold the log's: it holds that of the entry before.
    """
    files = {}
    written = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in sorted(path for path in written if path.name not in ("manifest.json", AUDIT_LOG)):
        name = path.relative_to(folder).as_posix()
        files[name] = FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size, detached=name.startswith("weights/"))
    manifest = RunManifest(
        run=folder.name,
        federation=config.federation.name,
        arms=config.federation.arms,
        started_at=config.started_at,
        finished_at=now(),
        files=files,
        audit_log=audit_log.last,
    )
    content = json_bytes(manifest.model_dump(mode="json"))
    audit_log.append(Finished(manifest_sha256=hashlib.sha256(content).hexdigest()), manifest.finished_at)
    write_bytes(folder / "manifest.json", content)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def artifacts_folder(given: Path | None = None) -> Path:
    """--artifacts, else $CONSILIUM_ARTIFACTS, else artifacts/."""
    return given or Path(os.environ.get("CONSILIUM_ARTIFACTS") or "artifacts")


def _numbers_from(artifacts: Path) -> Iterator[int]:
    taken = [int(run.name.removeprefix("run-")) for run in list_runs(artifacts)]
    number = max(taken, default=0)
    while True:
        number += 1
        yield number


def _read_model(path: Path, model: type[M]) -> M:
    return read_model(path, model, RunError, "the run folder is damaged, restore it from a copy")
