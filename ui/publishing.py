"""Publish a run, and serve an older version again. Only where whoever runs the server allows trainings too.

Publishing needs torch, so it is a process of its own, as trainings are; serving another version moves one small file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from engine.errors import ConsiliumError, RunError
from engine.results.publishable import require_publishable
from engine.results.published import (
    NAME,
    PublishedVersion,
    current_version,
    exact_version,
    list_versions,
    models_folder,
    published_names,
    set_current,
)
from engine.results.run_folder import Run
from ui.launch import (
    ENGINE,
    PUBLISHING,
    SETTING,
    Launch,
    last_launch,
    read_log,
    start_process,
    trained_now,
    training_enabled,
    why_not_here,
)

LOG = ".publishing.log"
ALLOW = f"{SETTING}=1 in the server's environment allows it"


class Said(NamedTuple):
    """What a started publishing told: how many models of how many it has begun, the version it made, why it failed."""

    begun: int
    models: int
    version: str | None
    error: str | None


def what_it_said(artifacts: Path) -> Said:
    text, error = read_log(artifacts / LOG)
    steps = re.findall(r"^Publishing \S+, (\d+) of (\d+)$", text, re.MULTILINE)
    made = re.findall(r"^Published .*?([^/\\]+)[/\\](v\d+); it is served now$", text, re.MULTILINE)
    begun, models = map(int, steps[-1]) if steps else (0, 0)
    return Said(begun, models, " ".join(made[-1]) if made else None, error)


def published_run(launch: Launch) -> str:
    """The run that it was to publish."""
    return launch.command[4]


def start_publishing(run: Run, name: str, models: Path) -> None:
    """`engine publish`, in a session of its own. Raises ConsiliumError where the run may not be published now."""
    if not training_enabled():
        raise RunError(f"runs are not published from here; {ALLOW}")
    if why := why_not_here():
        raise RunError(why)
    require_publishable(run, name, models)
    artifacts = run.folder.parent
    if busy := trained_now(artifacts):
        raise RunError(f"{busy} is being trained on this machine; publish after it")
    where = ("--artifacts", str(artifacts), "--models", str(models))
    busy_now = "a run is being published on this machine; wait for it"
    start_process(artifacts, (*ENGINE, "publish", run.name, name, *where), PUBLISHING, LOG, busy_now)


def serve_version(models: Path, name: str, version: str) -> None:
    """From now on, after its files are checked. Raises ConsiliumError."""
    if not training_enabled():
        raise RunError(f"versions are not changed from here; {ALLOW}")
    set_current(models, exact_version(models, name, version))


def draw_publishing(run: Run) -> None:
    """Publish, its progress and its result; then the versions of the run's federation, and which one is served."""
    artifacts, models = run.folder.parent, models_folder()
    launch = last_launch(artifacts, PUBLISHING)
    if launch is not None and launch.is_alive:
        st.fragment(_draw_progress, run_every="2s")(artifacts)
    else:
        if launch is not None and published_run(launch) == run.name:
            _draw_result(run, what_it_said(artifacts))
        _draw_form(run, models)
    _draw_versions(run, models)


def names_of(run: Run, models: Path) -> dict[str, list[PublishedVersion]]:
    """Published names of the run's federation with their versions, oldest first; unreadable ones are left out."""
    found: dict[str, list[PublishedVersion]] = {}
    for name in published_names(models):
        for version in list_versions(models, name):
            try:
                if version.federation.name == run.federation.name:
                    found.setdefault(name, []).append(version)
            except ConsiliumError:  # the page's table says so
                continue
    return found


def _draw_progress(artifacts: Path) -> None:
    launch, said = last_launch(artifacts, PUBLISHING), what_it_said(artifacts)
    if launch is None or not launch.is_alive:
        st.rerun()
    if said.begun == 0:
        doing = "images are read and checked"
    elif said.begun < said.models:
        doing = f"model {said.begun} of {said.models} is exported and measured"
    else:
        doing = f"model {said.begun} of {said.models}, then calibration and card"
    share = max(0, said.begun - 1) / said.models if said.models else 0.0
    st.badge("publishing", color="blue", icon=":material/sync:")
    st.progress(share, text=f"{published_run(launch)} is being published as {launch.command[5]}: {doing}.")


def _draw_result(run: Run, said: Said) -> None:
    if said.error:
        st.error(f"{run.name} was not published: {said.error}", icon=":material/error:")
    elif said.version:
        st.success(f"{run.name} was published as {said.version}.", icon=":material/check:")
    else:
        st.error(f"{run.name} was not published: the process ended before it was done.", icon=":material/error:")


def _draw_form(run: Run, models: Path) -> None:
    if why := why_not_here():
        st.info(f"What publishes is the engine that trains. {why}", icon=":material/info:")
        return
    suggested = next(iter(names_of(run, models)), run.federation.data)
    try:
        require_publishable(run, suggested if NAME.fullmatch(suggested) else "model", models)
    except ConsiliumError as error:
        st.info(f"It cannot be published. {error}", icon=":material/info:")
        return
    with st.form("publish", border=False):
        name = st.text_input("Publish as", suggested, key="publish_name", width=280)
        st.caption("Takes minutes. Exports every model, fits its calibration, and serves the new version at once.")
        if st.form_submit_button("Publish", icon=":material/publish:", type="primary", key="publish_now"):
            try:
                start_publishing(run, name.strip(), models)
            except ConsiliumError as error:
                st.error(str(error), icon=":material/error:")
            else:
                st.rerun()


def _draw_versions(run: Run, models: Path) -> None:
    for name, versions in names_of(run, models).items():
        served = _served(models, name)
        told = [f"{version.version}{' (served)' if version.version == served else ''}" for version in versions]
        st.markdown(f"**{name}**: {', '.join(told)}.")
        others = [version.version for version in versions if version.version != served]
        if not others:
            continue
        with st.popover("Serve another version", icon=":material/history:", key=f"versions_{name}"):
            _draw_choice(models, name, others[::-1])


def _draw_choice(models: Path, name: str, versions: Sequence[str]) -> None:
    chosen = st.selectbox("Version", versions, key=f"version_{name}")
    st.markdown(f"Every page and command that asks for {name} gets {chosen} from then on. No version is deleted.")
    if st.button(f"Serve {chosen}", type="primary", key=f"serve_{name}"):
        try:
            serve_version(models, name, str(chosen))
        except ConsiliumError as error:
            st.error(str(error), icon=":material/error:")
        else:
            st.rerun()


def _served(models: Path, name: str) -> str | None:
    try:
        return current_version(models, name).version
    except ConsiliumError:
        return None
