"""One run in full, and two beside each other."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.files import sha256_of
from engine.results.published import PublishedVersion, models_folder
from engine.results.rounds import ALL
from engine.results.run_folder import RUN_NAME, Run
from engine.results.words import count, join_words
from ui.lineage import descendants_of, is_served, label, origin_of
from ui.live import resume_command
from ui.loaders import load_evaluation
from ui.matrices import images_in
from ui.run_index import RunEntry
from ui.tables import difference_table, environment_table, files_table, scores_table, settings_table, when
from ui.words import format_bytes

VIEWS = ("Settings", "Environment", "Files and hashes", "Beside another run")


def draw_lineage(run: Run, versions: Sequence[PublishedVersion]) -> None:
    """State, what was published from it, and whether its weights are here."""
    if not run.is_finished:
        st.badge("unfinished", color="orange", icon=":material/sync:")
        st.markdown(f"Begun {when(run.config.started_at)}. If it has stopped, this goes on with it:")
        st.code(resume_command(run), language="bash", wrap_lines=True)
        return
    manifest = run.manifest
    with st.container(horizontal=True):
        st.badge("finished", color="green", icon=":material/check:")
        for version in versions:
            served = ", served" if is_served(models_folder(), version) else ""
            st.badge(f"published as {label(version)}{served}", color="blue", icon=":material/publish:")
        if not versions and run.federation.pretext is None:
            st.badge("not published", color="gray")
    weights = {name: entry for name, entry in manifest.files.items() if entry.detached}
    absent = [name for name in weights if not (run.folder / name).is_file()]
    if not absent:
        size = format_bytes(sum(entry.bytes for entry in weights.values()))
        here = f"{count(len(weights), 'weights file')} on this machine, {size}"
    elif len(absent) == len(weights):
        here = "Its weights are not on this machine"
    else:
        here = f"{count(len(absent), 'weights file')} of {len(weights)} are not on this machine"
    times = f"From {when(manifest.started_at)} to {when(manifest.finished_at)}"
    st.markdown(f"{times}, with `{run.config.federation_file}`. {here}.")


def draw_family(run: Run) -> None:
    """From which run it started and which started from it, each a link; nothing where it stands alone."""
    weights, origin, descendants = run.federation.model.weights, origin_of(run), descendants_of(run)
    if origin is None and RUN_NAME.fullmatch(weights):
        st.caption(f"It started from the weights of {weights}, which is not beside it, or is another run by now.")
    if origin is None and not descendants:
        return
    with st.container(horizontal=True, vertical_alignment="center", key="family"):
        if origin is not None:
            _draw_relative(origin)
            st.markdown(":material/arrow_forward:", width="content")
        st.badge(f"{run.name}, shown here", color="blue")
        if descendants:
            st.markdown(":material/arrow_forward:", width="content")
        for descendant in descendants:
            _draw_relative(descendant)
    st.caption("An arrow leads from the run whose federated weights were the start to the run that started from them.")


def _draw_relative(run: Run) -> None:
    how = "with labels" if run.federation.pretext is None else "without labels"
    label = f"{run.name}: {run.federation.name}, {how}"
    st.page_link("pages/5_Runs.py", label=label, query_params={"run": run.name}, width="content")


def draw_details(run: Run, view: str) -> None:
    if view == VIEWS[0]:
        st.dataframe(settings_table(run.federation), hide_index=True)
    elif view == VIEWS[1]:
        st.dataframe(environment_table(run.read_json("environment.json")), hide_index=True)
    elif not run.is_finished:
        st.info("Hashes are written when the run is finished.", icon=":material/info:")
    else:
        st.markdown(
            f"`manifest.json` has SHA-256 `{sha256_of(run.folder / 'manifest.json')}` and lists every other file:"
        )
        st.dataframe(files_table(run.manifest.files), hide_index=True)
        log = run.audit_log()
        entries = f"{count(len(log.entries), 'entry', 'entries')}, the last is `{log.last}`" if log else ""
        st.markdown(f"Its audit log holds: {entries}." if entries else "It has no audit log.")


def draw_comparison(run: Run, others: Sequence[RunEntry]) -> None:
    """The settings that differ, then the scores on all test images."""
    if not others:
        st.info("There is no other finished run to put beside this one.", icon=":material/info:")
        return
    other_name = st.selectbox("Beside", [entry.name for entry in others], key="beside", width=280)
    other = Run(Path(next(entry.folder for entry in others if entry.name == other_name)))
    difference = difference_table(run.federation, other.federation, (run.name, other.name))
    if difference.empty:
        st.markdown(f"{run.name} and {other.name} were trained with the same settings.")
    else:
        st.markdown(f"{count(len(difference), 'setting differs', 'settings differ')}:")
        st.dataframe(difference, hide_index=True)
    if not run.is_finished:
        st.caption(f"{run.name} has no test scores yet.")
        return
    _draw_scores(run, other)


def _draw_scores(run: Run, other: Run) -> None:
    unlabelled = [one.name for one in (run, other) if one.federation.pretext is not None]
    if unlabelled:
        st.caption(
            f"Without labels there are no test scores to compare ({join_words(unlabelled)}); Evaluation shows what "
            "a probe says of an encoder."
        )
        return
    mine, theirs = (load_evaluation(one)["splits"].get("test", {}) for one in (run, other))
    n_mine, n_theirs = images_in(mine, ALL), images_in(theirs, ALL)
    st.markdown(f"All test images: n = {n_mine:,} for {run.name}, n = {n_theirs:,} for {other.name}.")
    if not _same_images(run, other):
        st.warning(
            "These runs were not scored on the same test images, so their scores cannot be compared like for like.",
            icon=":material/warning:",
        )
    table = scores_table((run.name, run.federation, mine), (other.name, other.federation, theirs))
    st.dataframe(table, hide_index=True)


def _same_images(run: Run, other: Run) -> bool:
    try:
        name = "dataset_splits.json"
        return run.manifest.files[name].sha256 == other.manifest.files[name].sha256
    except (ConsiliumError, KeyError):
        return False
