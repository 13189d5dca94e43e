"""How it learned: validation over rounds, the price of a round, and a run while it is being written."""

import streamlit as st

from engine.errors import ConsiliumError
from engine.results.run_folder import Run, artifacts_folder
from ui.curves import METRICS, hospital_curves, model_curves
from ui.frame import draw_frame, show_federation
from ui.key_figures import draw_training_figures, progress_sentence
from ui.live import draw_progress
from ui.loaders import load_rounds
from ui.pretext_curves import draw_pretext_curves, pretext_progress
from ui.run_index import read_entries
from ui.selection import select_run, stop_with

VIEWS = ("Every model", "Federated, by hospital")


def draw_training(run: Run, live: bool) -> None:
    """In a fragment where the run is being written, so that only this part is drawn again."""
    if live:
        if run.is_finished:
            st.rerun()
        draw_progress(run)
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
    st.plotly_chart(draw(rounds, run.federation, str(metric)), config={"displayModeBar": False}, key="curves")
    st.caption(
        "Validation images only; test images are kept for Evaluation. The federated and the pooled model are validated "
        "on the images of all hospitals, each hospital's own model on its own images, so compare those with care."
    )


draw_frame("Training", "How it learned.")
run = select_run("any")
try:
    show_federation(run.federation)
except ConsiliumError as error:
    stop_with(error)
newest = read_entries(artifacts_folder())[0]
if newest.state == "running" and newest.name != run.name:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge("running", color="blue", icon=":material/sync:")
        st.page_link(
            "pages/2_Training.py", label=f"{newest.name} is being trained now", query_params={"run": newest.name}
        )
if run.is_finished:
    draw_training(run, live=False)
else:
    st.fragment(draw_training, run_every="2s")(run, live=True)
