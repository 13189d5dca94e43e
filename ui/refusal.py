"""A refused image: a calm panel that says why, and no label. Opinions only where the reader insists."""

from collections.abc import Sequence

import streamlit as st

from engine.config import Federation

HEADING = "Refused: no opinion on this image"
WARNING = (
    "The gate refused this image: it takes it for another kind than the models were made for. "
    "What they say about it is a guess that nobody has measured. Do not rely on it."
)


def refusal_sentences(federation: Federation, reasons: Sequence[str]) -> str:
    """Markdown: the reasons as a list, then what would be read."""
    listed = "\n".join(f"- {reason}" for reason in reasons)
    return f"{listed}\n\nThe models are made for {federation.intended_input}. The gate may err, on a few of those too."


def draw_refusal(federation: Federation, reasons: Sequence[str], key: str) -> bool:
    """Whether the reader wants the opinions anyway; asked anew for each image."""
    with st.container(border=True, key="refusal"):
        st.subheader(HEADING, anchor=False)
        st.markdown(refusal_sentences(federation, reasons))
        insists = st.toggle("Show the opinions anyway", key=f"insist {key}")
    if insists:
        st.warning(WARNING, icon=":material/warning:")
    return insists
