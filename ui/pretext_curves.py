"""Training without labels: one small chart for each objective, because losses of unlike objectives share no scale."""

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from engine.config import Federation
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import count
from ui.curves import SYMBOLS, best_rows, round_axis
from ui.palette import FEDERATED, POOLED, hospital_colour
from ui.pretext import OBJECTIVES, SHARES
from ui.probed import draw_probed_rounds

MEASURES = {"loss": "Loss", "accuracy": "Share solved"}
CHANCE = {"rotation": 0.25}


def draw_pretext_curves(rounds: pd.DataFrame, run: Run) -> None:
    federation = run.federation
    measure = str(
        st.segmented_control(
            "Validation", list(MEASURES), default="loss", format_func=MEASURES.__getitem__, key="metric", required=True
        )
    )
    objectives = objectives_of(federation)
    columns = st.columns(2, gap="medium") if len(objectives) > 1 else [st.container()]
    for place, objective in enumerate(objectives):
        with columns[place % len(columns)]:
            st.markdown(f"**{OBJECTIVES[objective][0].upper()}{OBJECTIVES[objective][1:]}**")
            figure = objective_figure(rounds, federation, objective, measure)
            st.plotly_chart(figure, config={"displayModeBar": False}, key=f"curves-{objective}")
            if measure == "accuracy":
                chance = f"; a guess is right {CHANCE[objective]:.0%} of the time" if objective in CHANCE else ""
                st.caption(f"Share: {SHARES[objective]}{chance}. It is no accuracy of any diagnosis.")
    st.caption(
        "Validation images, in the same views in every round. Compare rounds within one line, and the solid line of a "
        "hospital (the federated encoder there) with its dashed one (that hospital alone, on the same images). Lines "
        "of different hospitals and the pooled one are on other images, batches and views, so their heights say "
        "nothing about each other. The upright line is the federated encoder's chosen round."
    )
    if run.is_finished:
        draw_probed_rounds(run)


def objectives_of(federation: Federation) -> list[str]:
    """Of the hospitals, in their order, and of the pooled arm."""
    pooled = [federation.pretext.objective] if federation.pretext and "central" in federation.arms else []
    return list(dict.fromkeys([*federation.objectives.values(), *pooled]))


def objective_figure(rounds: pd.DataFrame, federation: Federation, objective: str, measure: str) -> go.Figure:
    """Federated and local at every hospital of the objective; pooled, on all images, where that is its objective."""
    seen = rounds.dropna(subset=[measure])
    figure = go.Figure()
    drawn: list[pd.Series] = []

    def add(rows: pd.DataFrame, name: str, images: str, colour: str, dash: str) -> None:
        if rows.empty:
            return
        value = "%{y:.3f}" if measure == "loss" else "%{y:.1%}"
        figure.add_scatter(
            x=rows["round"],
            y=rows[measure],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2.5 if dash == "solid" else 1.75, "dash": dash},
            marker={"symbol": SYMBOLS[len(drawn) % len(SYMBOLS)], "size": 6, "color": colour},
            customdata=rows[["n_images"]].astype("Int64"),
            hovertemplate=f"Round %{{x}}<br>{name}<br>{images}, n = %{{customdata[0]:,}}<br>"
            f"{MEASURES[measure]} {value}<extra></extra>",
        )
        drawn.append(rows[measure])

    for hospital in (one for one, task in federation.objectives.items() if task == objective):
        name, colour = federation.display_name(hospital), hospital_colour(federation, hospital)
        here = seen[seen["hospital"] == hospital]
        add(here[here["model"] == "global"], f"Federated, at {name}", f"images of {name}", colour, "solid")
        add(here[here["model"] == f"local/{hospital}"], f"{name} alone", f"images of {name}", colour, "dash")
    if federation.pretext and federation.pretext.objective == objective:
        pooled = seen[(seen["model"] == "central") & (seen["hospital"] == ALL)]
        add(pooled, federation.model_name("central"), "images of all hospitals", POOLED, "dot")
    chosen = best_rows(rounds).get("global")
    if chosen is not None:
        figure.add_vline(x=chosen["round"], line={"color": FEDERATED, "width": 1, "dash": "dot"})
        anchor = "right" if chosen["round"] == federation.training.rounds else "center"  # the edge would cut it off
        figure.add_annotation(
            x=chosen["round"], y=1, yref="paper", xanchor=anchor, yanchor="bottom", text="chosen", showarrow=False
        )
    bottom, top = 0.0, 1.02
    if drawn and measure == "loss":  # of no absolute meaning, and SimSiam's is below zero
        values = pd.concat(drawn)
        margin = 0.05 * float(values.max() - values.min()) or 0.1
        bottom, top = float(values.min()) - margin, float(values.max()) + margin
    figure.update_layout(
        height=380,
        margin={"l": 8, "r": 8, "t": 24, "b": 8},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.12, "x": 0},
        xaxis=round_axis(federation.training.rounds),
        yaxis={"title": MEASURES[measure], "range": [bottom, top], "tickformat": ".2f" if measure == "loss" else ".0%"},
    )
    return figure


def pretext_progress(rounds: pd.DataFrame) -> str:
    """Which round stands for the federated encoder, and that this is no score."""
    chosen = best_rows(rounds).get("global")
    if chosen is None:
        return ""
    last = int(rounds[rounds["model"] == "global"]["round"].max())
    return (
        f"The federated encoder of **round {int(chosen['round'])}** of {last} stands: its validation loss, the mean "
        f"over {count(int(chosen['n_images']), 'image')}, is the lowest. That compares rounds of this run and nothing "
        "else; what the encoder is worth, a probe says, on Evaluation."
    )
