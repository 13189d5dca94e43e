"""A panel of models that each give an opinion on one image: those of a published version, or of a run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.config import Federation
from engine.data.images import FIT_RULE, Pixels, fit, read_image
from engine.errors import ModelError
from engine.results.metrics import softmax
from engine.results.published import PublishedVersion

THREADS = 2
Logits = npt.NDArray[np.float32]
Scorer = Callable[[Pixels], Logits]  # images (n, side, side, channels) -> (n, classes)


@dataclass(frozen=True)
class Opinion:
    """One model's answer to one image. Probabilities follow the federation's class order."""

    label: str
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a panel says about one image, by model key: "global", "local/<hospital id>" ..., "central".

    `pixels` is the image as the models saw it, uint8 (side, side, channels).
    """

    pixels: Pixels
    refused: bool
    reasons: tuple[str, ...]
    opinions: dict[str, Opinion]


class Panel:
    """Models by key, and how an image is prepared for them. Never changed once made, so threads may share it."""

    def __init__(self, federation: Federation, scorers: Mapping[str, Scorer]) -> None:
        self.federation = federation
        self.models = tuple(scorers)
        self._scorers = scorers

    def prepare(self, source: Path | bytes) -> Pixels:
        """One image file, decoded and fitted as in training. Raises ImageError."""
        model = self.federation.model
        return fit(read_image(source, colour=model.colour), model.image_size_px)

    def read(self, source: Path | bytes) -> Reading:
        """Every model's opinion on one image file. Raises ImageError."""
        pixels = self.prepare(source)
        opinions = {model: self._opinion(self.logits(model, [pixels])[0]) for model in self.models}
        return Reading(pixels, refused=False, reasons=(), opinions=opinions)

    def logits(self, model: str, images: Sequence[Pixels]) -> Logits:
        """float32 logits (n, classes) of one model on prepared images."""
        return np.asarray(self._scorers[model](np.stack(images)), np.float32)

    def _opinion(self, logits: Logits) -> Opinion:
        probabilities = softmax(logits[None])[0]
        label = self.federation.classes[int(probabilities.argmax())]
        by_class = dict(zip(self.federation.classes, map(float, probabilities), strict=True))
        return Opinion(label, by_class, prediction_set=(label,))


def open_panel(version: PublishedVersion) -> Panel:
    """The models of a published version, checked against their hashes and loaded. Raises ModelError."""
    version.verify()
    files = version.manifest.models
    federation = version.federation
    expected = graph_metadata(federation)
    scorers = {}
    for model, entry in files.items():
        scorers[model] = open_model(version.folder / entry.file, {**expected, "model": model})
    return Panel(federation, scorers)


def graph_metadata(federation: Federation) -> dict[str, str]:
    """What every exported graph says of itself, so that it cannot be read with another federation's labels."""
    return {
        "schema_version": "1",
        "labels": json.dumps(list(federation.classes)),
        "image_size_px": str(federation.model.image_size_px),
        "channels": "3" if federation.model.colour else "1",
        "fit": FIT_RULE,
    }


def open_model(path: Path, expected: Mapping[str, str] | None = None) -> Scorer:
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
    return lambda images: np.asarray(session.run(["logits"], {"image": images})[0])
