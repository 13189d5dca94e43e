"""The one note of a session: what this is, and what happens to an image. Nothing is read before it is understood."""

import streamlit as st

from engine.results.words import DISCLAIMER

UNDERSTOOD = "understood"
NOTE = (
    f"**{DISCLAIMER}** No decision about a patient may rest on what stands here.  \n"
    "An image that you give stays in this server's memory while it is in the uploader, and goes when you remove it "
    "or close the page. It is written to no disk, no cache and no log, and it is sent to nobody."
)


def ask_once() -> bool:
    """True once the reader has agreed in this session; until then the note stands here."""
    if st.session_state.get(UNDERSTOOD):
        return True
    with st.container(border=True, key="note"):
        st.markdown(NOTE)
        st.button("I understand", type="primary", on_click=_agree)
    return False


def _agree() -> None:
    st.session_state[UNDERSTOOD] = True
