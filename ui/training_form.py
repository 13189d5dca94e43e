"""The training centre: choose, see what it will cost, start. Only where whoever runs the server allows it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from engine.aggregation_config import STRATEGIES, CommunicationConfig
from engine.config import Federation, load_federation, networked
from engine.errors import ConsiliumError
from engine.sections import ARMS
from ui.frame import show_federation
from ui.launch import (
    LOOPBACK,
    TRAIN,
    estimate_training,
    getting_ready,
    last_launch,
    start_training,
    trained_now,
    training_enabled,
    what_it_said,
    why_not_here,
)
from ui.training_controls import draw_stop
from ui.training_estimate import draw_estimate
from ui.training_safeguards import THRESHOLD, draw_place, draw_privacy, draw_secure_aggregation, privacy_changes

FEDERATIONS = Path("federations")
FIRST = "federations/phantoms.toml"  # needs no data of anybody's
TASKS = {"watch": "How it learned", "start": "Start a training"}
STARTED_HERE = "started_here"  # this session pressed Start, so it is led to the run once there is one
ARM_WORDS = {"federated": "Federated", "local": "Each hospital alone", "central": "Pooled, for reference"}
COMPRESSIONS = get_args(CommunicationConfig.model_fields["compression"].annotation)


def wants_to_start() -> bool:
    """Whether the reader starts a training in place of watching one. Nobody is asked where none can be started."""
    if not training_enabled():
        return False
    st.session_state["task"] = "start" if st.query_params.get("task") == "start" else "watch"
    task = st.segmented_control(
        "Task", list(TASKS), format_func=TASKS.__getitem__, key="task", required=True, on_change=_take_task,
        label_visibility="collapsed",
    )  # fmt: skip
    return task == "start"


def draw_training_centre(artifacts: Path) -> None:
    """What is being trained, or the form; one at a time on this machine."""
    if why := why_not_here():
        st.info(why, icon=":material/info:")
    elif trained_now(artifacts) or getting_ready(artifacts):
        st.fragment(_draw_busy, run_every="2s")(artifacts)
    else:
        st.session_state.pop(STARTED_HERE, None)
        launch, said = last_launch(artifacts), what_it_said(artifacts)
        if launch is not None and launch.resumes is None and said.run is None and said.error:
            st.error(f"The last training did not begin: {said.error}", icon=":material/error:")
        st.fragment(_draw_form)(artifacts)


def _take_task() -> None:
    """The choice lives in the URL."""
    if st.session_state["task"] == "start":
        st.query_params["task"] = "start"
    else:
        st.query_params.pop("task", None)


def changes_of(federation: Federation, chosen: Mapping[str, Any]) -> list[str]:
    """What was chosen otherwise than the file has it, as --set takes it. A section whose kind changes begins anew,
    because its other keys belong to the old kind."""
    training = federation.training
    n_hospitals = len(federation.hospital)
    changes = []
    if list(chosen["arms"]) != list(federation.arms):
        changes.append(f"arms={json.dumps(list(chosen['arms']))}")
    changes += [
        f"training.{key}={chosen[key]}" for key in ("rounds", "local_epochs") if chosen[key] != getattr(training, key)
    ]
    if chosen["per_round"] != training.hospitals_per_round(n_hospitals):
        changes.append(f"training.hospital_fraction={chosen['per_round'] / n_hospitals:.6g}")
    if chosen["strategy"] != federation.aggregation.strategy:
        changes.append(f'aggregation={{strategy="{chosen["strategy"]}"}}')
    if chosen["compression"] != federation.communication.compression:
        changes.append(f'communication={{compression="{chosen["compression"]}"}}')
    if chosen["epsilon"] is not None:
        changes += privacy_changes(federation, chosen["epsilon"])
    if chosen["secure"] and federation.secure_aggregation is None:
        changes.append(f"secure_aggregation.threshold={THRESHOLD}")
    return changes


def _draw_busy(artifacts: Path) -> None:
    name, launch = trained_now(artifacts), getting_ready(artifacts)
    begun = name or what_it_said(artifacts).run
    if launch is None and begun is not None and st.session_state.pop(STARTED_HERE, False):
        _watch(begun)  # it may have ended between two looks
        st.rerun()
    if name is None and launch is None:
        st.rerun()
    if name is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge("running", color="blue", icon=":material/sync:")
            st.markdown(f"{name} is being trained, and this machine trains one at a time.", width="content")
            st.page_link("pages/2_Training.py", label=f"Watch {name}", query_params={"run": name})
        return
    st.badge("getting ready", color="blue", icon=":material/sync:")
    starts = "Coordinator and hospitals start, and images" if launch and launch.engine == LOOPBACK else "Images"
    st.markdown(f"{starts} are read and checked. The rounds are shown as soon as they begin.")
    draw_stop(None, artifacts)


def _draw_form(artifacts: Path) -> None:
    federations = {}
    for path in sorted(FEDERATIONS.glob("*.toml")):
        try:
            federations[path.as_posix()] = load_federation(path)
        except ConsiliumError as error:
            st.warning(str(error), icon=":material/warning:")
    if not federations:
        st.info("There is no federation file in `federations/`; the README says how to write one.")
        return
    files = list(federations)
    file = st.selectbox(
        "Federation", files, files.index(FIRST) if FIRST in files else 0, key="train_federation", width=420,
        format_func=lambda file: f"{federations[file].name} ({Path(file).name})",
    )  # fmt: skip
    federation = federations[file]
    show_federation(federation)
    chosen = _draw_settings(federation, Path(file).stem)
    changes, command = changes_of(federation, chosen), TRAIN if not chosen["loopback"] else LOOPBACK
    arguments = [file, *(f"--set={change}" for change in changes)]
    try:
        wanted = load_federation(Path(file), changes)
        if chosen["loopback"]:
            networked(wanted)
    except ConsiliumError as error:
        st.error(str(error), icon=":material/error:")
        return
    if st.button("Estimate its cost", key="estimate", icon=":material/calculate:"):
        with st.spinner("The images are read and checked, and bytes are counted", show_time=True):
            try:
                answer = estimate_training([*arguments, "--artifacts", str(artifacts)])
            except ConsiliumError as error:
                st.error(str(error), icon=":material/error:")
                return
        st.session_state["estimated"] = (arguments, answer)
    known, estimate = st.session_state.get("estimated", (None, None))
    if known != arguments:  # what stands here is of exactly these settings, or it does not stand here
        st.caption("Start follows once it is known what these settings cost.")
        return
    draw_estimate(estimate, wanted, loopback=chosen["loopback"])
    st.code(shlex.join(["python", "-m", "engine", command, *arguments]), language="bash", wrap_lines=True)
    if st.button("Start training", type="primary", key="start", icon=":material/play_arrow:"):
        try:
            start_training(artifacts, arguments, command)
        except ConsiliumError as error:
            st.error(str(error), icon=":material/error:")
        else:
            st.session_state[STARTED_HERE] = True
            st.rerun()


def _draw_settings(federation: Federation, stem: str) -> dict[str, Any]:
    """The file's own values until somebody chooses others; kept apart by file, so that another one begins with its."""
    training, n_hospitals = federation.training, len(federation.hospital)

    def key(name: str) -> str:
        return f"train_{name}_{stem}"

    loopback = draw_place(key("place"))
    possible = [arm for arm in ARMS if arm != "central" or not loopback]
    arms = st.pills(
        "Who trains", possible, selection_mode="multi", default=[arm for arm in federation.arms if arm in possible],
        format_func=ARM_WORDS.__getitem__, key=key("arms_apart" if loopback else "arms"),
    )  # fmt: skip
    first, second, third = st.columns(3)
    rounds = first.number_input("Rounds", 1, 1000, training.rounds, key=key("rounds"))
    epochs = second.number_input("Local epochs in a round", 1, 100, training.local_epochs, key=key("epochs"))
    per_round = third.number_input(
        f"Hospitals in a round, of {n_hospitals}", training.min_hospitals, n_hospitals,
        training.hospitals_per_round(n_hospitals), key=key("per_round"),
    )  # fmt: skip
    first, second, _ = st.columns(3)
    strategies = list(STRATEGIES)
    strategy = first.selectbox(
        "Strategy", strategies, strategies.index(federation.aggregation.strategy), key=key("strategy"),
        help="How updates become new weights; docs/aggregation.md says when to take which.",
    )  # fmt: skip
    compression = second.selectbox(
        "Compression of updates", COMPRESSIONS, COMPRESSIONS.index(federation.communication.compression),
        key=key("compression"),
    )  # fmt: skip
    epsilon = draw_privacy(federation, key("privacy"))
    secure = draw_secure_aggregation(federation, key("secure"), loopback=loopback)
    return {
        "arms": [arm for arm in dict.fromkeys((*federation.arms, *ARMS)) if arm in arms],
        "rounds": rounds, "local_epochs": epochs, "per_round": per_round, "strategy": strategy,
        "compression": compression, "epsilon": epsilon, "secure": secure, "loopback": loopback,
    }  # fmt: skip


def _watch(name: str) -> None:
    """The next drawing shows this run."""
    st.query_params["run"] = name
    st.query_params.pop("task", None)
