"""Read first, compare later: the reader's own label before any model's. Labels live in this session alone."""

from collections.abc import Collection

import streamlit as st

from engine.config import Federation
from engine.results.words import count, join_words
from ui.opinions import Opinions

OWN = "own_readings"  # {image key: label}, never an image
SHOWN = "shown"  # keys of images whose opinions this session has seen
TOO_LATE = "Reading first begins with the next image: this one's opinions were shown already."
EXPLAIN = "Decide first, without the models. Your label stays in this session alone, and you cannot change it after."


def must_read_first(key: str) -> bool:
    """Whether the reader's label has to come before the opinions. Too late for an image whose opinions were shown."""
    waiting = st.session_state.get("read_first") and key not in st.session_state.get(SHOWN, ())
    return bool(waiting) and own_label(key) is None


def own_label(key: str) -> str | None:
    """What the reader said about an image before any opinion; None where nothing."""
    return st.session_state.get(OWN, {}).get(key) if st.session_state.get("read_first") else None


def note_shown(key: str) -> None:
    """From now on a label of this image would no longer be the reader's own alone."""
    st.session_state[SHOWN] = {*st.session_state.get(SHOWN, ()), key}


def is_too_late(key: str) -> bool:
    return bool(st.session_state.get("read_first")) and key in st.session_state.get(SHOWN, ()) and not own_label(key)


def forget_others(keys: Collection[str]) -> None:
    """Labels of images that are no longer here go with them."""
    kept = {key: label for key, label in st.session_state.get(OWN, {}).items() if key in keys}
    st.session_state[OWN] = kept
    st.session_state[SHOWN] = {key for key in st.session_state.get(SHOWN, ()) if key in keys}


def ask_reader(federation: Federation, name: str, key: str) -> None:
    """The reader's turn. The opinions come with the next run, once the label stands."""
    st.subheader(f"Your reading of {name}", anchor=False)
    st.caption(EXPLAIN)
    label = st.radio("What do you see?", federation.classes, index=None, key=f"own {key}")
    st.button(
        "Show the opinions", disabled=label is None, on_click=_keep, args=(key, label), key="compare", type="primary"
    )


def agreement_with_reader(federation: Federation, opinions: Opinions, label: str) -> str:
    """Who says what the reader said, who leaves it open, who does not."""
    agree = [model for model, opinion in opinions.items() if opinion.prediction_set == (label,)]
    open_to_it = [
        model for model, opinion in opinions.items() if label in opinion.prediction_set and model not in agree
    ]
    against = [model for model in opinions if model not in agree and model not in open_to_it]
    said = [f"You said {label}."]
    if "global" in opinions:
        verdict = "agrees" if "global" in agree else "holds it possible" if "global" in open_to_it else "disagrees"
        said.append(f"{federation.model_name('global')} {verdict}.")
    groups = ((agree, "agrees", "agree"), (open_to_it, "holds it possible", "hold it possible"))
    parts = [f"{len(found)} {one if len(found) == 1 else many}" for found, one, many in groups if found]
    if against:
        parts.append(f"{len(against)} {'disagrees' if len(against) == 1 else 'disagree'}")
    said.append(f"Of {count(len(opinions), 'model')}, {join_words(parts)}.")
    return " ".join(said)


def _keep(key: str, label: str) -> None:
    st.session_state[OWN] = {**st.session_state.get(OWN, {}), key: label}
