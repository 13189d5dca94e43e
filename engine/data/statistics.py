"""How an image looks, as a short vector of numbers: for the audit, the refusal gate and remarks on its quality."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data.images import Pixels

MEASURED_PX = 128  # longest side at which everything but the resolution is measured
BORDER = 0.06  # of the shorter side: the frame in which a scan is dark and a photograph is not
LEVELS = 32

Vector = npt.NDArray[np.float64]

# Resolution and aspect say how an image was cropped and saved, not what it shows: they inform, the gate ignores them.
QUALITY_ONLY = ("resolution", "aspect")
STATISTICS = (
    *QUALITY_ONLY,
    "brightness",
    "contrast",
    "sharpness",
    "saturation",
    "border",
    "centre",
    "dark",
    "bright",
    "entropy",
    "flat",
    "symmetry",
    "direction",
    "detail",
)
GATED = tuple(name for name in STATISTICS if name not in QUALITY_ONLY)


def measure_statistics(pixels: Pixels) -> Vector:
    """STATISTICS of a decoded colour image (height, width, 3), in that order, each roughly bell-shaped over scans.

    resolution: log2 of the shorter side in px; aspect: |log2(width / height)|. Of greys in 0..1: brightness and
    contrast are mean and standard deviation; sharpness: log of the Laplacian's deviation over the contrast;
    saturation: square root of the mean of (max - min) over the colours; border and centre: means there; dark and
    bright: shares below 0.1 and above 0.9; entropy of LEVELS grey levels in bits; flat: share of pixels like both
    neighbours; symmetry: correlation with the mirror image; direction: log ratio of vertical to horizontal edges;
    detail: log share of the contrast that a 3 px blur takes away.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((MEASURED_PX, MEASURED_PX), Image.Resampling.BILINEAR)
    colours = np.asarray(image, np.float64) / 255
    grey = np.asarray(image.convert("L"), np.float64) / 255
    contrast = float(grey.std())
    safe = max(contrast, 1e-3)
    across, down = np.diff(grey, axis=1), np.diff(grey, axis=0)
    frame = max(1, round(BORDER * min(grey.shape)))
    inner = np.zeros(grey.shape, bool)
    inner[frame : -frame or None, frame : -frame or None] = True
    third = tuple(slice(side // 3, max(side // 3 + 1, 2 * side // 3)) for side in grey.shape)
    mirrored = grey[:, ::-1]
    levels = np.bincount(np.minimum((grey * LEVELS).astype(int), LEVELS - 1).ravel(), minlength=LEVELS) / grey.size
    blurred = _blur(grey)
    values = {
        "resolution": np.log2(min(height, width)),
        "aspect": abs(np.log2(width / height)),
        "brightness": grey.mean(),
        "contrast": contrast,
        "sharpness": np.log(_laplacian(grey).std() / safe + 1e-3),
        "saturation": np.sqrt((colours.max(axis=2) - colours.min(axis=2)).mean()),
        "border": grey[~inner].mean() if (~inner).any() else grey.mean(),
        "centre": grey[third].mean(),
        "dark": (grey < 0.1).mean(),
        "bright": (grey > 0.9).mean(),
        "entropy": -(levels[levels > 0] * np.log2(levels[levels > 0])).sum(),
        "flat": (np.abs(across) < 1 / 255).mean() if across.size else 1.0,
        "symmetry": ((grey - grey.mean()) * (mirrored - grey.mean())).mean() / safe**2,
        "direction": np.log((_rms(down) + 1e-3) / (_rms(across) + 1e-3)),
        "detail": np.log((grey - blurred).std() / safe + 1e-3),
    }
    return np.array([values[name] for name in STATISTICS], np.float64)


def _blur(grey: Vector) -> Vector:
    padded = np.pad(grey, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    result: Vector = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return result


def _laplacian(grey: Vector) -> Vector:
    padded = np.pad(grey, 1, mode="edge")
    result: Vector = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    return result


def _rms(values: Vector) -> float:
    return float(np.sqrt((values**2).mean())) if values.size else 0.0
