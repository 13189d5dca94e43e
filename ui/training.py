"""One run as Training shows it: how far it is, its figures, its curves, its log."""

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.run_folder import Run
from ui.curves import METRICS, hospital_curves, model_curves
from ui.downloads import svg_config
from ui.key_figures import draw_training_figures, progress_sentence
from ui.live import WatchState, draw_progress, watch_state
from ui.loaders import load_rounds
from ui.log import draw_log
from ui.pretext_curves import draw_pretext_curves, pretext_progress
from ui.words import trainers_text

LIVE_EVERY = "1s"  # and a second to draw: what is written shows within two
VIEWS = ("Every model", "Federated, by hospital")


def draw_training(run: Run, state: WatchState) -> None:
    """In a fragment where the run is not finished, so that only this part is drawn again, until `state` changes."""
    st.fragment(_draw, run_every=None if state == "finished" else LIVE_EVERY)(run, state)
    if (run.folder / "training.log").is_file() and st.toggle("Show the log", key="show_log"):
        st.fragment(draw_log, run_every=LIVE_EVERY if state == "running" else None)(run)


def _draw(run: Run, state: WatchState) -> None:
    if state != "finished":
        if watch_state(run) != state:
            st.rerun()
        draw_progress(run, state)
    try:
        rounds = load_rounds(run)
    except ConsiliumError as error:
        st.error(str(error))
        return
    if rounds["loss"].notna().sum() == 0:
        st.caption("The curves begin once the first round is validated.")
        return
    without_labels = run.federation.pretext is not None
    sentence = pretext_progress(rounds) if without_labels else progress_sentence(rounds, run)
    if sentence:
        st.markdown(sentence)
    draw_training_figures(rounds, run)
    if without_labels:
        draw_pretext_curves(rounds, run)
        return
    with st.container(horizontal=True):
        metric = st.segmented_control(
            "Validation",
            list(METRICS),
            default=run.federation.headline,
            format_func=METRICS.__getitem__,
            key="metric",
            required=True,
        )
        view = st.segmented_control("Show", VIEWS, default=VIEWS[0], key="view", required=True)
    draw = model_curves if view == VIEWS[0] else hospital_curves
    st.plotly_chart(draw(rounds, run.federation, str(metric)), config=svg_config(f"curves-{run.name}"), key="curves")
    st.caption(
        "Validation images only; test images are kept for Evaluation. The federated and the pooled model are validated "
        f"on the images of {trainers_text(run.federation)}, each hospital's own model on its own images, so "
        "compare those with care."
    )
