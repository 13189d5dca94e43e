"""Who gains: what the federated model adds to each hospital's own, what pooling would add, and what a hospital gets
from a model that never saw its images.

Differences are paired: both models read the same images, and a bootstrap replicate draws the same groups for both.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.answers import Answers
from engine.results.bootstrap import Estimate, mean_score, paired_difference
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.sections import ARMS


class Gain(NamedTuple):
    """On one hospital's images, or on "all". What a run has no model for is None."""

    hospital: str
    n_images: int
    n_groups: int
    federated: Estimate
    alone: Estimate | None  # the hospital's own model
    gain: Estimate | None  # federated less alone
    pooled: Estimate | None
    gap: Estimate | None  # federated less pooled


class LeftOut(NamedTuple):
    """One hospital's images, read by a federated model that was trained without it, in a run named `run`."""

    run: str
    hospital: str
    n_images: int
    n_groups: int
    unseen: Estimate  # that model
    alone: Estimate | None  # the hospital's own
    together: Estimate  # the federated model of the whole federation
    over_alone: Estimate | None  # unseen less alone
    taking_part: Estimate  # together less unseen


def gains(answers: Answers, hospitals: Sequence[str], metric: str) -> list[Gain]:
    """Of every hospital with images, in the order given, and of all images last. Empty without a federated model."""
    if "global" not in answers.logits:
        return []
    held = [hospital for hospital in hospitals if (answers.images["hospital"] == hospital).any()]
    found = []
    for hospital in [*held, *([ALL] if len(answers) else [])]:
        mine = answers.at(hospital)
        found.append(
            Gain(
                hospital,
                len(mine),
                mine.n_groups,
                _score(mine, "global", metric),
                _score_if(mine, f"local/{hospital}", metric),
                _less(mine, "global", mine, f"local/{hospital}", metric),
                _score_if(mine, "central", metric),
                _less(mine, "global", mine, "central", metric),
            )
        )
    return found


def worst_served(found: Sequence[Gain]) -> Gain | None:
    """The hospital whose images the federated model reads worst; None where fewer than two have images."""
    hospitals = [one for one in found if one.hospital != ALL]
    return min(hospitals, key=lambda one: one.federated.value) if len(hospitals) > 1 else None


def left_out_runs(run: Run, others: Sequence[Run]) -> list[Run]:
    """Finished runs that differ from `run` in the hospital left out, and perhaps in what changes no model: arms,
    threads, subgroups; the newest of each hospital, in the federation's order. What cannot be read is no witness."""
    federation = run.federation
    if federation.left_out is not None:
        return []
    settings = _settings(federation)
    newest: dict[str, Run] = {}
    for other in others:
        try:
            theirs = other.federation
            if theirs.left_out is not None and _settings(theirs) == settings and other.is_finished:
                other.verify()
                newest[theirs.left_out] = other
        except ConsiliumError:
            continue
    return [newest[hospital.id] for hospital in federation.hospital if hospital.id in newest]


def compare_left_out(name: str, hospital: str, without: Answers, whole: Answers, metric: str) -> LeftOut | None:
    """`without` is of the run `name` that left the hospital out, `whole` of the one that did not; None where they
    were not asked about the same images of it, or one of them has no federated model."""
    unseen, together = without.at(hospital), whole.at(hospital)
    if not len(together) or not unseen.images.equals(together.images):
        return None
    if "global" not in unseen.logits or "global" not in together.logits:
        return None
    return LeftOut(
        name,
        hospital,
        len(together),
        together.n_groups,
        _score(unseen, "global", metric),
        _score_if(together, f"local/{hospital}", metric),
        _score(together, "global", metric),
        _less(unseen, "global", together, f"local/{hospital}", metric),
        paired_difference(
            together.logits["global"],
            unseen.logits["global"],
            together.labels,
            together.groups,
            together.classes,
            metric,
        ),
    )


def _settings(federation: Federation) -> Federation:
    """Those that decide what the federated model learns, whoever is left out."""
    source = federation.source and federation.source.model_copy(update={"subgroups": {}})
    training = federation.training.model_copy(update={"threads": 0})
    return federation.model_copy(update={"left_out": None, "arms": ARMS, "source": source, "training": training})


def _score(answers: Answers, model: str, metric: str) -> Estimate:
    return mean_score(answers.logits[model], answers.labels, answers.groups, answers.classes, metric)


def _score_if(answers: Answers, model: str, metric: str) -> Estimate | None:
    return _score(answers, model, metric) if model in answers.logits else None


def _less(ours: Answers, model: str, theirs: Answers, other: str, metric: str) -> Estimate | None:
    """Both are about the same images. None where the other model is not there."""
    if other not in theirs.logits:
        return None
    return paired_difference(ours.logits[model], theirs.logits[other], ours.labels, ours.groups, ours.classes, metric)
