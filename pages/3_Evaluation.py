"""How good, for whom: every model at every hospital first, then one cell of it in full."""

import streamlit as st

from engine.errors import ConsiliumError
from ui.evaluation_views import SCORES_VIEW, VIEWS
from ui.findings import caveats
from ui.frame import draw_frame, show_federation
from ui.imported import draw_imported
from ui.loaders import load_audit, load_evaluation
from ui.matrices import SCORES, answer_sentence, matrix_caption, score_matrix
from ui.one_cell import draw_cell
from ui.palette import model_order
from ui.probed import draw_probes
from ui.selection import select_run, stop_with
from ui.served import draw_served

STILL = {"displayModeBar": False}
DARK = st.context.theme.type == "dark"
draw_frame("Evaluation", "How good, for whom.")
run = select_run()
if run.is_imported:
    draw_imported(run, "Evaluation")
    st.stop()
try:
    federation, headline = run.federation, run.federation.headline
    show_federation(federation)
    if federation.pretext is not None:
        draw_probes(run)
        st.stop()
    view = st.segmented_control(
        "Show", [SCORES_VIEW, *VIEWS], default=SCORES_VIEW, key="evaluation_view", required=True, wrap=True
    )
    if view != SCORES_VIEW:
        VIEWS[view](run)
        st.stop()
    evaluation, audit = load_evaluation(run), load_audit(run)
    splits = evaluation["splits"]
except ConsiliumError as error:
    stop_with(error)

answer = st.container()
with st.container(horizontal=True):
    metric = st.segmented_control(
        "Score", list(SCORES), default=headline, format_func=SCORES.__getitem__, key="score", required=True, wrap=True
    )
    offered = [split for split in ("test", "external", "validation") if splits.get(split)]
    if not offered:
        st.info("This run holds neither test nor validation images, so there is nothing to evaluate.")
        st.stop()
    split = st.segmented_control("Images", offered, default=offered[0], key="split", required=True)
cells = splits[split]
answer.markdown(answer_sentence(cells, federation, metric, split))
st.plotly_chart(score_matrix(cells, federation, metric, dark=DARK), config=STILL, key="matrix")
st.caption(matrix_caption(cells, split))
lead = cells[model_order(federation, list(cells))[0]]["all"]
for caveat in caveats(audit, lead, evaluation.get("shared_classes", [])):
    st.caption(f":material/warning: {caveat}")

draw_served(run, draw_cell(cells, federation, split, dark=DARK))
