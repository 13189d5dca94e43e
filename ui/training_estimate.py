"""What a training will cost: three figures, and what each of them is of."""

from collections.abc import Mapping

import streamlit as st

from engine.config import Federation
from engine.results.estimate import Estimate
from engine.results.words import count, join_words
from ui.key_figures import FIGURE_WIDTH_PX
from ui.live import roughly
from ui.words import duration, format_bytes


def draw_estimate(estimate: Estimate, federation: Federation, *, loopback: bool) -> None:
    down = sum(hospital.bytes_down for hospital in estimate.hospitals.values())
    up = sum(hospital.bytes_up for hospital in estimate.hospitals.values())
    with st.container(horizontal=True):
        time = "not known" if estimate.seconds is None else roughly(estimate.seconds).removeprefix("about ")
        st.metric("Time, about", time, border=True, width=FIGURE_WIDTH_PX)
        memory = format_bytes(sum(estimate.memory_bytes.values()))
        st.metric("Memory, at least", memory, border=True, width=FIGURE_WIDTH_PX)
        if estimate.hospitals:
            st.metric("Sent in all", format_bytes(down + up), border=True, width=FIGURE_WIDTH_PX)
    st.caption(time_sentence(estimate, federation))
    st.caption(
        f"Memory counts {_parts(estimate.memory_bytes)}. Activations of a batch and the program itself come on top; "
        "decoded images are read from disk as they are needed."
    )
    if estimate.hospitals:
        st.caption(
            f"Sent counts the tensors of the federated model: {format_bytes(down)} to the hospitals and "
            f"{format_bytes(up)} back, over {count(federation.training.rounds, 'round')}. No image is among them."
        )
    if loopback:
        st.caption(
            "These are of one process. On loopback every hospital's process holds a network and the program itself, so "
            "memory is several times that, and all share this machine's cores. The network's own time, of starting, "
            "connecting and sending, is not among them."
        )


def time_sentence(estimate: Estimate, federation: Federation) -> str:
    """Where the time comes from, or why there is none."""
    if estimate.seconds is None:
        names = join_words([federation.model_name(model) for model in estimate.not_timed])
        what = names if estimate.timed_by else "this work"
        return f"Time: no run on such a machine has timed {what} yet. It is known once the first rounds are trained."
    runs = join_words(sorted(set(estimate.timed_by.values())))
    return (
        f"Time is that of all rounds: {duration(estimate.seconds)} as {runs} measured them on a machine with this "
        f"system, cores and threads, for {count(estimate.n_training_images, 'training image')}. A busy machine takes "
        "longer; reading images and the last evaluation come on top."
    )


def _parts(memory: Mapping[str, int]) -> str:
    return join_words([f"{name} ({format_bytes(n_bytes)})" for name, n_bytes in memory.items() if n_bytes])
