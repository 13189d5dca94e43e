"""Several models' opinions on one image, in words, as rows of bars, and as a table. No drawing calls here."""

from collections.abc import Mapping
from html import escape

import pandas as pd

from engine.config import Federation
from engine.inference.panel import Opinion
from ui.palette import model_colour, model_order
from ui.words import join_words, percent

Opinions = Mapping[str, Opinion]
ClassCounts = Mapping[str, Mapping[str, int]]

SHARED_IMAGES = "These models share training images, so agreement is no independent evidence."
NOT_CALIBRATED = (
    "A bar is the model's own probability. It is not calibrated yet: 90% here does not mean right 9 times in 10."
)
MAX_OTHERS = 3
SHADES = (1.0, 0.55, 0.35, 0.2)  # most likely class first; the last one serves all others


def answer(federation: Federation, opinions: Opinions) -> str:
    """The leading model's opinion as a heading: "Federated: pituitary, 96.1%"."""
    leader = _ordered(federation, opinions)[0]
    opinion = opinions[leader]
    return f"{federation.model_name(leader)}: {opinion.label}, {percent(opinion.probabilities[opinion.label])}"


def agreement(federation: Federation, opinions: Opinions, class_counts: ClassCounts) -> str:
    """Who agrees with the leading model, who says what else, and why agreement proves little."""
    leader, *others = _ordered(federation, opinions)
    if not others:
        return "This version holds one model alone, so there is nothing to compare it with."
    label = opinions[leader].label
    dissent: dict[str, list[str]] = {}
    for model in others:
        if opinions[model].label != label:
            dissent.setdefault(opinions[model].label, []).append(_in_sentence(federation, model, label, class_counts))
    n_agreeing = len(opinions) - sum(map(len, dissent.values()))
    if not dissent:
        sentences = [f"All {len(opinions)} models agree."]
    elif n_agreeing == 1:
        sentences = ["No other model agrees."]
    else:
        sentences = [f"{n_agreeing} of {len(opinions)} models agree."]
    for other, names in dissent.items():
        said = f"{join_words(names)} {'says' if len(names) == 1 else 'say'} {other}."
        sentences.append(said[0].upper() + said[1:])
    return " ".join([*sentences, SHARED_IMAGES])


def never_seen(federation: Federation, class_counts: ClassCounts) -> dict[str, list[str]]:
    """Classes without a training image, by hospital; hospitals that hold every class are left out."""
    unseen = {
        hospital.id: [label for label in federation.classes if class_counts[hospital.id].get(label, 0) == 0]
        for hospital in federation.hospital
        if hospital.id in class_counts
    }
    return {hospital: labels for hospital, labels in unseen.items() if labels}


def opinion_rows(federation: Federation, opinions: Opinions, class_counts: ClassCounts) -> str:
    """One HTML list: a row per model, the leading one set apart. Every figure of a bar stands in its row as text."""
    unseen = never_seen(federation, class_counts)
    rows = []
    for place, model in enumerate(_ordered(federation, opinions)):
        opinion, colour, name = opinions[model], model_colour(federation, model), federation.model_name(model)
        probability = percent(opinion.probabilities[opinion.label])
        missing = unseen.get(model.removeprefix("local/"), []) if model.startswith("local/") else []
        notes = [_others(opinion), f"never trained on {join_words(missing, 'or')}" if missing else ""]
        rows.append(
            f'<li class="{"answer" if place == 0 else "witness"}">'
            f'<div class="line"><span class="name">{_dot(colour)}{escape(name)}</span>'
            f'<span class="says"><b>{escape(opinion.label)}</b> {escape(probability)}</span></div>'
            f'<div class="bar" aria-hidden="true">{_segments(opinion, colour)}</div>'
            f'<div class="rest">{escape("; ".join(note for note in notes if note))}</div></li>'
        )
    return f'<ul class="opinions" aria-label="Opinions, one per model">{"".join(rows)}</ul>'


def probability_table(federation: Federation, opinions: Opinions) -> pd.DataFrame:
    """Models by classes, as percentages for st.table, which reads Markdown: a ">" at the start must not quote."""
    models = _ordered(federation, opinions)

    def cell(model: str, label: str) -> str:
        return percent(opinions[model].probabilities[label]).replace(">", "\\>")

    return pd.DataFrame(
        {label: [cell(model, label) for model in models] for label in federation.classes},
        index=pd.Index([federation.model_name(model) for model in models], name="Model"),
    )


def panel_rows(federation: Federation, models: list[str], class_counts: ClassCounts) -> str:
    """Who will answer, before there is an image: each model with what it was taught with."""
    totals = {hospital: sum(counts.values()) for hospital, counts in class_counts.items()}
    unseen = never_seen(federation, class_counts)
    rows = []
    for model in model_order(federation, models):
        hospital = model.removeprefix("local/")
        n_images = totals.get(hospital, 0) if model.startswith("local/") else sum(totals.values())
        taught = {
            "global": f"trained by {len(totals)} hospitals together on {n_images:,} images, without pooling them",
            "central": f"trained on the same {n_images:,} images, gathered in one place",
        }.get(model, f"trained on its own {n_images:,} images")
        missing = unseen.get(hospital, []) if model.startswith("local/") else []
        if missing:
            taught += f", never on {join_words(missing, 'or')}"
        dot, name = _dot(model_colour(federation, model)), escape(federation.model_name(model))
        rows.append(f'<li><span class="name">{dot}{name}</span><div class="rest">{escape(taught)}</div></li>')
    return f'<ul class="opinions">{"".join(rows)}</ul>'


def _in_sentence(federation: Federation, model: str, label: str, class_counts: ClassCounts) -> str:
    """A dissenting model by name, with the reason where it could not have said `label`."""
    if model == "central":
        return "the pooled model"
    name = federation.model_name(model)
    unseen = never_seen(federation, class_counts).get(model.removeprefix("local/"), [])
    return f"{name}, never trained on {label}," if label in unseen else name


def _ordered(federation: Federation, opinions: Opinions) -> list[str]:
    return model_order(federation, list(opinions))


def _ranked(opinion: Opinion) -> list[tuple[str, float]]:
    """Most likely first; the opinion's own label leads where two are equal."""
    return sorted(opinion.probabilities.items(), key=lambda item: (-item[1], item[0] != opinion.label))


def _others(opinion: Opinion) -> str:
    others = _ranked(opinion)[1:]
    said = [f"{label} {percent(value)}" for label, value in others[:MAX_OTHERS]]
    if len(others) > MAX_OTHERS:
        said.append(f"{len(others) - MAX_OTHERS} more {percent(sum(value for _, value in others[MAX_OTHERS:]))}")
    return ", ".join(said)


def _segments(opinion: Opinion, colour: str) -> str:
    return "".join(
        f'<i style="width:{100 * value:.2f}%;background:{colour};opacity:{SHADES[min(rank, len(SHADES) - 1)]}"></i>'
        for rank, (_, value) in enumerate(_ranked(opinion))
        if value >= 0.003
    )


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}" aria-hidden="true"></i>'
