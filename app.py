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
    f"**{DISCLAIMER}**\n"
    "- **Real** is every training, model and figure: each came of the run whose name stands beside it.\n"
    "- **Simulated** is every hospital whose name ends with *(simulated)*: one machine played it.\n"
    "- **Synthetic** are the images of a federation with that badge: a program drew them."
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
        "See what an audit says of each hospital's images. To train on your own, name their folders in a file, as "
        "`docs/hospital-it.md` says."
    )
    st.page_link("pages/1_Hospitals.py", label="See who taught the model", icon=":material/arrow_forward:")

st.subheader("Published federations", anchor=False)
draw_cards(models_folder())
