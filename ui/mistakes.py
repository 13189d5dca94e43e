"""Evaluation's view "Errors": what a model calls wrongly, the surest first, with the image where it lies here."""

from pathlib import Path

import pandas as pd
import streamlit as st

from engine.config import Federation, data_root
from engine.errors import ConsiliumError, ImageError
from engine.results.answers import Answers
from engine.results.files import sha256_of
from engine.results.mistakes import mistakes
from engine.results.run_folder import Run
from engine.results.words import count, percent
from ui.answers import choose_hospital, choose_model, choose_split, load_answers
from ui.matrices import column_name
from ui.pictures import SAMPLE_PX, browser_picture

PER_PAGE = 12
SURE = 0.9


def draw_mistakes(run: Run) -> None:
    """Raises RunError where the run holds no predictions."""
    federation = run.federation
    answer = st.container()
    with st.container(horizontal=True):
        split = choose_split(run, "mistakes_split")
        answers = load_answers(run, split)
        model = choose_model(answers, federation, "mistakes_model")
        hospital = choose_hospital(answers, federation, "mistakes_hospital")
    mine = answers.at(hospital)
    wrong = mistakes(mine, model)
    answer.markdown(mistakes_sentence(federation, wrong, mine, model))
    if wrong.empty:
        return
    starts = range(0, len(wrong), PER_PAGE)
    start = 0
    if len(starts) > 1:
        start = st.selectbox(
            "Errors", starts, format_func=lambda at: f"{at + 1} to {min(at + PER_PAGE, len(wrong))} of {len(wrong):,}",
            key=f"mistakes_page_{model}_{split}_{hospital}", width=200,
        )  # fmt: skip
    shown = wrong.iloc[start : start + PER_PAGE]
    st.table(mistakes_table(federation, shown), border="horizontal", hide_index=True)
    st.caption(
        "Probabilities as trained. A sure error may be a hard image, a wrong label or a habit of the model; the image "
        "tells which. Paths lie below the federation's data folder."
    )
    _draw_images(run, shown)


def mistakes_sentence(federation: Federation, wrong: pd.DataFrame, answers: Answers, model: str) -> str:
    """How many errors, how many of them sure, and which confusion is the most frequent."""
    name, n_images = federation.model_name(model), len(answers)
    if wrong.empty:
        return f"**{name}** calls none of these {count(n_images, 'image')} wrongly."
    sure = int((wrong["confidence"] >= SURE).sum())
    pairs = wrong.groupby(["label", "called"]).size()
    truly, called = pairs.idxmax()
    return (
        f"**{name}** calls **{len(wrong):,} of {n_images:,}** images wrongly, {sure:,} of them while at least "
        f"{percent(SURE, 0)} sure. Most often {truly} is called {called} ({count(int(pairs.max()), 'image')})."
    )


def mistakes_table(federation: Federation, wrong: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Called": wrong["called"],
            "Sure": [percent(value) for value in wrong["confidence"]],
            "Truly": wrong["label"],
            "Gave the truth": [percent(value) for value in wrong["p_label"]],
            "Hospital": [column_name(federation, hospital) for hospital in wrong["hospital"]],
            "Image": wrong["path"],
        }
    )


def image_files(run: Run, wrong: pd.DataFrame) -> dict[str, Path]:
    """By path the files that lie on this machine and are the very ones that the run read."""
    root = data_root(run.federation)
    if not root.is_dir():
        return {}
    dealt = run.read_json("dataset_splits.json")
    hashes = {row["path"]: row["sha256"] for row in [*dealt["images"], *dealt.get("external", [])]}
    files = {path: root / path for path in wrong["path"]}
    return {path: file for path, file in files.items() if file.is_file() and sha256_of(file) == hashes.get(path)}


def _draw_images(run: Run, wrong: pd.DataFrame) -> None:
    """Behind a toggle, because pictures of patients are not for every glance over a shoulder."""
    try:
        files = image_files(run, wrong)
    except (ConsiliumError, OSError, KeyError, TypeError) as error:
        st.caption(f"No images: {error}")
        return
    if not files:
        st.caption("Images show only on a machine where the hospital's images lie; they are not on this one.")
        return
    if not st.toggle("Show the images", key="mistakes_images"):
        return
    federation = run.federation
    scanners = {one.id: one.scanner for one in federation.hospital}
    with st.container(horizontal=True):
        for row in wrong.to_dict("records"):
            said = f"Called {row['called']} ({percent(row['confidence'])}), truly {row['label']}"
            with st.container(width=SAMPLE_PX):
                if row["path"] not in files:
                    st.caption(f"{said}. The image is not on this machine, or not the one that the run read.")
                    continue
                try:
                    picture = browser_picture(
                        files[row["path"]], colour=federation.model.colour, longest_px=SAMPLE_PX,
                        scanner=scanners.get(row["hospital"]),
                    )  # fmt: skip
                except ImageError as error:
                    st.caption(f"{said}: {error}")
                    continue
                origin = ". Synthetic" if federation.synthetic else ""
                st.image(picture.url, alt=f"An image labelled {row['label']}", width=SAMPLE_PX)
                st.caption(f"{said}{origin}. {row['path']}")
