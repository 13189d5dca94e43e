"""What the views beyond Scores share: a run's answers, cached, and the choice of images, model and hospital."""

from pathlib import Path

import streamlit as st

from engine.config import EXTERNAL, Federation
from engine.results.answers import Answers, read_answers
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from ui.loaders import load_evaluation, run_stamp
from ui.matrices import column_name
from ui.palette import model_order

SPLITS = ("test", EXTERNAL, "validation")
SELECT_PX = 320


def load_answers(run: Run, split: str) -> Answers:
    """Raises RunError where the run holds none. Never to be changed: sessions share it."""
    return _answers(str(run.folder), run_stamp(run, "predictions.parquet"), split)


def choose_split(run: Run, key: str, first: str = "test") -> str:
    """Which images: those of the test split first, or of another. Ends the page where the run holds none."""
    splits = load_evaluation(run)["splits"]
    offered = [split for split in SPLITS if splits.get(split)]
    if not offered:
        st.info("This run holds neither test nor validation images, so there is nothing to evaluate.")
        st.stop()
    default = first if first in offered else offered[0]
    chosen = st.segmented_control("Images", offered, default=default, key=key, required=True)
    return str(chosen)


def choose_model(answers: Answers, federation: Federation, key: str) -> str:
    models = model_order(federation, list(answers.logits))
    return str(st.selectbox("Model", models, format_func=federation.model_name, key=key, width=SELECT_PX))


def choose_hospital(answers: Answers, federation: Federation, key: str) -> str:
    return str(
        st.selectbox(
            "On images of",
            hospitals_in(answers, federation),
            format_func=lambda hospital: column_name(federation, hospital),
            key=key,
            width=SELECT_PX,
        )
    )


def hospitals_in(answers: Answers, federation: Federation) -> list[str]:
    """ "all" and the hospitals with images, in the federation's order; of the external set that alone."""
    held = set(answers.images["hospital"])
    return [EXTERNAL] if EXTERNAL in held else [ALL, *(one.id for one in federation.hospital if one.id in held)]


@st.cache_resource(max_entries=4, show_spinner="Reading the predictions")
def _answers(folder: str, stamp: str, split: str) -> Answers:
    return read_answers(Run(Path(folder)), split)
