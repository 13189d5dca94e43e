"""Several models' opinions on one image, in words and as rows of bars. No drawing calls here."""

from collections.abc import Mapping
from html import escape

from engine.config import Federation
from engine.inference.panel import Opinion
from engine.results.words import SHARED_IMAGES, join_words, percent
from ui.palette import model_colour, model_order

Opinions = Mapping[str, Opinion]
ClassCounts = Mapping[str, Mapping[str, int]]

NOT_CALIBRATED = (
    "A bar is the model's own probability. It is not calibrated yet: 90% here does not mean right 9 times in 10."
)
OWN_KIND = "promised for its own kind of image alone"
MAX_OTHERS = 3
SHADES = (1.0, 0.55, 0.35, 0.2)  # most likely class first; the last one serves all others
STANCES = {  # what an opinion is beside the leading one: one model says, several say
    "otherwise": ("says", "say"),
    "less sure": ("is less sure and says", "are less sure and say"),
    "surer": ("is surer and says", "are surer and say"),
}


def calibrated_sentence(coverage: float) -> str:
    """What bars and sets promise. `coverage` is the promised share of sets that hold the true class."""
    return (
        "Bars are calibrated: of answers with 90%, about 9 in 10 were right on validation images, of a hospital's own "
        f"model on that hospital's images. A set is made to hold the true class for {percent(coverage, 0)} of images "
        "like the hospitals'."
    )


def set_words(opinion: Opinion, n_classes: int) -> str:
    """ "pituitary", "pituitary or meningioma", or "any of the 4 classes"."""
    kept = opinion.prediction_set
    if len(kept) == n_classes > 2:
        return f"any of the {n_classes} classes"
    return join_words(kept, "or")


def answer(federation: Federation, opinions: Opinions) -> str:
    """The leading model's opinion as a heading: "Federated: pituitary, 96.1%", or its set where it holds several."""
    leader = ordered(federation, opinions)[0]
    opinion, name = opinions[leader], federation.model_name(leader)
    if len(opinion.prediction_set) > 1:
        return f"{name}: {set_words(opinion, len(federation.classes))}"
    return f"{name}: {opinion.label}, {percent(opinion.probabilities[opinion.label])}"


def stance(opinion: Opinion, leading: Opinion) -> str:
    """ "agrees" with the same set and first choice; "less sure" with more classes, "surer" with fewer of them."""
    mine, theirs = set(opinion.prediction_set), set(leading.prediction_set)
    if mine == theirs:
        return "agrees" if opinion.label == leading.label else "otherwise"
    return "less sure" if mine > theirs else "surer" if mine < theirs else "otherwise"


def said_beside(opinion: Opinion, leading: Opinion, n_classes: int) -> str:
    """Its set, and its first choice where that is another than the leading model's and the set alone would hide it."""
    said = set_words(opinion, n_classes)
    return (
        f"{said}, {opinion.label} first" if len(opinion.prediction_set) > 1 and opinion.label != leading.label else said
    )


def agreement(federation: Federation, opinions: Opinions, class_counts: ClassCounts) -> str:
    """Who says otherwise, then who agrees with the leading model, and why agreement proves little."""
    leader, *others = ordered(federation, opinions)
    if not others:
        return "This version holds one model alone, so there is nothing to compare it with."
    leading = opinions[leader]
    groups: dict[tuple[str, str], list[str]] = {}
    for model in others:
        found = stance(opinions[model], leading)
        if found != "agrees":
            said = said_beside(opinions[model], leading, len(federation.classes))
            groups.setdefault((found, said), []).append(_in_sentence(federation, model, leading, class_counts))
    sentences = []
    for (found, said), names in sorted(groups.items(), key=lambda group: list(STANCES).index(group[0][0])):
        sentence = f"{join_words(names)} {STANCES[found][len(names) > 1]} {said}."
        sentences.append(sentence[0].upper() + sentence[1:])
    n_agreeing = len(opinions) - sum(map(len, groups.values()))
    if not groups:
        sentences.append(f"All {len(opinions)} models agree.")
    elif n_agreeing == 1:
        sentences.append(f"No other model agrees with {federation.model_name(leader)}.")
    else:
        sentences.append(f"The other {n_agreeing} of {len(opinions)} models agree.")
    return " ".join([*sentences, SHARED_IMAGES])


def who_says_otherwise(federation: Federation, opinions: Opinions) -> str:
    """For a table: "Phantom Valley (simulated): glioma; ..."; empty where all agree."""
    leader, *others = ordered(federation, opinions)
    return "; ".join(
        f"{federation.model_name(model)}: {said_beside(opinions[model], opinions[leader], len(federation.classes))}"
        for model in others
        if stance(opinions[model], opinions[leader]) != "agrees"
    )


def never_seen(federation: Federation, class_counts: ClassCounts) -> dict[str, list[str]]:
    """Classes without a training image, by hospital; hospitals that hold every class are left out."""
    unseen = {
        hospital.id: [label for label in federation.classes if class_counts[hospital.id].get(label, 0) == 0]
        for hospital in federation.hospital
        if hospital.id in class_counts
    }
    return {hospital: labels for hospital, labels in unseen.items() if labels}


def opinion_rows(
    federation: Federation, opinions: Opinions, class_counts: ClassCounts, *, calibrated: bool = False
) -> str:
    """One HTML list: a row per model, the leading one set apart. Every figure of a bar stands in its row as text.

    Sets are promised only where `calibrated`; then they stand as chips.
    """
    unseen = never_seen(federation, class_counts)
    rows = []
    for place, model in enumerate(ordered(federation, opinions)):
        opinion, colour, name = opinions[model], model_colour(federation, model), federation.model_name(model)
        is_local = model.startswith("local/")
        missing = unseen.get(model.removeprefix("local/"), []) if is_local else []
        notes = [
            _others(opinion),
            f"never trained on {join_words(missing, 'or')}" if missing else "",
            OWN_KIND if is_local and calibrated else "",
        ]
        rows.append(
            f'<li class="{"answer" if place == 0 else "witness"}">'
            f'<div class="line"><span class="name">{_dot(colour)}{escape(name)}</span>'
            f'<span class="says">{_says(opinion, chips=calibrated)}</span></div>'
            f'<div class="bar" aria-hidden="true">{_segments(opinion, colour)}</div>'
            f'<div class="rest">{escape("; ".join(note for note in notes if note), quote=False)}</div></li>'
        )
    return f'<ul class="opinions" aria-label="Opinions, one per model">{"".join(rows)}</ul>'


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


def ordered(federation: Federation, opinions: Opinions) -> list[str]:
    return model_order(federation, list(opinions))


def _in_sentence(federation: Federation, model: str, leading: Opinion, class_counts: ClassCounts) -> str:
    """A dissenting model by name, with the reason where it could not have said what the leading one says."""
    if model == "central":
        return "the pooled model"
    name = federation.model_name(model)
    unseen = never_seen(federation, class_counts).get(model.removeprefix("local/"), [])
    missed = [label for label in leading.prediction_set if label in unseen]
    return f"{name}, never trained on {join_words(missed, 'or')}," if missed else name


def _says(opinion: Opinion, *, chips: bool) -> str:
    """The set as chips between "or", the top class with its probability where it stands alone. HTML."""
    probability = escape(percent(opinion.probabilities[opinion.label]))
    if not chips:
        return f"<b>{escape(opinion.label)}</b> {probability}"
    kept = " or ".join(f'<b class="chip">{escape(label)}</b>' for label in opinion.prediction_set)
    return f"{kept} {probability}" if len(opinion.prediction_set) == 1 else kept


def _ranked(opinion: Opinion) -> list[tuple[str, float]]:
    """Most likely first; the opinion's own label leads where two are equal."""
    return sorted(opinion.probabilities.items(), key=lambda item: (-item[1], item[0] != opinion.label))


def _others(opinion: Opinion) -> str:
    """Probabilities that do not stand beside the name: all of them where the set holds several classes."""
    others = _ranked(opinion)[len(opinion.prediction_set) == 1 :]
    n_said = max(MAX_OTHERS, len(opinion.prediction_set))
    said = [f"{label} {percent(value)}" for label, value in others[:n_said]]
    if len(others) > n_said:
        said.append(f"{len(others) - n_said} more {percent(sum(value for _, value in others[n_said:]))}")
    return ", ".join(said)


def _segments(opinion: Opinion, colour: str) -> str:
    return "".join(
        f'<i style="width:{100 * value:.2f}%;background:{colour};opacity:{SHADES[min(rank, len(SHADES) - 1)]}"></i>'
        for rank, (_, value) in enumerate(_ranked(opinion))
        if value >= 0.003
    )


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}" aria-hidden="true"></i>'
