"""`calibration.json` of a published version: what turns logits into honest probabilities, sets and refusals.

Fitted at publish on the served graphs (engine/publishing/calibrate.py); read here, without torch.
"""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.inference.gate import Gate
from engine.results.metrics import Floats, softmax


class ModelCalibration(BaseModel):
    """`temperature` divides the logits (Guo et al., ICML 2017); `threshold` bounds the prediction set.

    `hospitals` are those whose validation images both were fitted on: a local model's own one alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: float = Field(gt=0)
    threshold: float = Field(ge=0, le=1)
    hospitals: tuple[str, ...]
    n_images: int

    def probabilities(self, logits: Floats) -> Floats:
        """Calibrated probabilities of logits (n, classes)."""
        return softmax(logits / self.temperature)


class Calibration(BaseModel):
    """`measured` holds what the fit was worth on test images; see engine/publishing/calibrate.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    coverage: float = Field(gt=0, lt=1, description="promised share of prediction sets that hold the true class")
    models: dict[str, ModelCalibration]
    gate: Gate
    measured: dict[str, Any]


def prediction_set(probabilities: Floats, threshold: float) -> list[int]:
    """Class indices, most likely first: each whose more likely classes together stay within the threshold.

    Adaptive prediction sets, with the randomisation of the score taken at its cautious end, so that one image always
    has one set, and never an empty one (Romano, Sesia & Candes, Classification with Valid and Adaptive Coverage,
    NeurIPS 2020).
    """
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[(before <= threshold) & (probabilities[order] > 0)]
    return [int(index) for index in kept] or [int(order[0])]


def set_scores(probabilities: Floats, labels: np.ndarray[Any, Any], rng: np.random.Generator) -> Floats:
    """APS scores of (n, classes) at their labels: the mass above the true class and a random share of its own."""
    true = probabilities[np.arange(len(labels)), labels]
    above = np.where(probabilities > true[:, None], probabilities, 0).sum(axis=1)
    return np.asarray(above + rng.random(len(labels)) * true)
