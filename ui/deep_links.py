"""Choices that live in the URL, so that a reload or a sent link shows the same. Widgets only ever write to it."""

from collections.abc import Iterable, Sequence

import streamlit as st

APART = ","  # between several names; none of ours has one


def one_from_url(parameter: str, widget: str, options: Sequence[str], default: str) -> None:
    """Give a widget the URL's value before it is drawn; what is no option counts as the default."""
    asked = st.query_params.get(parameter)
    st.session_state[widget] = asked if asked in options else default


def several_from_url(parameter: str, widget: str, options: Iterable[str], at_most: int) -> None:
    known = set(options)
    asked = dict.fromkeys(st.query_params.get(parameter, "").split(APART))
    st.session_state[widget] = [name for name in asked if name in known][:at_most]


def text_from_url(parameter: str, widget: str) -> None:
    st.session_state[widget] = st.query_params.get(parameter, "")


def to_url(parameter: str, widget: str) -> None:
    """A widget's on_change. What is empty leaves the URL."""
    value = st.session_state[widget]
    text = APART.join(value) if isinstance(value, list) else str(value or "")
    if text:
        st.query_params[parameter] = text
    elif parameter in st.query_params:
        del st.query_params[parameter]
