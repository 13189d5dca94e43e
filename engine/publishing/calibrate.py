"""Fit a version's `calibration.json` on validation images, with the served graphs, and measure it on test images.

One validation set serves the choice of the round, the temperatures, the sets and the gate's limits; test images measure
and choose nothing, but for the two shares that pass the gate (below): they were settled once, on brain-mri, after a
look at how many of its test images a first choice refused. Of the training images only sums by hospital (and class)
enter, which a federation may share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from engine.data.federation_data import FederationData
from engine.data.images import Pixels
from engine.data.looks import COLUMNS
from engine.data.statistics import GATED, STATISTICS, Vector
from engine.errors import ModelError
from engine.inference.calibration import Calibration, ModelCalibration
from engine.inference.gate import Gate
from engine.inference.panel import Scorer
from engine.publishing.fitting import Sums, fit_gaussian, fit_temperature, fit_threshold
from engine.publishing.measure import ImageRows, measure_calibration
from engine.results.metrics import Floats, Integers

COVERAGE = 0.90
FEATURES_PASS = 0.99  # shares of the validation images that each half of the gate lets pass
STATISTICS_PASS = 0.985
SMALLEST_DEVIATION = 0.02  # in a statistic's own unit: where all images are grey, a hint of colour is no alarm
BATCH = 32


@dataclass(frozen=True)
class _Images:
    """All images of a federation, in one order."""

    pixels: list[Pixels]
    rows: ImageRows

    def where(self, split: str, hospitals: Sequence[str] | None = None) -> Integers:
        chosen = self.rows.split == split
        if hospitals is not None:
            chosen &= np.isin(self.rows.hospital, hospitals)
        return np.flatnonzero(chosen)


def fit_calibration(
    scorers: Mapping[str, Scorer], data: FederationData, on_step: Callable[[int, int], None] = lambda done, of: None
) -> Calibration:
    """`scorers` are the served graphs by model key, the gate's model first. Raises ModelError without validation."""
    images = _gather(data)
    hospitals = [hospital.id for hospital in data.federation.hospital]
    if len(images.where("validation")) == 0:
        raise ModelError("there are no validation images to calibrate on; train with a validation split")
    steps = len(scorers) + 1
    logits: dict[str, Floats] = {}
    features: Vector = np.zeros((0, 0))
    for number, (model, scorer) in enumerate(scorers.items()):
        first = number == 0
        wanted = None if first else np.concatenate([images.where("validation"), images.where("test")])
        logits[model], seen = _score(scorer, images.pixels, wanted, keep_features=first)
        features = seen if first else features
        on_step(number + 1, steps)
    models = {}
    for model, rows in logits.items():
        own = [model.removeprefix("local/")] if model.startswith("local/") else hospitals
        chosen = images.where("validation", own)
        temperature = fit_temperature(rows[chosen], images.rows.label[chosen])
        fitted = ModelCalibration(temperature=temperature, threshold=1.0, hospitals=tuple(own), n_images=len(chosen))
        threshold = fit_threshold(fitted.probabilities(rows[chosen]), images.rows.label[chosen], COVERAGE)
        models[model] = fitted.model_copy(update={"threshold": threshold})
    statistics = np.concatenate([holding.decoded.looks for holding in data.holdings])[
        :, len(COLUMNS) - len(STATISTICS) :
    ]
    gate = _fit_gate(images, features, statistics, hospitals)
    on_step(steps, steps)
    test = images.where("test")
    refused = np.maximum(*gate.distances(features[test], statistics[test])) > 1 if len(test) else np.zeros(0, bool)
    measured = measure_calibration(
        images.rows.take(test), {model: rows[test] for model, rows in logits.items()}, models, refused, data.federation
    )
    return Calibration(coverage=COVERAGE, models=models, gate=gate, measured=measured)


def _gather(data: FederationData) -> _Images:
    part = {(split.image.hospital, split.image.path): (split.part, split.group) for split in data.splits}
    images = [
        (image, pixels)
        for holding in data.holdings
        for image, pixels in zip(holding.images, holding.pixels, strict=True)
    ]
    known = [part[image.hospital, image.path] for image, _ in images]
    rows = ImageRows(
        split=np.array([split for split, _ in known]),
        group=np.array([group for _, group in known]),
        hospital=np.array([image.hospital for image, _ in images]),
        label=np.array([data.federation.classes.index(image.label) for image, _ in images], np.int64),
    )
    return _Images([pixels for _, pixels in images], rows)


def _score(
    scorer: Scorer, pixels: Sequence[Pixels], wanted: Integers | None, *, keep_features: bool
) -> tuple[Floats, Vector]:
    """Logits (all images, classes), zero where not `wanted`; pooled features (all images, channels) where kept."""
    wanted = np.arange(len(pixels)) if wanted is None else wanted
    logits: Floats = np.zeros((0, 0))
    features: Vector = np.zeros((0, 0))
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        answers, maps = scorer(np.stack([pixels[index] for index in batch]))
        if not len(logits):
            logits = np.zeros((len(pixels), answers.shape[1]))
            features = np.zeros((len(pixels), maps.shape[1])) if keep_features else features
        logits[batch] = answers
        if keep_features:
            features[batch] = maps.mean(axis=(2, 3))
    return logits, features


def _fit_gate(images: _Images, features: Vector, statistics: Vector, hospitals: Sequence[str]) -> Gate:
    rows = images.rows
    training = {hospital: images.where("train", [hospital]) for hospital in hospitals}
    whole = reduce(Sums.__add__, (Sums.of(statistics[mine]) for mine in training.values()))
    variance = np.diag(whole.outer) / whole.n - whole.mean**2
    deviation = np.maximum(np.sqrt(np.maximum(variance, 0)), SMALLEST_DEVIATION)
    gated = ((statistics - whole.mean) / deviation)[:, [STATISTICS.index(name) for name in GATED]]
    by_class = [
        reduce(Sums.__add__, (Sums.of(features[mine[rows.label[mine] == label]]) for mine in training.values()))
        for label in np.unique(rows.label)
    ]
    centred_features = fit_gaussian(by_class)
    centred_statistics = fit_gaussian(
        [reduce(Sums.__add__, (Sums.of(gated[mine]) for mine in training.values()))], directions=len(GATED)
    )
    validation = images.where("validation")
    far, odd = centred_features.distance(features[validation]), centred_statistics.distance(gated[validation])
    features_limit = float(np.quantile(far, FEATURES_PASS, method="higher"))
    statistics_limit = float(np.quantile(odd, STATISTICS_PASS, method="higher"))
    return Gate(
        features=centred_features,
        statistics=centred_statistics,
        features_limit=features_limit,
        statistics_limit=statistics_limit,
        mean=whole.mean,
        deviation=deviation,
        passed=float(((far <= features_limit) & (odd <= statistics_limit)).mean()),
        n_images=len(validation),
    )
