"""Where hospitals train, and what protects them as they do: the form's controls, and honest words beside each."""

import importlib.util
import math

import streamlit as st

from engine.config import Federation

IN_ONE, ON_LOOPBACK = "in one process", "loopback"
PLACES = {
    IN_ONE: "In one process",
    ON_LOOPBACK: "Coordinator and hospitals on this machine (loopback, TLS)",
}
EPSILON = 8.0
THRESHOLD = 0.6667  # docs/secure-aggregation.md; 2 of 3, 3 of 4


def why_no_loopback() -> str:
    """Why hospitals cannot be processes of their own here; empty where they can."""
    if importlib.util.find_spec("flwr") is None:
        return (
            "Hospitals as processes of their own need Flower, which is not installed: "
            "`pip install --no-deps -r requirements-flower.txt`, then start the dashboard again."
        )
    return ""


def draw_place(key: str) -> bool:
    """Whether hospitals are to be processes of their own."""
    why_not = why_no_loopback()
    place = st.radio(
        "Where hospitals train", list(PLACES), format_func=PLACES.__getitem__, key=key, disabled=bool(why_not)
    )
    if why_not:
        st.caption(why_not)
        return False
    if place == ON_LOOPBACK:
        st.caption(
            "Coordinator and hospitals are processes that talk TLS on 127.0.0.1, as they would over a network. So "
            "there is no pooled arm, hospitals keep their predictions and own models (in `.loopback/`), and the run "
            "cannot be published. What each process says is in `logs/`."
        )
    return place == ON_LOOPBACK


def draw_privacy(federation: Federation, key: str) -> float | None:
    """The epsilon that is chosen; None without privacy."""
    given = federation.privacy
    if not st.toggle(
        "Differential privacy", given is not None, key=key, disabled=given is not None,
        help="Set in the federation file, so it stays on." if given is not None else "DP-SGD at every hospital.",
    ):  # fmt: skip
        return None
    epsilon = st.number_input(
        "Epsilon, at most", 0.1, 100.0, given.epsilon if given else EPSILON, step=1.0, format="%g", width=200,
        key=f"{key}_epsilon", help="What all planned rounds together may spend; less protects more and learns less.",
    )  # fmt: skip
    st.caption(
        "One training image more or less changes the probability of anything learned from a hospital's updates of one "
        f"arm by a factor of at most e^{epsilon:g}{_about(epsilon)}, but for delta. That is about images, not "
        "patients, and not about losses, counts, validation or what publishing makes of images (docs/privacy.md). "
        "What a round spends is known once it is trained."
    )
    if said := _needs(federation):
        st.caption(f"So this training {said}.")
    return float(epsilon)


def privacy_changes(federation: Federation, epsilon: float) -> list[str]:
    """Epsilon, and what cannot stay as the file has it."""
    changes = [] if federation.privacy and federation.privacy.epsilon == epsilon else [f"privacy.epsilon={epsilon:g}"]
    if _mixes_images(federation):
        changes.append("model.norm=group")
    if federation.training.class_weights != "none":
        changes.append("training.class_weights=none")
    return changes


def draw_secure_aggregation(federation: Federation, key: str, *, loopback: bool) -> bool:
    given = federation.secure_aggregation is not None
    secure = st.toggle(
        "Secure aggregation", given, key=key, disabled=given,
        help="Set in the federation file, so it stays on." if given else "The coordinator opens sums alone.",
    )  # fmt: skip
    if secure:
        who = (
            "Each hospital's process keeps its own secrets, but whoever owns this machine can read them all."
            if loopback
            else "In one process this is a rehearsal: whoever runs it can read everything, and the run will say so."
        )
        st.caption(
            "The coordinator opens the sum of a round's updates and no single one. Losses and counts are not masked, "
            f"and the sum itself may tell of images (docs/secure-aggregation.md). {who}"
        )
    return secure


def _needs(federation: Federation) -> str:
    """What privacy changes beside itself, in words."""
    said = []
    if _mixes_images(federation):
        said.append("has GroupNorm in place of BatchNorm, which mixes images (compare it with one that has it too)")
    if federation.training.class_weights != "none":
        said.append("leaves class weights away, which would tell counts without noise")
    return ", and ".join(said)


def _mixes_images(federation: Federation) -> bool:
    return federation.model.has_batch_norm and not federation.model.freeze_backbone


def _about(epsilon: float) -> str:
    return f" (about {math.exp(epsilon):,.0f})" if 1 <= epsilon <= 10 else ""
