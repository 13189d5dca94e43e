"""How many readers at once: a small machine says that it is full before it runs out of memory.

A seat is held from a reader's first page for as long as their connection stands. A reader without one costs a page of
two sentences.
"""

import os
from threading import Lock

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from engine.results.words import count

SEATS = 20  # readers whom 690 MB hold: benchmarks/README.md
VARIABLE = "CONSILIUM_SESSIONS"
_lock = Lock()
_taken: set[str] = set()


def seats() -> int:
    """$CONSILIUM_SESSIONS where that is a whole number above 0, else 20."""
    given = os.environ.get(VARIABLE, "")
    return int(given) if given.isdecimal() and int(given) > 0 else SEATS


def take_seat() -> None:
    """End the page with a sentence where every seat is taken."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists() or _sits(context.session_id):
        return
    st.info(
        f"This machine holds {count(seats(), 'reader')} at once, and every place is taken. One is free as soon as "
        "somebody closes the page.",
        icon=":material/event_seat:",
    )
    st.button("Try again", key="try_again")
    st.stop()


def _sits(session: str) -> bool:
    """Seats of closed connections are free again."""
    server = runtime.get_instance()
    with _lock:
        _taken.difference_update([one for one in _taken if not server.is_active_session(one)])
        if session not in _taken and len(_taken) >= seats():
            return False
        _taken.add(session)
        return True
