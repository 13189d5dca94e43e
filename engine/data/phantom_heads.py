"""Drawn heads: who a synthetic patient is, and the signal of the tissues and of the mass in one slice through the head.

Head coordinates: x to the right, y downwards, both in half image widths (-1 to 1), before the head is turned or moved.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.float64]

PHANTOM_CLASSES = ("glioma", "meningioma", "notumor", "pituitary")

# The brain fills an ellipse; the sella lies where its lower edge meets the midline.
BRAIN_Y, BRAIN_HALF_WIDTH, BRAIN_HALF_HEIGHT = -0.14, 0.71, 0.64
SELLA_Y = 0.38


@dataclass(frozen=True)
class Mass:
    """A tumour in head coordinates. `lobes` are phases of the outline's bumps."""

    x: float
    y: float
    radius: float
    enhancement: float  # how much brighter than white matter contrast agent makes it
    core: float  # 0 to 1: how much of a glioma is dead tissue
    oedema: float  # 0 to 1
    lobes: tuple[float, ...]
    at_falx: bool = False


@dataclass(frozen=True)
class Patient:
    """What stays the same from slice to slice."""

    label: str
    rotation: float
    width: float
    height: float
    ventricle: float
    n_folds: int
    gland: float
    texture_seed: int
    mass: Mass | None


def draw_patient(label: str, rng: np.random.Generator) -> Patient:
    """A head and, unless `label` is "notumor", a mass. The head does not depend on the label."""
    if label not in PHANTOM_CLASSES:
        raise ValueError(f"there is no phantom of class {label!r}; the classes are {', '.join(PHANTOM_CLASSES)}")
    head = Patient(
        label=label,
        rotation=rng.normal(0, 0.06),
        width=rng.uniform(0.90, 1.02),
        height=rng.uniform(0.92, 1.02),
        ventricle=rng.uniform(0.7, 1.5),
        n_folds=int(rng.integers(11, 15)),
        gland=rng.uniform(0.8, 1.3),
        texture_seed=int(rng.integers(2**32)),
        mass=None,
    )
    return head if label == "notumor" else replace(head, mass=_draw_mass(label, rng))


def _draw_mass(label: str, rng: np.random.Generator) -> Mass:
    side = rng.choice([-1.0, 1.0])
    lobes = tuple(rng.uniform(0, 2 * np.pi, 5).tolist())
    # A faint mass is a hard case: the range reaches from barely visible to obvious.
    enhancement = rng.uniform(0.13, 0.36)
    core, oedema = rng.uniform(0.25, 1.0), rng.uniform(0.2, 1.0)
    at_falx = False
    if label == "glioma":
        radius = rng.uniform(0.14, 0.28)
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
        x, y = side * (0.31 + 0.10 * reach * np.cos(angle)), BRAIN_Y + 0.02 + 0.30 * reach * np.sin(angle)
    elif label == "meningioma":
        radius = rng.uniform(0.14, 0.26)
        at_falx = rng.random() < 0.25
        if at_falx:
            x, y = side * 0.6 * radius, rng.uniform(-0.62, -0.38)
        else:
            angle = rng.uniform(0.15, 1.9)  # from beside the vertex to below the Sylvian fissure
            # Most of the ball lies inside; the dura cuts the rest off and gives it a broad base.
            x = side * (BRAIN_HALF_WIDTH - 0.6 * radius) * np.sin(angle)
            y = BRAIN_Y - (BRAIN_HALF_HEIGHT - 0.6 * radius) * np.cos(angle)
    else:
        # A macroadenoma grows upwards, out of the sella.
        radius = rng.uniform(0.10, 0.20)
        x, y = rng.normal(0, 0.02), SELLA_Y + 0.03 - 0.7 * (radius - 0.08)
    return Mass(float(x), float(y), radius, enhancement, core, oedema, lobes, at_falx)


def smooth_noise(size_px: int, cells: int, rng: np.random.Generator) -> Field:
    """Smooth noise of about unit variance: a coarse random grid, enlarged."""
    grid = Image.fromarray(rng.normal(0, 1.3, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float64)


def _depth(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    """About the distance to an ellipse's edge: positive inside, negative outside."""
    across, along = x / half_width, y / half_height
    radius = np.sqrt(across**2 + along**2)
    slope = np.sqrt((across / half_width) ** 2 + (along / half_height) ** 2)
    return (1 - radius) * radius / np.maximum(slope, 1e-6)


def _to_segment(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float]) -> Field:
    step_x, step_y = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * step_x + (y - start[1]) * step_y) / (step_x**2 + step_y**2)
    along = np.clip(along, 0, 1)
    return np.hypot(x - start[0] - along * step_x, y - start[1] - along * step_y)


def _paint(image: Field, value: Field | float, depth: Field, softness: float) -> None:
    """Set `image` to `value` where `depth` is positive, with an edge `softness` wide."""
    image += (value - image) * np.clip(0.5 + depth / softness, 0, 1)


def draw_head(x: Field, y: Field, patient: Patient, mass: Mass | None) -> Field:
    """Signal (0 to 1) of every tissue of the head in its mass-free or displaced form."""
    size_px = x.shape[0]
    edge = 3.0 / size_px
    rng = np.random.default_rng(patient.texture_seed)
    coarse, middle, fine = smooth_noise(size_px, 6, rng), smooth_noise(size_px, 12, rng), smooth_noise(size_px, 40, rng)
    brain = _depth(x, y - BRAIN_Y, BRAIN_HALF_WIDTH, BRAIN_HALF_HEIGHT) + 0.006 * coarse

    # Outside the brain: skin and fat around head and face, the chewing muscles, the throat, then bone with its marrow.
    mirrored = np.abs(x)
    face = np.minimum(0.66 - 0.18 * y + 0.02 * coarse - mirrored, y - 0.05)
    head = np.maximum(brain + 0.130 + 0.005 * middle, face)
    image = np.zeros_like(x)
    _paint(image, 0.78 + 0.06 * fine, head, edge)
    _paint(image, 0.36 + 0.07 * middle + 0.04 * fine, face - 0.06 - 0.015 * middle, 2 * edge)
    _paint(image, 0.62 + 0.05 * fine, _depth(mirrored - 0.24 - 0.02 * coarse, y - 0.76, 0.035, 0.24), 3 * edge)
    _paint(image, 0.10, _depth(mirrored - 0.38 - 0.01 * coarse, y - 0.86, 0.032, 0.22), 2 * edge)
    _paint(image, 0.05, _depth(x, y - 0.86, 0.075, 0.10), 2 * edge)
    _paint(image, 0.07, brain + 0.085, edge)
    _paint(image, 0.34 + 0.06 * fine, np.minimum(brain + 0.068, -0.030 - brain), edge)

    # A mass pushes its surroundings aside, so the brain is drawn at the places its tissue came from.
    if mass is not None:
        distance = np.hypot(x - mass.x, y - mass.y) / mass.radius
        push = 0.55 * np.exp(-((distance / 1.5) ** 2))
        x, y = x - push * (x - mass.x), y - push * (y - mass.y)
    across = x + 0.012 * coarse

    # Sulci are the zero lines of a wavy field; its value over its slope is about the distance to the nearest one.
    folds = np.sin(patient.n_folds * np.arctan2(x, BRAIN_Y - y) + 1.5 * coarse) + 0.55 * middle
    slope_y, slope_x = np.gradient(folds, 2.0 / size_px)
    sulcus = np.abs(folds) / np.maximum(np.hypot(slope_x, slope_y), 1e-6)
    sulcus += 1.5 * np.maximum(brain - 0.19 - 0.06 * middle, 0)
    fissure = np.hypot(across, np.maximum(y + 0.27, 0))
    sylvian = _to_segment(np.abs(across), y + 0.02 * middle, (0.38, 0.04), (0.71, -0.02))
    to_fluid = np.minimum(np.minimum(brain, sulcus), np.minimum(fissure, sylvian))

    _paint(image, 0.10, brain, edge)
    _paint(image, 0.42 + 0.02 * fine, to_fluid - 0.010, edge)
    _paint(image, 0.62 + 0.015 * middle + 0.015 * fine, to_fluid - 0.066, 1.5 * edge)

    # Deep grey matter, ventricles, and what surrounds the gland.
    mirrored = np.abs(across)
    _paint(image, 0.46, _depth(mirrored - 0.10, y + 0.02, 0.085, 0.10), 3 * edge)
    _paint(image, 0.45, _depth(mirrored - 0.26, y + 0.04, 0.065, 0.105), 3 * edge)
    size = patient.ventricle
    tilt_x, tilt_y = mirrored - 0.085 - 0.02 * size, y + 0.19
    lean = tilt_x + 0.45 * tilt_y
    _paint(image, 0.11, _depth(lean, tilt_y - 1.2 * lean**2, 0.042 * size, 0.085 * np.sqrt(size)), edge)
    _paint(image, 0.12, _depth(across, y - 0.02, 0.014 * size, 0.10), edge)
    _paint(image, 0.12, _depth(across, y - 0.27, 0.15, 0.085), 2 * edge)
    _paint(image, 0.33 + 0.05 * fine, _depth(x, y - 0.56, 0.22, 0.15), edge)
    _paint(image, 0.04, _depth(across, y - 0.57, 0.14, 0.085), edge)
    _paint(image, 0.66, _depth(mirrored - 0.115, y - SELLA_Y - 0.01, 0.045, 0.055), edge)
    _paint(image, 0.10, _depth(mirrored - 0.115, y - SELLA_Y + 0.005, 0.024, 0.024), edge)
    _paint(image, 0.70, _depth(across, y - SELLA_Y - 0.01, 0.070 * patient.gland, 0.034 * patient.gland), edge)
    _paint(image, 0.62, np.minimum(0.010 - np.abs(across), SELLA_Y - y) + np.minimum(y - 0.22, 0), edge)

    # Vessels enhance as a tumour does: the sagittal sinus in every head, and a few cut across anywhere.
    _paint(image, 0.80, _depth(across, y - BRAIN_Y + BRAIN_HALF_HEIGHT + 0.01, 0.040, 0.045), edge)
    for _ in range(rng.integers(2, 6)):
        angle, reach, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.97), rng.uniform(0.008, 0.022)
        vessel_x, vessel_y = BRAIN_HALF_WIDTH * reach * np.sin(angle), BRAIN_HALF_HEIGHT * reach * np.cos(angle)
        _paint(image, 0.78, radius - np.hypot(x - vessel_x, y - BRAIN_Y - vessel_y), edge)
    return image


def draw_lesion(image: Field, x: Field, y: Field, label: str, mass: Mass, texture_seed: int) -> None:
    size_px = image.shape[0]
    edge = 3.0 / size_px
    rng = np.random.default_rng([texture_seed, 1])
    middle, fine = smooth_noise(size_px, 14, rng), smooth_noise(size_px, 32, rng)
    inside_dura = _depth(x, y - BRAIN_Y, BRAIN_HALF_WIDTH, BRAIN_HALF_HEIGHT) + 0.004
    angle = np.arctan2(y - mass.y, x - mass.x)
    distance = np.hypot(x - mass.x, y - mass.y)
    bumps = sum(np.sin(k * angle + phase) / k for k, phase in enumerate(mass.lobes, start=2))
    bright = 0.62 + mass.enhancement

    if label == "glioma":
        depth = mass.radius * (0.92 + 0.20 * bumps) - distance
        halo = np.minimum(depth + mass.radius * (0.35 + 0.5 * mass.oedema + 0.22 * middle), inside_dura - 0.02)
        _paint(image, 0.55 * image + 0.45 * 0.30, halo, 8 * edge)
        depth = np.minimum(depth, inside_dura - 0.015)
        _paint(image, bright + 0.06 * middle, depth, 1.5 * edge)
        rim = mass.radius * (0.75 - 0.48 * mass.core) * (1 + 0.35 * middle)
        _paint(image, 0.24 + 0.05 * middle, depth - rim, 2 * edge)
    elif label == "meningioma":
        depth = mass.radius * (1 + 0.05 * bumps) - distance
        if mass.at_falx:
            depth = np.minimum(depth, np.sign(mass.x) * x)
        halo = np.minimum(depth + 0.5 * mass.oedema * mass.radius, inside_dura)
        _paint(image, 0.85 * image + 0.15 * 0.25, halo, 8 * edge)
        _paint(image, 0.20, np.minimum(depth + 0.018, inside_dura), edge)  # a cleft of fluid parts it from the brain
        _paint(image, bright + 0.015 * fine, np.minimum(depth, inside_dura), edge)
        if not mass.at_falx:
            dural_tail = np.minimum(0.5 * depth + 0.25 * mass.radius, 0.014 - np.abs(inside_dura - 0.01))
            _paint(image, bright, dural_tail, edge)
    else:
        waist = 1 - 0.18 * np.exp(-(((y - SELLA_Y + 0.06) / 0.05) ** 2))
        depth = mass.radius * waist * (1 + 0.05 * bumps) - np.hypot((x - mass.x) * 1.08, y - mass.y)
        _paint(image, 0.15, depth + 0.014, edge)
        _paint(image, bright + 0.025 * fine, depth, edge)
