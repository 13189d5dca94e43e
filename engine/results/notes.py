"""Notes and tags that people keep on runs: `artifacts/notes/run-NNN.json`, beside the run, whose folder never changes.

A number may be given again after its run was deleted, so a note names the moment at which its run began.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.errors import RunError
from engine.results.files import cannot_write, read_model, write_json
from engine.results.run_folder import Run, now

TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
MAX_TAGS, MAX_CHARACTERS = 12, 4000
REMEDY = "delete it or restore it from a copy"
Tag = Annotated[str, StringConstraints(pattern=f"^{TAG.pattern}$")]


class Note(BaseModel):
    """`notes/run-NNN.json`. `run_started_at` is the run's own `started_at`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    run_started_at: str
    updated_at: str
    text: Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)] = ""
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS)] = ()


def notes_folder(artifacts: Path) -> Path:
    return artifacts / "notes"


def note_file(artifacts: Path, run: str) -> Path:
    return notes_folder(artifacts) / f"{run}.json"


def read_note(artifacts: Path, run: str, started_at: str) -> Note | None:
    """The note of the run that began then; None where it has none. Raises RunError where the file is damaged."""
    file = note_file(artifacts, run)
    if not file.is_file():
        return None
    note = read_model(file, Note, RunError, REMEDY)
    return note if note.run_started_at == started_at else None


def write_note(run: Run, text: str, tags: Sequence[str]) -> Note | None:
    """In place of the run's note; with neither text nor tags it has none, and its file goes.

    Raises RunError where a tag or the text is none that a note takes, or where the disk takes no more.
    """
    file, text = note_file(run.folder.parent, run.name), text.strip()
    tags = sorted(dict.fromkeys(tag.strip().lower() for tag in tags if tag.strip()))
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise RunError(f"'{tag}' is no tag; use up to 32 lower-case letters, digits, '.', '_' and '-', no spaces")
    if len(tags) > MAX_TAGS:
        raise RunError(f"{run.name}: {len(tags)} tags are too many; keep {MAX_TAGS} at most")
    if len(text) > MAX_CHARACTERS:
        raise RunError(f"{run.name}: the note has {len(text):,} characters; shorten it to {MAX_CHARACTERS:,}")
    if not text and not tags:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(file, error) from None
        return None
    started_at = run.manifest.started_at if run.is_imported else run.config.started_at
    note = Note(run_started_at=started_at, updated_at=now(), text=text, tags=tuple(tags))
    write_json(file, note.model_dump(mode="json"))
    return note
