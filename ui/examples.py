"""Synthetic slices to try Compare with, drawn when asked for. Of new heads, which no model was trained on."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.config import Federation
from engine.data.phantoms import PHANTOM_CLASSES, SCANNERS, draw_slice

SIZE_PX = 128  # as the phantom federation's own images
STREAM = 2_025  # keeps these heads apart from the training images', which begin with the hospital's place (0, 1, 2)


@dataclass(frozen=True)
class Example:
    """`content` is a PNG; `caption` says what was drawn, and that it was drawn."""

    content: bytes
    caption: str


def example_labels(federation: Federation) -> list[str]:
    """The classes there are examples of; none where the federation's images are not phantoms."""
    if federation.phantom_seed is None:
        return []
    return [label for label in federation.classes if label in PHANTOM_CLASSES]


def draw_example(federation: Federation, label: str, number: int) -> Example:
    """The `number`-th example of a class, each from the next hospital's scanner; the same for the same arguments."""
    scanners = [hospital.id for hospital in federation.hospital if hospital.id in SCANNERS] or list(SCANNERS)
    scanner = scanners[number % len(scanners)]
    seed = [federation.phantom_seed or 0, STREAM, PHANTOM_CLASSES.index(label), number]
    pixels, _ = draw_slice(label, SCANNERS[scanner], SIZE_PX, np.random.default_rng(seed))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    caption = f"Synthetic, drawn as {label} in the style of {federation.display_name(scanner)}:"
    return Example(content.getvalue(), caption)
