"""What stands around every page: name and icon, title, disclaimer, and what of the data is not real."""

import gc
from functools import cache
from pathlib import Path

import streamlit as st

from engine.config import Federation
from engine.results.words import DISCLAIMER
from ui.memory import give_back
from ui.pretext import pretext_sentence
from ui.seats import take_seat

ASSETS = Path(__file__).parent / "assets"
NAME = "Consilium"


def draw_frame(title: str, lead: str = "") -> None:
    """First line of every page: a deep link runs the page without app.py, so nothing may rely on that."""
    settle(title)
    icon = str(ASSETS / "favicon.svg")
    st.set_page_config(page_title=f"{title} - {NAME}", page_icon=icon, layout="wide")
    st.logo(str(ASSETS / "wordmark.svg"), size="large", icon_image=icon)
    st.html(ASSETS / "style.css")
    st.title(title, anchor=False)
    if lead:
        st.markdown(lead)
    with st.sidebar.container(key="disclaimer"):
        st.caption(DISCLAIMER)
    take_seat()


@cache
def settle(page: str) -> None:
    """Take what a page's libraries hold out of the garbage collector's sight, once.

    Streamlit collects after every run and holds up every reader meanwhile: 0.1 s a page, with this a hundredth of it.
    """
    give_back()
    gc.freeze()


def show_federation(federation: Federation) -> None:
    """Badges and sentences that say what is simulated, synthetic or learned without labels, and what a licence asks."""
    said = [
        ("synthetic", federation.synthetic, "violet"),
        ("simulated", federation.simulated, "orange"),
        ("licence", federation.licence, "gray"),
        ("without labels", pretext_sentence(federation), "blue"),
    ]
    lines = [f":{colour}-badge[{word}] :small[{sentence}]" for word, sentence, colour in said if sentence]
    if lines:
        st.markdown("  \n".join(lines))
