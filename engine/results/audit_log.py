"""`audit-log.jsonl`: who trained a run, what came from whom in every federated round, and how it ended.

Every line holds the SHA-256 of the line before it, so that none can be changed, taken out or put in unnoticed; where
the chain ends stands in the manifest. docs/audit-log.md says what each entry records, and what it cannot show.
"""

import getpass
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import RunError
from engine.results.files import cannot_write, sha256_of

AUDIT_LOG = "audit-log.jsonl"
DAMAGED = "the run folder is damaged, restore it from a copy"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Started(_Record):
    """`files` are those that say what is trained, by their SHA-256: the configuration, and who holds which image."""

    event: Literal["started"] = "started"
    user: str
    host: str
    files: dict[str, str]


class Resumed(_Record):
    """`after_round` is the last whole federated round; what the log says above of later ones was lost and is redone.

    `torn_bytes` are those of a last line that a kill left half written; it is no longer there.
    """

    event: Literal["resumed"] = "resumed"
    user: str
    host: str
    after_round: int
    torn_bytes: int = 0


class RoundDone(_Record):
    """One round of the federated arm. `participants` are the hospitals whose updates counted, `updates` the
    fingerprints of all that arrived, refused ones too; `weights` is the fingerprint of what came of them."""

    event: Literal["round"] = "round"
    round: int
    participants: tuple[str, ...]
    updates: dict[str, str]
    failures: dict[str, str]
    weights: str


class Stopped(_Record):
    """By an error or by hand. A kill leaves no such entry."""

    event: Literal["stopped"] = "stopped"
    reason: str


class Finished(_Record):
    """The last entry of a finished run, written right before its manifest."""

    event: Literal["finished"] = "finished"
    manifest_sha256: str


Event = Annotated[Started | Resumed | RoundDone | Stopped | Finished, Field(discriminator="event")]


class Entry(_Record):
    """One line. `previous` is the SHA-256 of the line before, without its line end; the first has none."""

    schema_version: Literal[1] = 1
    number: int
    at: str
    previous: str | None
    what: Event

    def line(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Log:
    """The whole lines of a log whose chain holds, their hashes, and what a kill left of a line after them."""

    entries: tuple[Entry, ...]
    hashes: tuple[str, ...]
    torn: bytes = b""

    @property
    def last(self) -> str | None:
        return self.hashes[-1] if self.hashes else None


class AuditLog:
    """Appends to a log; a torn last line is written over by the next entry."""

    def __init__(self, path: Path) -> None:
        """Raises RunError where the chain is broken: nothing can be appended to what nobody can trust."""
        log = read_log(path) if path.is_file() else Log((), ())
        self._path = path
        self._end = path.stat().st_size - len(log.torn) if path.is_file() else 0
        self.n_entries, self.last, self.torn_bytes = len(log.entries), log.last, len(log.torn)

    def append(self, what: Event, at: str) -> None:
        """On disk when this returns. Raises RunError where the disk takes no more."""
        entry = Entry(number=self.n_entries + 1, at=at, previous=self.last, what=what)
        line = entry.line()
        try:
            self._path.touch()
            with self._path.open("r+b") as stream:
                stream.seek(self._end)
                stream.write(line + b"\n")
                stream.truncate()
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._end += len(line) + 1
        self.n_entries, self.last, self.torn_bytes = entry.number, _sha256(line), 0


def read_log(path: Path) -> Log:
    """Raises RunError, naming the line, where the chain breaks."""
    try:
        rows = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); {DAMAGED}") from None
    torn = rows.pop()
    entries: list[Entry] = []
    hashes: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            entry = Entry.model_validate_json(row)
        except ValidationError:
            raise RunError(f"{path}:{number}: is no entry of this schema; {DAMAGED}") from None
        if entry.number != number:
            raise RunError(f"{path}:{number}: is entry {entry.number}, so entries are missing or moved; {DAMAGED}")
        if entry.previous != (hashes[-1] if hashes else None):
            raise RunError(f"{path}:{number}: does not follow the entry before it, so one was edited; {DAMAGED}")
        entries.append(entry)
        hashes.append(_sha256(row))
    return Log(tuple(entries), tuple(hashes), torn)


def require_end(path: Path, log: Log, head: str | None, manifest_sha256: str, finished_at: str) -> None:
    """Raise RunError unless the log of a finished run ends as its manifest says: `head` is the hash of the entry before
    the last, and all that stands in the last follows from the manifest."""
    n_entries = len(log.entries)
    end = Entry(number=n_entries, at=finished_at, previous=head, what=Finished(manifest_sha256=manifest_sha256))
    if log.torn or log.last != _sha256(end.line()):
        where = f"{path}:{n_entries}" if log.entries else str(path)
        raise RunError(f"{where}: is not the end that manifest.json names, so it was cut or edited; {DAMAGED}")


def require_beginning(folder: Path, log: Log) -> None:
    """Raise RunError unless the log tells how the run began, and the files that it names then are as they were."""
    path = folder / AUDIT_LOG
    if not log.entries:
        raise RunError(f"{path}: holds no entry; {DAMAGED}")
    began = log.entries[0].what
    if not isinstance(began, Started):
        raise RunError(f"{path}:1: is '{began.event}', so how the run began is missing; {DAMAGED}")
    for name, recorded in began.files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != recorded:
            raise RunError(f"{folder / name}: is not the file that {AUDIT_LOG}:1 names; {DAMAGED}")


def who() -> tuple[str, str]:
    """(user, host) as this machine names them; nobody has proved either."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        user = "unknown"
    return user, platform.node() or "unknown"


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
