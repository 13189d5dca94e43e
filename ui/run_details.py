"""One run in full: where it came from, how it was set, what it wrote."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from engine.results.files import sha256_of
from engine.results.published import PublishedVersion, models_folder
from engine.results.run_folder import RUN_NAME, Run
from engine.results.words import count
from ui.deep_links import one_from_url, to_url
from ui.downloads import draw_run_download, draw_table_downloads
from ui.launch import training_enabled
from ui.lineage import descendants_of, is_served, label, origin_of
from ui.live import resume_command
from ui.publishing import draw_publishing
from ui.run_comparison import draw_comparison
from ui.run_index import RunEntry
from ui.tables import environment_table, files_table, settings_table, when
from ui.words import format_bytes

VIEWS = {
    "settings": "Settings",
    "environment": "Environment",
    "files": "Files and hashes",
    "compare": "Beside other runs",
    "publish": "Publish",
}
MAX_DESCENDANTS = 12


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


def draw_family(run: Run, entries: Sequence[RunEntry]) -> None:
    """From which run it started and which started from it, each a link; nothing where it stands alone."""
    weights, origin, descendants = run.federation.model.weights, origin_of(run), descendants_of(run, entries)
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
        for descendant in descendants[:MAX_DESCENDANTS]:
            _draw_relative(descendant)
        if len(descendants) > MAX_DESCENDANTS:
            st.markdown(f"and {len(descendants) - MAX_DESCENDANTS:,} more", width="content")
    st.caption("An arrow leads from the run whose federated weights were the start to the run that started from them.")


def _draw_relative(run: Run) -> None:
    how = "with labels" if run.federation.pretext is None else "without labels"
    label = f"{run.name}: {run.federation.name}, {how}"
    st.page_link("pages/5_Runs.py", label=label, query_params={"run": run.name}, width="content")


def draw_view(run: Run, entries: Sequence[RunEntry]) -> None:
    """One view at a time; which one stands in the URL. Publishing is offered where this server may train."""
    views = [view for view in VIEWS if view != "publish" or training_enabled()]
    one_from_url("view", "run_view", views, views[0])
    view = st.segmented_control(
        "Show", views, format_func=VIEWS.__getitem__, key="run_view", required=True, on_change=to_url,
        args=("view", "run_view"), wrap=True,
    )  # fmt: skip
    if view == "compare":
        draw_comparison(run, entries)
    elif view == "publish":
        draw_publishing(run)
    elif view == "settings":
        _draw_table(settings_table(run.federation), f"{run.name}-settings")
    elif view == "environment":
        _draw_table(environment_table(run.read_json("environment.json")), f"{run.name}-environment")
    else:
        _draw_files(run)


def _draw_table(table: pd.DataFrame, name: str) -> None:
    st.dataframe(table, hide_index=True)
    draw_table_downloads(table, name, n_left=len(table.columns))


def _draw_files(run: Run) -> None:
    if not run.is_finished:
        st.info("Hashes are written when the run is finished.", icon=":material/info:")
        return
    st.markdown(f"`manifest.json` has SHA-256 `{sha256_of(run.folder / 'manifest.json')}` and lists every other file:")
    st.dataframe(files_table(run.manifest.files), hide_index=True)
    log = run.audit_log()
    entries = f"{count(len(log.entries), 'entry', 'entries')}, the last is `{log.last}`" if log else ""
    st.markdown(f"Its audit log holds: {entries}." if entries else "It has no audit log.")
    draw_run_download(run)
