"""Key figures of a training in a wrapping row: what the chosen round reached, what a round costs."""

import pandas as pd
import streamlit as st

from engine.errors import ConsiliumError
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import count, percent
from ui.curves import METRICS, best_rows
from ui.loaders import load_evaluation
from ui.words import duration, format_bytes

FIGURE_WIDTH_PX = 172  # two beside each other on a phone
CHOSEN_BY = "macro_f1"  # what picks the best round, whatever score leads


def progress_sentence(rounds: pd.DataFrame, run: Run) -> str:
    """Where the federated model stands and how far from pooling the images, in plain words."""
    best, metric = best_rows(rounds), run.federation.headline
    if "global" not in best or pd.isna(best["global"][metric]):
        return ""
    chosen, last = best["global"], int(rounds[rounds["model"] == "global"]["round"].max())
    sentence = (
        f"The federated model was best after round {int(chosen['round'])} of {last}: {_name(metric)} "
        f"**{percent(chosen[metric])}** on {count(int(chosen['n_images']), 'validation image')}"
    )
    if "central" not in best or not run.is_finished:
        return f"{sentence}."
    points = 100 * (best["central"][metric] - chosen[metric])
    if abs(points) < 0.05:
        return f"{sentence}, the same as pooling all images."
    return f"{sentence}, {abs(points):.1f} points {'below' if points > 0 else 'above'} pooling all images."


def draw_training_figures(rounds: pd.DataFrame, run: Run) -> None:
    whole = rounds[(rounds["hospital"] == ALL)]
    federated = whole[whole["model"] == "global"]
    model = "global" if len(federated) else str(whole["model"].iloc[0])
    mine = whole[whole["model"] == model]
    row = st.container(horizontal=True, key="sparklines")
    chosen = best_rows(whole).get(model)
    metric = run.federation.headline
    if chosen is not None and run.federation.pretext is not None:
        row.metric(
            "Chosen round",
            f"{int(chosen['round'])} of {run.federation.training.rounds}",
            help=f"{run.federation.model_name(model)}: the round of the lowest mean validation loss, n = "
            f"{count(int(chosen['n_images']), 'image')}. A loss without labels says nothing of any diagnosis.",
            border=True,
            width=FIGURE_WIDTH_PX,
            chart_data=mine["loss"].dropna().tolist(),
        )
    elif chosen is not None and pd.notna(chosen[metric]):
        by = "this very figure" if metric == CHOSEN_BY else f"{_name(CHOSEN_BY)} on the same images"
        row.metric(
            f"Best {_name(metric)}",
            percent(chosen[metric]),
            help=f"{run.federation.model_name(model)}, validation, n = {count(int(chosen['n_images']), 'image')}; "
            f"round {int(chosen['round'])} of {run.federation.training.rounds}{_interval(run, model)}, "
            f"chosen by {by}, so it flatters a little.",
            border=True,
            width=FIGURE_WIDTH_PX,
            chart_data=mine[metric].dropna().tolist(),
        )
    row.metric(
        "Time per round",
        duration(mine["seconds"].median()),
        help=f"Median of {count(len(mine), 'round')} of the {'federated' if model == 'global' else 'first'} model, "
        f"validation included. All models together took {duration(whole['seconds'].sum())}.",
        border=True,
        width=FIGURE_WIDTH_PX,
        chart_data=mine["seconds"].tolist(),
    )
    if len(federated):
        moved = federated["bytes_down"] + federated["bytes_up"]
        row.metric(
            "Sent per round",
            format_bytes(moved.median()),
            help=f"Size of the weights that go to the hospitals and come back, median of {count(len(moved), 'round')}; "
            f"{format_bytes(moved.sum())} in all. {_pooling(run)}",
            border=True,
            width=FIGURE_WIDTH_PX,
            chart_data=moved.tolist(),
        )
    failures = rounds["failure"].dropna()
    if len(failures):
        with st.expander(f"{count(len(failures), 'update')} failed and was left out", icon=":material/warning:"):
            failed = rounds.dropna(subset=["failure"])
            for line in failed.to_dict("records"):
                st.markdown(
                    f"Round {line['round']}, {run.federation.display_name(line['hospital'])}: {line['failure']}"
                )


def _name(metric: str) -> str:
    """In the middle of a sentence."""
    return METRICS[metric][0].lower() + METRICS[metric][1:]


def _interval(run: Run, model: str) -> str:
    """The 95% interval of the chosen round's leading score on validation; known once a run is finished."""
    if not run.is_finished:
        return ""
    try:
        cell = load_evaluation(run)["splits"]["validation"][model][ALL]
        low, high = cell["intervals"][run.federation.headline]
    except (ConsiliumError, KeyError, TypeError):
        return ""
    return f", 95% interval {100 * low:.1f}-{100 * high:.1f}"


def _pooling(run: Run) -> str:
    """What moving the training images themselves would have cost; known once a run is finished."""
    if not run.is_finished:
        return ""
    try:
        n_bytes = run.read_json("communication.json")["pooling_once_bytes"]
        return f"Moving the training images once: {format_bytes(n_bytes)}."
    except (ConsiliumError, KeyError, TypeError):
        return ""
