"""How a hospital's images look, in numbers that a sentence can be made of; and small greys, to find near duplicates."""

import numpy as np
from PIL import Image

from engine.data.images import Pixels
from engine.data.statistics import STATISTICS, Vector, measure_statistics

GREY_PX = 64
COLUMNS = ("width_px", "height_px", *STATISTICS)  # what is kept of every decoded image
LOOKS = ("width_px", "height_px", "brightness", "contrast", "sharpness")  # what people are told of a hospital's images


def measure_looks(pixels: Pixels) -> Vector:
    """COLUMNS of a decoded colour image (height, width, 3): its original size, then its STATISTICS."""
    height, width = pixels.shape[:2]
    return np.array([width, height, *measure_statistics(pixels)], np.float64)


def look(name: str, rows: Vector) -> Vector:
    """One of LOOKS from rows of COLUMNS (n, columns). Sharpness without its logarithm: a flat image has about 0."""
    column = rows[:, COLUMNS.index(name)]
    return np.exp(column) if name == "sharpness" else column


def small_grey(pixels: Pixels) -> Pixels:
    """GREY_PX square, aspect not kept."""
    image = Image.fromarray(pixels).convert("L")
    return np.asarray(image.resize((GREY_PX, GREY_PX), Image.Resampling.BILINEAR))
