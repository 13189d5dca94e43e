"""How an image looks, in numbers that a sentence can be made of: size, brightness, contrast, sharpness."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data.images import Pixels

MEASURED_PX = 256  # sharpness depends on the size it is measured at
GREY_PX = 64

LOOKS = ("width_px", "height_px", "brightness", "contrast", "sharpness")


@dataclass(frozen=True)
class Looks:
    """Original size in pixels; mean grey and its standard deviation in 0..1; sharpness in 0..1: the standard deviation
    of the Laplacian over that of the greys, at most MEASURED_PX a side (a flat image has 0)."""

    width_px: float
    height_px: float
    brightness: float
    contrast: float
    sharpness: float


def measure_looks(pixels: Pixels) -> Looks:
    """Of a decoded image, grey (height, width) or colour (height, width, 3)."""
    image = Image.fromarray(pixels).convert("L")
    width, height = image.size
    image.thumbnail((MEASURED_PX, MEASURED_PX), Image.Resampling.BILINEAR)
    grey = np.asarray(image, np.float64) / 255
    contrast = float(grey.std())
    return Looks(width, height, float(grey.mean()), contrast, _sharpness(grey, contrast))


def small_grey(pixels: Pixels) -> Pixels:
    """GREY_PX square, aspect not kept: what near duplicates are looked for on."""
    image = Image.fromarray(pixels).convert("L")
    return np.asarray(image.resize((GREY_PX, GREY_PX), Image.Resampling.BILINEAR))


def _sharpness(grey: npt.NDArray[np.floating[Any]], contrast: float) -> float:
    if contrast < 1e-6 or min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return min(1.0, float(laplacian.std()) / (8 * contrast))
