"""Home: what this is, what is simulated, three doors, and what is published."""

import streamlit as st

from engine.results.published import models_folder
from engine.results.words import DISCLAIMER
from ui.frame import draw_frame
from ui.home import draw_cards

draw_frame(
    "One case, several hospitals' opinions",
    "Hospitals train a model together while their images stay at home. On one image you then see what the federated "
    "model says, what each hospital alone would say, and what pooling all images would.",
)
st.markdown(
    f"**{DISCLAIMER}** Where a name ends with *(simulated)*, one machine played that hospital; "
    "where a badge says *synthetic*, a program drew the images."
)

clinician, researcher, hospital = st.columns(3)
with clinician.container(border=True, height="stretch"):
    st.markdown("**:material/stethoscope: Clinician**")
    st.markdown("Drop in one image. Read each model's opinion side by side, and what it has never been shown.")
    st.page_link("pages/4_Compare.py", label="Compare opinions", icon=":material/arrow_forward:")
with researcher.container(border=True, height="stretch"):
    st.markdown("**:material/science: Researcher**")
    st.markdown(
        "Follow every round: federated, each hospital alone and pooled, on the same splits with the same budget."
    )
    st.page_link("pages/2_Training.py", label="See how it learned", icon=":material/arrow_forward:")
with hospital.container(border=True, height="stretch"):
    st.markdown("**:material/local_hospital: Hospital IT**")
    st.markdown(
        "Name your folders in a file in `federations/`, then run `python -m engine audit FILE` and `train FILE`. "
        "The README goes step by step."
    )

st.subheader("Published federations", anchor=False)
draw_cards(models_folder())
