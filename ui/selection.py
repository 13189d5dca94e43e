"""Which run or published version a page shows. The choice lives in the URL: a reload or a sent link shows the same."""

from pathlib import Path
from typing import Literal, NoReturn

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.published import PublishedVersion, current_version, models_folder, published_names
from engine.results.run_folder import Run, artifacts_folder
from ui.run_index import RunEntry, folder_stamp, read_entries

TRAIN_COMMAND = "python -m engine train federations/phantoms.toml"
STATE_WORDS = {
    "finished": "",
    "running": " (being trained)",
    "stopped": " (stopped)",
    "damaged": " (damaged)",
    "imported": " (imported)",
}


def select_run(pick: Literal["finished", "any"] = "finished", everything: list[RunEntry] | None = None) -> Run:
    """The run in use: the one the URL names, else the last one looked at, else the newest sound one.

    `everything` is what `read_entries` says, where the page has asked it. Ends the page with a plain sentence where
    there is no run, or where the chosen one is damaged.
    """
    everything = read_entries(artifacts_folder()) if everything is None else everything
    entries = [entry for entry in everything if pick == "any" or not entry.is_unfinished]
    if not everything:
        st.info("There is no run yet. This command makes one in a minute or two:", icon=":material/info:")
        st.code(TRAIN_COMMAND, language="bash")
        st.stop()
    if not entries:
        newest = everything[0]
        st.info(f"No run is finished yet. {newest.name} is still being trained.", icon=":material/info:")
        st.page_link("pages/2_Training.py", label=f"Watch {newest.name}", query_params={"run": newest.name})
        st.stop()
    chosen = _chosen(entries, everything)
    st.query_params["run"] = chosen.name
    st.session_state["last_run"] = chosen.name
    _draw_selectors(entries, chosen)
    if chosen.state == "damaged":
        st.error(f"{chosen.name} cannot be shown. {chosen.problem}", icon=":material/error:")
        st.stop()
    try:
        return Run(Path(chosen.folder))
    except ConsiliumError as error:
        stop_with(error)


def publish_commands() -> str:
    """What to type for a first published model: publish the newest finished run that learned its labels; where there
    is none, train first."""
    entries = read_entries(artifacts_folder())
    finished = [Run(Path(entry.folder)) for entry in entries if entry.state == "finished"]
    labelled = [run for run in finished if run.federation.pretext is None]
    if not labelled:
        next_number = 1 + max((int(entry.name.removeprefix("run-")) for entry in entries), default=0)
        return f"{TRAIN_COMMAND}\npython -m engine publish run-{next_number:03d} phantoms"
    return f"python -m engine publish {labelled[0].name} {labelled[0].federation.data}"


def stop_with(error: ConsiliumError) -> NoReturn:
    """One calm sentence in place of the rest of the page."""
    st.error(str(error), icon=":material/error:")
    st.stop()


def select_version() -> PublishedVersion:
    """The served version of the published name in use, checked against its hashes."""
    models = models_folder()
    names = published_names(models)
    if not names:
        st.info("No model is published yet. This makes the first one:", icon=":material/info:")
        st.code(publish_commands(), language="bash")
        st.stop()
    asked = st.query_params.get("model", st.session_state.get("last_model"))
    name = asked if asked in names else names[0]
    if asked and asked != name:
        st.warning(f"There is no published model '{asked}' here; this is {name}.")
    st.query_params["model"] = name
    st.session_state["last_model"] = name
    st.session_state["model_choice"] = name
    titles = _titles(models, names)
    st.sidebar.selectbox(
        "Federation",
        names,
        key="model_choice",
        format_func=titles.__getitem__,
        on_change=_take,
        args=("model_choice", "model"),
    )
    try:
        version = current_version(models, name)
        _verify(str(version.folder), folder_stamp(version.folder))
        st.sidebar.caption(f"Version {version.version}, from {version.manifest.run}")
    except ConsiliumError as error:
        stop_with(error)
    return version


def default_entry(entries: list[RunEntry]) -> RunEntry:
    """The newest finished run; where there is none, the newest being trained, else imported, else the newest."""
    for state in ("finished", "running", "stopped", "imported"):
        found = [entry for entry in entries if entry.state == state]
        if found:
            return found[0]
    return entries[0]


def _chosen(entries: list[RunEntry], everything: list[RunEntry]) -> RunEntry:
    by_name = {entry.name: entry for entry in entries}
    asked = st.query_params.get("run")
    if asked in by_name:
        return by_name[asked]
    remembered = st.session_state.get("last_run")
    chosen = by_name[remembered] if remembered in by_name else default_entry(entries)
    if asked:
        known = any(entry.name == asked for entry in everything)
        why = "is not finished yet" if known else "is not on this machine"
        st.warning(f"{asked} {why}; this is {chosen.name}.", icon=":material/info:")
    return chosen


def _draw_selectors(entries: list[RunEntry], chosen: RunEntry) -> None:
    """The widgets take their value from the URL and only ever write to it."""
    of_federation: dict[str, list[RunEntry]] = {}
    for entry in entries:
        of_federation.setdefault(entry.federation, []).append(entry)
    newest = {federation: default_entry(of_it) for federation, of_it in of_federation.items()}
    st.session_state["federation_choice"] = chosen.federation
    st.sidebar.selectbox(
        "Federation", list(newest), key="federation_choice", on_change=_take_federation, args=(newest,)
    )
    st.sidebar.caption(f"Showing {chosen.name}{STATE_WORDS[chosen.state]}")
    same = of_federation[chosen.federation]
    if len(same) > 1:
        labels = {entry.name: f"{entry.name}{STATE_WORDS[entry.state]}" for entry in same}
        st.session_state["run_choice"] = chosen.name
        st.selectbox(
            "Run", list(labels), key="run_choice", format_func=labels.__getitem__, on_change=_take,
            args=("run_choice", "run"), width=280,
        )  # fmt: skip


def _take(widget: str, parameter: str) -> None:
    st.query_params[parameter] = st.session_state[widget]


def _take_federation(newest: dict[str, RunEntry]) -> None:
    st.query_params["run"] = newest[st.session_state["federation_choice"]].name


def _titles(models: Path, names: list[str]) -> dict[str, str]:
    """The federation's own name; the published name beside it only where two share a federation."""
    federations = {}
    for name in names:
        try:
            federations[name] = current_version(models, name).federation.name
        except ConsiliumError:
            federations[name] = f"{name} (damaged)"
    shared = list(federations.values())
    return {name: f"{title} ({name})" if shared.count(title) > 1 else title for name, title in federations.items()}


@st.cache_data(max_entries=50, show_spinner=False)
def _verify(folder: str, stamp: str) -> None:
    """Hash a version's files once, and again when `stamp` says that one of them changed."""
    PublishedVersion(Path(folder)).verify()
