"""Evaluation's view "Who gains": federated less each hospital's own model, less pooled, and hospitals left out."""

import shlex
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from pydantic import ValidationError

from engine.config import Federation
from engine.results.answers import read_answers
from engine.results.gains import Gain, LeftOut, compare_left_out, gains, left_out_runs, worst_served
from engine.results.rounds import ALL
from engine.results.run_folder import RUN_NAME, Run
from engine.results.subgroups import FEWEST_GROUPS
from engine.results.words import count, join_words
from ui.answers import load_answers
from ui.forest import GREY, Series, forest_figure
from ui.loaders import load_audit, run_stamp
from ui.matrices import SCORES, column_name
from ui.palette import hospital_colour
from ui.pretext import elsewhere
from ui.run_index import read_entries
from ui.words import DASH, estimate_text, points_text, trainers_text

STILL = {"displayModeBar": False}
OFFERED = [metric for metric in SCORES if metric != "ece"]


def draw_gains(run: Run) -> None:
    """Raises RunError where the run holds no predictions."""
    federation = run.federation
    answer = st.container()
    metric = st.segmented_control(
        "Score", OFFERED, default=federation.headline, format_func=SCORES.__getitem__, key="gain_score", required=True,
        wrap=True,
    )  # fmt: skip
    load_answers(run, "test")  # what is wrong with it is said here, not out of a cache
    found = _gains(str(run.folder), run_stamp(run, "predictions.parquet"), metric)
    if not found:
        st.info("This run has no federated model with test images, so nobody can gain by it.", icon=":material/info:")
        return
    answer.markdown(gains_sentence(federation, found, metric))
    st.plotly_chart(gains_figure(federation, found, metric), config=STILL, key="gains")
    st.caption(gains_caption(found))
    st.table(gains_table(federation, found), border="horizontal", hide_index=True)
    _draw_left_out(run, metric)


def gains_sentence(federation: Federation, found: list[Gain], metric: str) -> str:
    """How many hospitals gain, who is served worst, and what pooling would add. Below FEWEST_GROUPS groups no interval
    is wide enough to be believed, so such images do not tell."""
    compared = [one for one in found if one.gain is not None]
    parts = []
    if compared:
        enough = [one for one in compared if one.n_groups >= FEWEST_GROUPS]
        better = sum(one.gain.low > 0 for one in enough if one.gain)
        worse = [federation.display_name(one.hospital) for one in enough if one.gain and one.gain.high < 0]
        unsure = len(compared) - better - len(worse)
        loses = f"{join_words(worse)} {'loses' if len(worse) == 1 else 'lose'}, " if worse else ""
        parts.append(
            f"By {_named(metric)} on their own test images **{better} of {count(len(compared), 'hospital')}** "
            f"{'gains' if better == 1 else 'gain'} by the federated model over their own, {loses}and for {unsure} the "
            "images do not tell."
        )
    worst = worst_served(found)
    if worst is not None:
        parts.append(
            f"It serves **{federation.display_name(worst.hospital)}** worst: {estimate_text(worst.federated)}."
        )
    everyone = found[-1]
    if everyone.gap is not None:
        parts.append(
            f"Beside pooling the images of {trainers_text(federation)} it is at {points_text(everyone.gap)} points "
            f"on all {everyone.n_images:,} test images."
        )
    return " ".join(parts)


def gains_figure(federation: Federation, found: list[Gain], metric: str) -> go.Figure:
    """A row per hospital and one for all images: against its own model, and against pooled."""
    series = []
    for name, symbol, estimates in (
        ("Federated less the hospital's own", "circle", [one.gain for one in found]),
        ("Federated less pooled", "diamond", [one.gap for one in found]),
    ):
        if any(estimate is not None for estimate in estimates):
            colours = [GREY if one.hospital == ALL else hospital_colour(federation, one.hospital) for one in found]
            texts = [
                f"{column_name(federation, one.hospital)}, n = {one.n_images:,}<br>{name}<br>{points_text(estimate)}"
                for one, estimate in zip(found, estimates, strict=True)
            ]
            series.append(Series(name, symbol, estimates, colours, texts))
    names = [column_name(federation, one.hospital) for one in found]
    title = f"Points of {_named(metric)};<br>right of 0 federated is better"
    return forest_figure(names, series, title, unit="", is_difference=True)


def gains_table(federation: Federation, found: list[Gain]) -> pd.DataFrame:
    rows = [
        [
            column_name(federation, one.hospital),
            points_text(one.gain),
            estimate_text(one.federated),
            DASH if one.alone is None else estimate_text(one.alone),
            DASH if one.pooled is None else estimate_text(one.pooled),
            points_text(one.gap),
            f"{one.n_images:,}",
        ]
        for one in found
    ]
    columns = ["On images of", "Gain, points", "Federated", "Its own model", "Pooled", "Gap to pooled, points", "n"]
    return pd.DataFrame(rows, columns=columns)


def gains_caption(found: list[Gain]) -> str:
    few = min(one.n_groups for one in found)
    return (
        "Both models read the same test images; bars are 95% intervals of the difference, paired bootstrap over groups "
        f"(patients, where they are known; the fewest at one place: {few:,}). Below {FEWEST_GROUPS} groups none is "
        "counted as telling anything. Each interval stands for itself: of many hospitals one may lie beside 0 by "
        "chance. They hold what other images would change, not another training."
    )


def left_out_table(federation: Federation, found: list[LeftOut]) -> pd.DataFrame:
    rows = [
        [
            federation.display_name(one.hospital),
            estimate_text(one.unseen),
            DASH if one.alone is None else estimate_text(one.alone),
            points_text(one.over_alone),
            estimate_text(one.together),
            points_text(one.taking_part),
            f"{one.n_images:,}",
            one.run,
        ]
        for one in found
    ]
    columns = [
        "Left out", "Model that never saw it", "Its own model", "Never saw less own, points", "Model it took part in",
        "Taking part adds, points", "n", "Run",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _draw_left_out(run: Run, metric: str) -> None:
    federation = run.federation
    st.subheader("A hospital left out", anchor=False)
    if federation.left_out is not None:
        name = federation.display_name(federation.left_out)
        st.markdown(
            f"This run is such a one: **{name}** trained nothing and chose no round, so its figures above are those of "
            "a hospital that joins later. The run of all hospitals, with the same settings, sets them beside its own."
        )
        return
    found = _left_out(str(run.folder), run_stamp(run, "predictions.parquet"), _candidates(run), metric)
    if not found:
        question = "What would a hospital get from a model that never saw its images? No run beside this one says so"
        command = left_out_command(run)
        if command is None:
            st.markdown(f"{question}, and with these settings no hospital can be left out.")
            return
        st.markdown(f"{question}. This trains one, on the same splits, with one hospital to test on:")
        st.code(command, language="bash", wrap_lines=True)
        return
    st.markdown(" ".join(left_out_sentence(federation, one) for one in found))
    st.table(left_out_table(federation, found), border="horizontal", hide_index=True)
    patients_known = not any(finding.kind == "patients-unknown" for finding in load_audit(run).findings)
    st.caption(
        "The same settings and splits, and the same test images; paired bootstrap over groups. One training each. "
        + elsewhere_text(federation, patients_known)
    )


def elsewhere_text(federation: Federation, patients_known: bool) -> str:
    """Whether the model may have learned from the left-out hospital's patients at another hospital."""
    if federation.source is not None and patients_known:
        return "A patient whom two hospitals know is on one side of the split at both."
    return (
        "Exact copies of an image are on one side of the split; whether others trained on a patient of the hospital "
        "left out is not known."
    )


def left_out_command(run: Run) -> str | None:
    """What trains the like of `run` without its first hospital; None where its settings leave nobody out, or where it
    began from another run, which has most likely seen whoever is left out."""
    if RUN_NAME.fullmatch(run.federation.model.weights):
        return None
    first = run.federation.hospital[0].id
    without = {**run.federation.model_dump(), "left_out": first, "arms": ("federated",)}
    try:
        Federation.model_validate(without)
    except ValidationError:
        return None
    kept = [change for change in run.config.changes if change.split("=")[0].strip() not in ("arms", "left_out")]
    changes = [part for change in kept for part in ("--set", change)]
    command = ["python", "-m", "engine", "train", run.config.federation_file, "--without", first]
    return shlex.join([*command, "--arms", "federated", *changes, *elsewhere(run)])


def left_out_sentence(federation: Federation, one: LeftOut) -> str:
    """What a hospital gets from a model that never saw its images."""
    name = federation.display_name(one.hospital)
    beside = "" if one.over_alone is None else f", {points_text(one.over_alone)} points beside its own model"
    return (
        f"A model that never saw **{name}** reads its images at {estimate_text(one.unseen)}{beside}; taking part adds "
        f"{points_text(one.taking_part)} points."
    )


def _named(metric: str) -> str:
    return SCORES[metric] if metric == "macro_f1" else SCORES[metric].lower()


@st.cache_data(max_entries=20, show_spinner="Comparing the models")
def _gains(folder: str, stamp: str, metric: str) -> list[Gain]:
    run = Run(Path(folder))
    return gains(load_answers(run, "test"), [one.id for one in run.federation.hospital], metric)


def _candidates(run: Run) -> tuple[tuple[str, str], ...]:
    """Folder and stamp of every sound run that left a hospital out, the oldest first."""
    entries = [one for one in read_entries(run.folder.parent) if one.state == "finished" and one.left_out is not None]
    return tuple((one.folder, run_stamp(Run(Path(one.folder)), "predictions.parquet")) for one in reversed(entries))


@st.cache_data(max_entries=20, show_spinner="Comparing with the runs that left a hospital out")
def _left_out(folder: str, stamp: str, candidates: tuple[tuple[str, str], ...], metric: str) -> list[LeftOut]:
    run = Run(Path(folder))
    whole, found = load_answers(run, "test"), []
    for other in left_out_runs(run, [Run(Path(one)) for one, _ in candidates]):
        without = read_answers(other, "test")  # kept nowhere: the cache of answers holds four, and there may be more
        found.append(compare_left_out(other.name, str(other.federation.left_out), without, whole, metric))
    return [one for one in found if one is not None]
