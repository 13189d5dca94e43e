"""The refusal gate: is this an image of the kind that the federation's models were made for?

One gate for all models of a version, decided before any opinion. It knows the training images only by sums that
hospitals may share (counts, means, covariances of features and of image statistics); no image leaves a hospital.

Features: Mahalanobis distance to the nearest class (Lee et al., A Simple Unified Framework for Detecting
Out-of-Distribution Samples and Adversarial Attacks, NeurIPS 2018), the covariance's small directions pooled into one
variance (Tipping & Bishop, Probabilistic Principal Component Analysis, 1999).
"""

import base64
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from engine.data.statistics import GATED, STATISTICS, Vector
from engine.results.words import join_words

WORDS = {  # too low, too high
    "brightness": ("darker on the whole", "brighter on the whole"),
    "contrast": ("flatter in contrast", "harder in contrast"),
    "sharpness": ("more blurred", "sharper or noisier"),
    "saturation": ("less colourful", "more colourful"),
    "border": ("darker at the border", "brighter at the border, where a scan is background"),
    "centre": ("darker in the middle", "brighter in the middle"),
    "dark": ("poorer in black", "richer in black"),
    "bright": ("poorer in white", "richer in white"),
    "entropy": ("poorer in grey levels", "richer in grey levels"),
    "flat": ("busier, without even areas", "made of even areas, as drawings and screens are"),
    "symmetry": ("less like its own mirror image", "more like its own mirror image"),
    "direction": ("striped upright", "striped level, as lines of text are"),
    "detail": ("poorer in fine detail", "richer in fine detail"),
}
MAX_WORDS = 3
NOTABLE = 2.5  # standard deviations from which a statistic is worth a word


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        flat = np.frombuffer(base64.b64decode(value["float32"], validate=True), "<f4")
        return flat.reshape(value["shape"]).astype(np.float64)
    except (KeyError, TypeError) as error:
        raise ValueError(f"is no array: {error}") from None


def _encode(array: npt.NDArray[np.float64]) -> dict[str, Any]:
    content = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"shape": list(array.shape), "float32": content}


Array = Annotated[
    npt.NDArray[np.float64], BeforeValidator(_decode), PlainSerializer(_encode, return_type=dict[str, Any])
]


class Gaussian(BaseModel):
    """Several centres (m, d) that share one covariance: directions (k, d) with variances (k,), `rest` elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    centres: Array
    directions: Array
    variances: Array
    rest: float = Field(gt=0)

    def distance(self, vectors: Vector) -> Vector:
        """Squared Mahalanobis distance per dimension of (n, d) vectors to the nearest centre: about 1 inside."""
        nearest = np.full(len(vectors), np.inf)
        for centre in self.centres:
            away = vectors - centre
            along = away @ self.directions.T
            outside = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0)
            nearest = np.minimum(nearest, (along**2 / self.variances).sum(axis=1) + outside / self.rest)
        result: Vector = nearest / vectors.shape[1]
        return result


class Gate(BaseModel):
    """Two distances and the largest one of each that passes; `mean` and `deviation` are of all STATISTICS."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    features: Gaussian
    statistics: Gaussian
    features_limit: float = Field(gt=0)
    statistics_limit: float = Field(gt=0)
    mean: Array
    deviation: Array
    passed: float = Field(description="share of validation images that pass")
    n_images: int = Field(description="validation images that set the limits")

    def distances(self, features: Vector, statistics: Vector) -> tuple[Vector, Vector]:
        """Of pooled features (n, channels) and STATISTICS (n, statistics), each over its limit: above 1 is refused."""
        gated = self.standardise(statistics)[:, [STATISTICS.index(name) for name in GATED]]
        return (
            self.features.distance(features) / self.features_limit,
            self.statistics.distance(gated) / self.statistics_limit,
        )

    def standardise(self, statistics: Vector) -> Vector:
        result: Vector = (statistics - self.mean) / self.deviation
        return result

    def reasons(self, features: Vector, statistics: Vector) -> tuple[str, ...]:
        """Why one image (channels,) with its statistics is refused, in words; empty where it is not."""
        far, odd = (float(distance[0]) for distance in self.distances(features[None], statistics[None]))
        said = []
        if far > 1:
            said.append("The models find nothing in it that they know from their training images.")
        if odd > 1:
            said.append(f"Compared with the training images it is {self._oddities(statistics)}.")
        return tuple(said)

    def _oddities(self, statistics: Vector) -> str:
        scores = dict(zip(STATISTICS, self.standardise(statistics[None])[0], strict=True))
        ranked = sorted(GATED, key=lambda name: -abs(scores[name]))
        chosen = [name for name in ranked if abs(scores[name]) > NOTABLE][:MAX_WORDS] or ranked[:1]
        words = [WORDS[name][int(scores[name] > 0)] for name in chosen]
        return join_words(words)
