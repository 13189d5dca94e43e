"""Notes and tags of runs: read by everyone, written where this server may also train."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from engine.errors import ConsiliumError, RunError
from engine.results.notes import MAX_CHARACTERS, Note, notes_folder, read_note, write_note
from engine.results.run_folder import Run
from ui.launch import SETTING, training_enabled
from ui.run_index import RunEntry, folder_stamp


def read_notes(artifacts: Path, entries: Sequence[RunEntry]) -> tuple[dict[str, Note], list[str]]:
    """By run its note, and a sentence for each that cannot be read."""
    folder = notes_folder(artifacts)
    begun = tuple((entry.name, entry.started_at) for entry in entries)
    return _read(str(artifacts), folder_stamp(folder), begun) if folder.is_dir() else ({}, [])


@st.cache_data(max_entries=4, show_spinner=False)
def _read(artifacts: str, stamp: str, begun: tuple[tuple[str, str], ...]) -> tuple[dict[str, Note], list[str]]:
    notes, problems = {}, []
    written = {path.stem for path in notes_folder(Path(artifacts)).glob("run-*.json")}
    for name, started_at in begun:
        try:
            note = read_note(Path(artifacts), name, started_at) if name in written else None
        except ConsiliumError as error:
            problems.append(str(error))
            continue
        if note is not None:
            notes[name] = note
    return notes, problems


def draw_note(note: Note | None) -> None:
    """Tags as badges and the note as it was typed: no markup of it is followed, so that it loads nothing."""
    if note is None:
        return
    if note.tags:
        with st.container(horizontal=True, key="tags"):
            for tag in note.tags:
                st.badge(tag, color="violet", icon=":material/label:")
    if note.text:
        st.text(note.text)


def draw_note_editor(run: Run, note: Note | None, known_tags: Sequence[str]) -> None:
    """Nothing where this server only shows."""
    if not training_enabled():
        return
    saved = (note.text, note.tags) if note else None
    seen = st.session_state.setdefault(f"note_seen_{run.name}", saved)  # what this reader began from
    kept = f"{run.name}_{hash(seen)}"
    with st.expander("Note and tags", icon=":material/edit_note:"), st.form(f"note_{kept}", border=False):
        tags = st.multiselect(
            "Tags", sorted({*known_tags, *(note.tags if note else ())}), default=list(note.tags) if note else [],
            accept_new_options=True, key=f"tags_{kept}", placeholder="Choose, or type a new one",
        )  # fmt: skip
        text = st.text_area(
            "Note", note.text if note else "", max_chars=MAX_CHARACTERS, key=f"text_{kept}",
            help="Kept beside the run, whose own folder never changes. Everybody who sees this page can read it.",
        )  # fmt: skip
        if st.form_submit_button("Save", type="primary", key=f"save_{kept}"):
            if saved != seen and st.session_state.get(f"note_theirs_{run.name}") != [saved]:
                st.session_state[f"note_theirs_{run.name}"] = [saved]
                st.warning("Another browser saved this note meanwhile; it stands above. Save again to replace it.")
                return
            try:
                save_note(run, text, tags)
            except ConsiliumError as error:
                st.error(str(error), icon=":material/error:")
            else:
                del st.session_state[f"note_seen_{run.name}"]
                st.rerun()


def save_note(run: Run, text: str, tags: Sequence[str]) -> None:
    """Raises RunError where this server only shows, and as `write_note` does."""
    if not training_enabled():
        raise RunError(f"notes are not written from here; {SETTING}=1 in the server's environment allows it")
    write_note(run, text, tags)
