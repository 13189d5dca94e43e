"""Notes and tags beside runs, which never change the run's own folder."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.results.notes import MAX_CHARACTERS, MAX_TAGS, note_file, read_note, write_note
from engine.results.run_folder import Run
from tests.conftest import Command
from ui.run_index import folder_stamp


@pytest.fixture
def run(phantom_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(phantom_run / "run-001", tmp_path / "artifacts" / "run-001")
    return Run(tmp_path / "artifacts" / "run-001")


def read(run: Run) -> tuple[str, tuple[str, ...]] | None:
    note = read_note(run.folder.parent, run.name, run.config.started_at)
    return None if note is None else (note.text, note.tags)


def test_a_note_is_kept_beside_the_run(run: Run) -> None:
    before = folder_stamp(run.folder)
    assert read(run) is None
    write_note(run, "  Looks well.\n", ["Second", "first", "first", " "])
    assert read(run) == ("Looks well.", ("first", "second"))
    assert [path.name for path in note_file(run.folder.parent, run.name).parent.iterdir()] == ["run-001.json"]
    assert folder_stamp(run.folder) == before
    write_note(run, "", [])
    assert read(run) is None
    assert not note_file(run.folder.parent, run.name).exists()


def test_two_sessions_may_write_at_once(run: Run) -> None:
    """Threads of one server."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_note(run, f"note {number}", []), range(80)))
    kept = read(run)
    assert kept is not None
    assert kept[0].startswith("note ")
    assert [path.name for path in note_file(run.folder.parent, run.name).parent.iterdir()] == ["run-001.json"]


def test_a_note_that_cannot_go_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_note(run, "stays", [])

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="cannot write: Permission denied"):
        write_note(run, "", [])


def test_another_run_of_the_same_number_has_no_note(run: Run) -> None:
    write_note(run, "of the first", [])
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "started_at": "2030-01-01T00:00:00+00:00"}))
    assert read(Run(run.folder)) is None


@pytest.mark.parametrize("tag", ["two words", "<b>", "ä", "-x", "a" * 33, "a,b"])
def test_a_tag_is_one_plain_word(run: Run, tag: str) -> None:
    with pytest.raises(RunError, match="is no tag"):
        write_note(run, "", [tag])
    assert read(run) is None


def test_notes_are_bounded(run: Run) -> None:
    with pytest.raises(RunError, match=f"shorten it to {MAX_CHARACTERS:,}"):
        write_note(run, "a" * (MAX_CHARACTERS + 1), [])
    with pytest.raises(RunError, match="too many"):
        write_note(run, "", [f"t{number}" for number in range(MAX_TAGS + 1)])


@pytest.mark.parametrize("content", ["{", '{"schema_version": 2}', '{"schema_version": 1, "tags": ["<b>"]}'])
def test_a_damaged_note_is_one_line(run: Run, content: str) -> None:
    write_note(run, "x", [])
    note_file(run.folder.parent, run.name).write_text(content)
    with pytest.raises(RunError, match=r"notes/run-001\.json: "):
        read(run)


def test_the_command_shows_and_changes(engine: Command, run: Run) -> None:
    where = ("--artifacts", run.folder.parent)
    assert "run-001 has no note" in engine("note", "run-001", *where).err
    engine("note", "run-001", "--text", "First try.", "--tag", "seeds", "--tag", "tiny", *where)
    assert engine("note", "run-001", "--untag", "tiny", *where).success == "tags: seeds\nFirst try.\n"
    assert engine("note", "run-001", *where).success == "tags: seeds\nFirst try.\n"
    assert "has no tag 'tiny'; it has seeds" in engine("note", "run-001", "--untag", "tiny", *where).error
    assert "is no tag" in engine("note", "run-001", "--tag", "a b", *where).error
