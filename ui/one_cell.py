"""One cell of the matrix in full: one model on the images of one hospital."""

import streamlit as st

from engine.config import Federation
from engine.results.words import count
from ui.matrices import Cells, column_name, confusion_figure, hospital_columns
from ui.palette import model_order
from ui.tables import per_class_table, scores_sentence


def draw_cell(cells: Cells, federation: Federation, split: str, *, dark: bool) -> str:
    """Lets the reader choose both; returns the model."""
    st.subheader("One model, one hospital", anchor=False)
    with st.container(horizontal=True):
        model = st.selectbox(
            "Model",
            model_order(federation, list(cells)),
            format_func=federation.model_name,
            key="cell_model",
            width=320,
        )
        hospital = st.selectbox(
            "On images of",
            [column for column in hospital_columns(cells, federation) if column in cells[model]],
            format_func=lambda key: column_name(federation, key),
            key="cell_hospital",
            width=320,
        )
    chosen = cells[model][hospital]
    wide = len(federation.classes) <= 5
    left, right = st.columns([5, 6], gap="medium") if wide else (st.container(), st.container())
    figure = confusion_figure(chosen["confusion_matrix"], list(chosen["per_class"]), dark=dark)
    left.plotly_chart(figure, config={"displayModeBar": False}, key="confusion")
    left.caption(
        f"{count(chosen['n_images'], f'{split} image')}. Numbers are images, colour is the share of the true class."
    )
    right.table(per_class_table(chosen), border="horizontal", hide_index=True)
    right.caption(scores_sentence(chosen))
    return str(model)
