"""Evaluation's view "Subgroups": a model's score by age band, sex, body site, as far as the run recorded them."""

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.config import Federation
from engine.results.run_folder import Run
from engine.results.subgroups import FEWEST_GROUPS, UNKNOWN, Subgroup, read_subgroups, score_subgroups
from ui.answers import choose_hospital, choose_model, choose_split, load_answers
from ui.forest import Series, forest_figure
from ui.matrices import SCORES
from ui.palette import model_colour
from ui.roc import STILL
from ui.words import DASH, estimate_text

OFFERED = [metric for metric in SCORES if metric != "ece"]


def draw_subgroups(run: Run) -> None:
    """Raises RunError where the run holds no predictions, or damaged subgroups."""
    columns = read_subgroups(run)
    if not columns:
        _say_none(run)
        return
    federation = run.federation
    answer = st.container()
    with st.container(horizontal=True):
        column = st.segmented_control("By", list(columns), default=next(iter(columns)), key="subgroup", required=True)
        metric = st.segmented_control(
            "Score", OFFERED, default=federation.headline, format_func=SCORES.__getitem__, key="subgroup_score",
            required=True, wrap=True,
        )  # fmt: skip
    with st.container(horizontal=True):
        split = choose_split(run, "subgroup_split")
        answers = load_answers(run, split)
        model = choose_model(answers, federation, "subgroup_model")
        hospital = choose_hospital(answers, federation, "subgroup_hospital")
    found = score_subgroups(answers.at(hospital), model, columns[str(column)], str(metric))
    answer.markdown(subgroups_sentence(federation, found, model, str(column), str(metric)))
    st.plotly_chart(subgroups_figure(federation, found, model, str(metric)), config=STILL, key="subgroups")
    st.caption(
        "95% intervals by bootstrap over groups. Subgroups differ in their class mix too, and macro scores are means "
        "over the classes among a subgroup's own images, so a difference need not be the subgroup's doing. Below "
        f"{FEWEST_GROUPS} groups (patients, where they are known) neither score nor number stands."
    )
    st.table(subgroups_table(found, str(column), str(metric)), border="horizontal", hide_index=True)


def subgroups_sentence(federation: Federation, found: list[Subgroup], model: str, column: str, metric: str) -> str:
    """The worst and the best served of those that are known, and whether their intervals meet."""
    scored = [one for one in found if one.score is not None and one.word != UNKNOWN]
    name = SCORES[metric] if metric == "macro_f1" else SCORES[metric].lower()
    if len(scored) < 2:
        return f"Too few images to tell subgroups by {column} apart."
    worst, *_, best = sorted(scored, key=lambda one: one.score.value if one.score else 0)
    if worst.score is None or best.score is None:
        return ""
    meet = " Their intervals meet." if worst.score.high >= best.score.low else ""
    return (
        f"By {column}, **{federation.model_name(model)}** reads **{worst.word}** worst, {name} "
        f"{estimate_text(worst.score)}, and {best.word} best, {estimate_text(best.score)}.{meet}"
    )


def subgroups_figure(federation: Federation, found: list[Subgroup], model: str, metric: str) -> go.Figure:
    colour = model_colour(federation, model)
    texts = [
        f"{one.word}, n = {images_text(one)}<br>{'' if one.score is None else estimate_text(one.score)}"
        for one in found
    ]
    series = Series(SCORES[metric], "circle", [one.score for one in found], [colour] * len(found), texts)
    return forest_figure([one.word for one in found], [series], SCORES[metric])


def subgroups_table(found: list[Subgroup], column: str, metric: str) -> pd.DataFrame:
    rows = [
        [
            one.word,
            DASH if one.score is None else estimate_text(one.score),
            images_text(one),
            _few(one.n_groups),
            str(one.n_classes),
        ]
        for one in found
    ]
    return pd.DataFrame(rows, columns=[column.capitalize(), SCORES[metric], "n", "Groups", "Classes"])


def images_text(one: Subgroup) -> str:
    """How many images, where they are of enough groups to be nobody's."""
    if one.n_groups >= FEWEST_GROUPS:
        return f"{one.n_images:,}"
    return _few(one.n_images) if one.n_images < FEWEST_GROUPS else DASH


def _few(number: int) -> str:
    return f"{number:,}" if number >= FEWEST_GROUPS else f"<{FEWEST_GROUPS}"


def _say_none(run: Run) -> None:
    source = run.federation.source
    if source is None or source.manifest is None:
        st.info(
            "This federation's images come without a table that says more of them, so there are no subgroups.",
            icon=":material/info:",
        )
        return
    st.info(
        f"{run.name} recorded no subgroups. A run does where [source] names columns of its manifest, numbers cut into "
        "bands. Refused are the image and the patient column, bare numbers, more than 30 different words, and words "
        "that fewer than 5 patients have on average; whether what is left names somebody is for you to judge:",
        icon=":material/info:",
    )
    st.code("subgroups = { age = [20, 40, 60, 80], sex = [] }", language="toml")
