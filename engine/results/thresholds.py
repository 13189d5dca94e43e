"""What follows from calling everything a class whose probability of it reaches a threshold."""

from typing import NamedTuple

import numpy as np

from engine.results.answers import Answers
from engine.results.bootstrap import Doubles, Estimate, draw_groups, estimate_of
from engine.results.metrics import wilson_interval


class AtThreshold(NamedTuple):
    """Of one class of one model: counts of images, and shares with 95% intervals by bootstrap over groups.

    Where all images of a share are alike no bootstrap can tell how sure it is; its interval is then Wilson's, as if
    each group were one image. A share of nothing is NaN.
    """

    found: int  # of the class, called it
    missed: int  # of the class, not called it
    false_alarms: int  # of the others, called it
    cleared: int  # of the others, not called it
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    false_alarms_per_image: Estimate  # of all images looked at

    @property
    def n_images(self) -> int:
        return self.found + self.missed + self.false_alarms + self.cleared


def at_threshold(answers: Answers, model: str, label: str, threshold: float, *, seed: int = 0) -> AtThreshold:
    """`threshold` in 0..1; a probability of exactly that is called the class."""
    place = answers.classes.index(label)
    called, positive = answers.probabilities(model)[:, place] >= threshold, answers.labels == place
    group_of, drawn = draw_groups(answers.groups, seed)
    weights = np.vstack([np.ones((1, drawn.shape[1])), drawn]).astype(float)
    quarters = (called & positive, ~called & positive, called & ~positive, ~called & ~positive)
    n_groups = weights.shape[1]
    by_group: list[Doubles] = [np.bincount(group_of, mask, minlength=n_groups).astype(np.float64) for mask in quarters]
    counted: list[Doubles] = [np.asarray(weights @ counts, np.float64) for counts in by_group]
    found, missed, false, cleared = counted

    def share(part: Doubles, rest: Doubles, groups: Doubles) -> Estimate:
        whole = part + rest
        shares = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
        estimate = estimate_of(shares)
        if whole[0] and estimate.value in (0.0, 1.0):
            n_held = int((groups > 0).sum())
            return Estimate(estimate.value, *wilson_interval(round(estimate.value * n_held), n_held))
        return estimate

    in_found, in_missed, in_false, in_cleared = by_group
    return AtThreshold(
        found=int(found[0]),
        missed=int(missed[0]),
        false_alarms=int(false[0]),
        cleared=int(cleared[0]),
        sensitivity=share(found, missed, in_found + in_missed),
        specificity=share(cleared, false, in_cleared + in_false),
        ppv=share(found, false, in_found + in_false),
        npv=share(cleared, missed, in_cleared + in_missed),
        false_alarms_per_image=share(false, found + missed + cleared, np.sum(by_group, axis=0)),
    )


def over_thresholds(answers: Answers, model: str, label: str, thresholds: Doubles) -> tuple[Doubles, Doubles]:
    """Sensitivity and specificity at each; NaN where there is no image to have them of."""
    place = answers.classes.index(label)
    scores, positive = answers.probabilities(model)[:, place], answers.labels == place
    called = scores[None, :] >= thresholds[:, None]
    n_positive, n_others = int(positive.sum()), int((~positive).sum())
    sensitivity = called[:, positive].sum(axis=1) / n_positive if n_positive else np.full(len(thresholds), np.nan)
    specificity = (~called[:, ~positive]).sum(axis=1) / n_others if n_others else np.full(len(thresholds), np.nan)
    return sensitivity, specificity
