"""How often a model is right when it says how sure it is: bins of a reliability diagram and the calibration error.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017; intervals by bootstrap over groups.
"""

from typing import NamedTuple

import numpy as np

from engine.results.answers import Answers
from engine.results.bootstrap import Estimate, draw_groups, ece_interval, estimate_of
from engine.results.metrics import ECE_BINS, expected_calibration_error


class Bin(NamedTuple):
    """Images whose top probability lies in one of ECE_BINS equal parts of 0..1."""

    confidence: float  # their mean
    right: Estimate  # the share of them that is called rightly
    n_images: int


def reliability_bins(answers: Answers, model: str, *, seed: int = 0) -> list[Bin]:
    """The bins that hold images, the least sure first. In a bin where all are right, or none, a bootstrap cannot tell
    how sure that is: its interval is the point itself."""
    probabilities = answers.probabilities(model)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == answers.labels
    places = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    group_of, drawn = draw_groups(answers.groups, seed)
    weights = np.vstack([np.ones((1, drawn.shape[1])), drawn])
    found = []
    for place in np.unique(places):
        mine = places == place
        n_by_group = np.bincount(group_of[mine], minlength=weights.shape[1])
        right_by_group = np.bincount(group_of[mine], right[mine], minlength=weights.shape[1])
        n, hits = weights @ n_by_group, weights @ right_by_group
        shares = np.divide(hits, n, out=np.full(len(n), np.nan), where=n > 0)
        found.append(Bin(float(confidence[mine].mean()), estimate_of(shares), int(mine.sum())))
    return found


def calibration_error(answers: Answers, model: str) -> Estimate:
    """The expected calibration error of one image or more."""
    probabilities, labels = answers.probabilities(model), answers.labels
    value = expected_calibration_error(probabilities, labels)
    return Estimate(value, *ece_interval(probabilities, labels, answers.groups))
