"""Who taught the model, and with what: where the hospitals are, what each holds, what is wrong with it."""

import streamlit as st
from streamlit_folium import st_folium

from engine.errors import ConsiliumError
from engine.results.words import count
from ui.class_mix import class_mix_figure
from ui.findings import draw_findings, holdings_sentence
from ui.frame import draw_frame, show_federation
from ui.imported import draw_imported
from ui.loaders import load_audit, load_splits
from ui.map import DARK, LIGHT, hospital_map
from ui.palette import hospital_colour
from ui.pictures import draw_samples
from ui.selection import select_run, stop_with
from ui.skew import divergence_figure, skew_sentence
from ui.tables import class_mix_table, hospital_rows

draw_frame("Hospitals", "Who taught the model, and with what.")
run = select_run("any")
if run.is_imported:
    draw_imported(run, "Hospitals")
    st.stop()
try:
    federation, audit, splits = run.federation, load_audit(run), load_splits(run)
except ConsiliumError as error:
    stop_with(error)
show_federation(federation)
hospitals = hospital_rows(splits, federation)
n_images = dict(zip(hospitals["id"], hospitals["Images"], strict=True))
st.markdown(holdings_sentence(federation, hospitals, splits))
skew = skew_sentence(audit, federation)
st.markdown(skew)


@st.fragment
def draw_map() -> None:
    """A fragment, and nothing returned: panning and zooming run nothing here."""
    drawn = hospital_map(federation, n_images, DARK if st.context.theme.type == "dark" else LIGHT)
    if drawn is None:
        st.caption("No hospital of this federation says where it is, so there is no map.")
        return
    with st.container(key="map_spot"):
        st_folium(drawn, height=340, use_container_width=True, returned_objects=[], key=f"map-{run.name}")
    st.caption("Circles grow with the number of images. Coastline: Natural Earth.")
    unplaced = [federation.display_name(hospital.id) for hospital in federation.hospital if hospital.location is None]
    if unplaced:
        st.caption(f"Without a place, so not on the map: {', '.join(unplaced)}.")


left, right = st.columns([3, 2], gap="large")
with left:
    draw_map()
right.table(hospitals[["No.", "Hospital", "Images"]].style.format(thousands=","), border="horizontal", hide_index=True)
if skew:
    right.plotly_chart(divergence_figure(audit, federation), config={"displayModeBar": False}, key="divergence")
    right.caption("How far each class mix lies from that of all hospitals together (Jensen-Shannon divergence).")

chosen = st.selectbox("Hospital", list(n_images), format_func=federation.display_name, key="hospital", width=420)
name = federation.display_name(chosen)
mine = hospitals.set_index("id").loc[chosen]
st.subheader(name, anchor=False)
st.markdown(
    f"{mine['About']} {count(mine['Images'], 'image')}: {mine['Train']:,} to train, "
    f"{mine['Validation']:,} to validate, {mine['Test']:,} to test."
)
mix = class_mix_table(splits, federation, chosen)
left, right = st.columns([3, 2], gap="large")
left.plotly_chart(
    class_mix_figure(mix, name, hospital_colour(federation, chosen)), config={"displayModeBar": False}, key="mix"
)
counts = mix[["label", "n_here", "n_all"]].set_axis(["Class", "Here", "All hospitals"], axis=1)
right.table(counts.style.format(thousands=","), border="horizontal", hide_index=True)
draw_samples(run, chosen)
draw_findings(audit, federation, chosen, n_images[chosen])
