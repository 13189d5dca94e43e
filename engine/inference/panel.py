"""A panel of models that each give an opinion on one image: those of a published version, or of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.config import Federation
from engine.data.images import FIT_RULE, Pixels, fit, read_image, to_grey
from engine.data.statistics import measure_statistics
from engine.errors import ModelError
from engine.inference.calibration import Calibration, prediction_set
from engine.inference.heatmap import Head, class_maps, read_head
from engine.inference.quality import quality_remarks
from engine.results.files import read_model
from engine.results.metrics import softmax
from engine.results.published import PublishedVersion

if TYPE_CHECKING:
    from engine.data.dicom import Window

THREADS = 2
CALIBRATION = "calibration.json"
Logits = npt.NDArray[np.float32]
FeatureMaps = npt.NDArray[np.float32]  # (n, channels, height, width)


class Scorer(Protocol):
    """One model: images (n, side, side, channels) -> logits (n, classes) and its last feature maps."""

    @property
    def head(self) -> Head: ...

    def __call__(self, images: Pixels) -> tuple[Logits, FeatureMaps]: ...


@dataclass(frozen=True)
class Opinion:
    """One model's answer to one image. Probabilities follow the federation's class order."""

    label: str
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a panel says about one image, by model key: "global", "local/<hospital id>" ..., "central".

    `original` is the decoded image, uint8 (height, width, 3), `pixels` what the models saw of it, uint8 (side, side,
    channels). `reasons` say why it is refused; a
    refused reading has no opinions unless they were insisted on. `remarks` are about its quality. `maps` are class
    activation maps, float32 (classes, height, width), of the models that gave an opinion. `frame` (from 0) and `window`
    are what the reader chose of a DICOM file.
    """

    original: Pixels
    pixels: Pixels
    refused: bool
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    opinions: dict[str, Opinion]
    maps: dict[str, npt.NDArray[np.float32]]
    frame: int | None = None
    window: "Window | None" = None


class Panel:
    """Models by key, and how an image is prepared for them. Never changed once made, so threads may share it.

    Without a calibration (a run's own weights) probabilities are raw, sets hold the top class, nothing is refused.
    """

    def __init__(
        self, federation: Federation, scorers: Mapping[str, Scorer], calibration: Calibration | None = None
    ) -> None:
        self.federation = federation
        self.models = tuple(scorers)
        self.calibration = calibration
        self._scorers = scorers

    def prepare(self, source: Path | bytes) -> Pixels:
        """One image file, decoded and fitted as in training. Raises ImageError."""
        model = self.federation.model
        return fit(read_image(source, colour=model.colour), model.image_size_px)

    def read(
        self, source: Path | bytes, *, frame: int | None = None, window: "Window | None" = None, insist: bool = False
    ) -> Reading:
        """Every model's opinion on one image file; on a refused one only if `insist`. Raises ImageError.

        `frame` and `window` are a reader's choices for a DICOM file; see `read_image`.
        """
        model = self.federation.model
        original = read_image(source, colour=True, frame=frame, window=window)
        pixels = fit(original if model.colour else to_grey(original), model.image_size_px)
        gate_model = self.models[0]
        scored = {gate_model: self._scorers[gate_model](pixels[None])}
        reasons: tuple[str, ...] = ()
        remarks: tuple[str, ...] = ()
        if self.calibration is not None:
            gate = self.calibration.gate
            statistics = measure_statistics(original)
            reasons = gate.reasons(scored[gate_model][1][0].mean(axis=(1, 2)), statistics)
            remarks = quality_remarks(gate, statistics, model.image_size_px)
        if reasons and not insist:
            return Reading(original, pixels, True, reasons, remarks, {}, {}, frame, window)
        scored |= {key: self._scorers[key](pixels[None]) for key in self.models[1:]}
        return Reading(
            original,
            pixels,
            bool(reasons),
            reasons,
            remarks,
            opinions={key: self._opinion(key, logits[0]) for key, (logits, _) in scored.items()},
            maps={key: class_maps(maps[0], self._scorers[key].head) for key, (_, maps) in scored.items()},
            frame=frame,
            window=window,
        )

    def logits(self, model: str, images: Sequence[Pixels]) -> Logits:
        """float32 logits (n, classes) of one model on prepared images, calibrated where the panel is."""
        logits = np.asarray(self._scorers[model](np.stack(images))[0], np.float32)
        if self.calibration is None:
            return logits
        return np.asarray(logits / self.calibration.models[model].temperature, np.float32)

    def _opinion(self, model: str, logits: Logits) -> Opinion:
        classes = self.federation.classes
        if self.calibration is None:
            probabilities = softmax(logits[None])[0]
            chosen = [int(probabilities.argmax())]
        else:
            fitted = self.calibration.models[model]
            probabilities = fitted.probabilities(logits[None])[0]
            chosen = prediction_set(probabilities, fitted.threshold)
        by_class = dict(zip(classes, map(float, probabilities), strict=True))
        return Opinion(classes[chosen[0]], by_class, tuple(classes[index] for index in chosen))


def open_panel(version: PublishedVersion) -> Panel:
    """The models of a published version, checked against their hashes and loaded. Raises ModelError."""
    version.verify()
    files = version.manifest.models
    federation = version.federation
    expected = graph_metadata(federation)
    scorers = {}
    for model, entry in files.items():
        scorers[model] = open_model(version.folder / entry.file, {**expected, "model": model})
    return Panel(federation, scorers, read_calibration(version))


def read_calibration(version: PublishedVersion) -> Calibration | None:
    """None where the version was published without one. Raises ModelError."""
    if CALIBRATION not in version.manifest.files:
        return None
    calibration = read_model(version.folder / CALIBRATION, Calibration, ModelError, "calibrate the version anew")
    missing = set(version.manifest.models) - set(calibration.models)
    if missing:
        raise ModelError(f"{version.folder / CALIBRATION}: lacks {min(missing)}; calibrate the version anew")
    return calibration


def graph_metadata(federation: Federation) -> dict[str, str]:
    """What every exported graph says of itself, so that it cannot be read with another federation's labels."""
    return {
        "schema_version": "1",
        "labels": json.dumps(list(federation.classes)),
        "image_size_px": str(federation.model.image_size_px),
        "channels": "3" if federation.model.colour else "1",
        "fit": FIT_RULE,
    }


def open_model(path: Path, expected: Mapping[str, str] | None = None) -> "OnnxModel":
    """An exported ONNX file as a scorer. Raises ModelError, also where its metadata is not as `expected`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelError(
            f"{path}: ONNX Runtime cannot load it ({type(error).__name__}); publish the run anew"
        ) from None
    metadata = session.get_modelmeta().custom_metadata_map
    for key, value in (expected or {}).items():
        if metadata.get(key) != value:
            raise ModelError(
                f"{path}: its {key} is {metadata.get(key)!r}, but its version says {value!r}; publish the run anew"
            )
    return OnnxModel(session, read_head(metadata.get("head", ""), path))


@dataclass(frozen=True)
class OnnxModel:
    """A loaded graph as a scorer."""

    session: onnxruntime.InferenceSession
    head: Head

    def __call__(self, images: Pixels) -> tuple[Logits, FeatureMaps]:
        logits, feature_map = self.session.run(["logits", "feature_map"], {"image": images})
        return logits, feature_map
