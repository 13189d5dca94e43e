"""`note`: what people keep on a run, beside its folder. The dashboard's Runs page filters by it."""

from typing import Annotated

import typer

from engine.errors import RunError
from engine.options import Artifacts
from engine.results.notes import read_note, write_note
from engine.results.run_folder import artifacts_folder, find_run
from engine.terminal import output, say


def note_run(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="run-NNN")],
    text: Annotated[str | None, typer.Option(help="In place of the note there is; '' takes it away")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Add a tag")] = None,
    untag: Annotated[list[str] | None, typer.Option("--untag", metavar="TAG", help="Take a tag away")] = None,
    artifacts: Artifacts = None,
) -> None:
    """Show a run's note and tags, or change them. The run folder stays as it is."""
    run = find_run(artifacts_folder(artifacts), run_name)
    note = read_note(run.folder.parent, run.name, run.config.started_at)
    if text is not None or tag or untag:
        tags = [*(note.tags if note else ()), *(tag or [])]
        if unknown := sorted(set(untag or []) - set(tags)):
            raise RunError(f"{run.name} has no tag '{unknown[0]}'; it has {', '.join(tags) or 'none'}")
        kept = [one for one in tags if one not in (untag or [])]
        note = write_note(run, (note.text if note else "") if text is None else text, kept)
    if note is None:
        say(f"{run.name} has no note and no tags")
        return
    say(f"tags: {', '.join(note.tags) or 'none'}", *([note.text] if note.text else []), to=output())
