"""A published version as a panel of models that each give an opinion on one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.data.images import Pixels, fit, read_image
from engine.errors import ModelError
from engine.results.metrics import softmax
from engine.results.published import PublishedVersion

THREADS = 2


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
    """The models of one published version, loaded and checked once. Safe to share between threads."""

    def __init__(self, version: PublishedVersion) -> None:
        version.verify()
        self.version = version
        self.classes = version.federation.classes
        self.models = tuple(version.manifest.models)
        self._sessions = {
            model: _open_session(version.folder / entry.file) for model, entry in version.manifest.models.items()
        }

    def prepare(self, source: Path | bytes) -> Pixels:
        """One image file, decoded and fitted as in training. Raises ImageError."""
        model = self.version.federation.model
        return fit(read_image(source, colour=model.colour), model.image_size_px)

    def read(self, source: Path | bytes) -> Reading:
        """Every model's opinion on one image file. Raises ImageError."""
        pixels = self.prepare(source)
        opinions = {model: self._opinion(self.logits(model, [pixels])[0]) for model in self.models}
        return Reading(pixels, refused=False, reasons=(), opinions=opinions)

    def logits(self, model: str, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """float32 logits (n, classes) of one model on prepared images."""
        rows = self._sessions[model].run(["logits"], {"image": np.stack(images)})[0]
        return np.asarray(rows, np.float32)

    def _opinion(self, logits: npt.NDArray[np.float32]) -> Opinion:
        probabilities = softmax(logits[None])[0]
        label = self.classes[int(probabilities.argmax())]
        by_class = dict(zip(self.classes, map(float, probabilities), strict=True))
        return Opinion(label, by_class, prediction_set=(label,))


def _open_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({type(error).__name__}); publish the run anew") from None
