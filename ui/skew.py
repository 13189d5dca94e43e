"""How unlike the hospitals' holdings are: a sentence with its numbers, and one bar per hospital. Pure."""

import textwrap
from collections.abc import Mapping

import plotly.graph_objects as go

from engine.config import Federation
from engine.data.audit import Audit
from engine.data.skew import measure_skew
from engine.results.words import count
from ui.palette import hospital_colour

SAME, SOMEWHAT = 0.01, 0.1  # mean divergence between two hospitals, in bits, below which these words are said
METHODS = {
    "iid": "alike",
    "dirichlet": "unevenly by class",
    "quotas": "by quotas for each class",
    "quantity": "in uneven amounts",
}


def class_counts(audit: Audit) -> dict[str, dict[str, int]]:
    return {hospital: counts.class_counts for hospital, counts in audit.hospitals.items()}


def skew_sentence(audit: Audit, federation: Federation) -> str:
    """How far the class mixes lie apart and the sizes too; empty for a single hospital. Names no skew without its
    number."""
    skew = measure_skew(class_counts(audit))
    if skew.pairwise_mean is None or skew.pairwise_max is None or skew.quantity_ratio is None:
        return ""
    mean = skew.pairwise_mean
    word = "hardly differ" if mean < SAME else "differ somewhat" if mean < SOMEWHAT else "differ strongly"
    sentence = (
        f"Class mixes **{word}** between hospitals{'' if mean < SAME else ' (non-IID)'}: Jensen-Shannon divergence "
        f"{mean:.2f} on average and {skew.pairwise_max:.2f} at most between two of them, where 0 is the same mix and 1 "
        f"no class in common. The largest hospital holds {skew.quantity_ratio:.1f} times the images of the smallest."
    )
    return sentence + _dealt(federation) + _external(audit, federation)


def divergence_figure(audit: Audit, federation: Federation) -> go.Figure:
    """One bar per hospital that holds images: its class mix against the federation's, from 0 to 1."""
    skew = measure_skew(class_counts(audit))
    held: Mapping[str, float] = {h: value for h, value in skew.from_federation.items() if value is not None}
    names = ["<br>".join(textwrap.wrap(federation.display_name(hospital), 24)) for hospital in held]
    figure = go.Figure(
        go.Bar(
            x=list(held.values()),
            y=names,
            orientation="h",
            marker={"color": [hospital_colour(federation, hospital) for hospital in held]},
            text=[f"{value:.2f}" for value in held.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}<br>divergence from the federation's class mix: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        height=50 + 36 * len(names), margin={"l": 8, "r": 40, "t": 8, "b": 8}, dragmode=False, showlegend=False
    )
    figure.update_xaxes(rangemode="tozero", fixedrange=True)
    figure.update_yaxes(autorange="reversed", fixedrange=True, automargin=True)
    return figure


def _dealt(federation: Federation) -> str:
    partition = federation.partition
    if partition is None:
        return ""
    alpha = "" if partition.alpha is None else f", alpha {partition.alpha:g}"
    return (
        f" One pool was dealt to them {METHODS[partition.method]} ({partition.method}{alpha}, seed {partition.seed})."
    )


def _external(audit: Audit, federation: Federation) -> str:
    if federation.external is None or audit.external is None:
        return ""
    images = count(audit.external.n_images, "image")
    return f" Kept apart as an external test set: {federation.external.name}, {images}."
