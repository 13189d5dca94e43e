"""Drawn heads: a small, seeded, synthetic brain-MRI federation, so that everything works before any real data is there.

Each image imitates a contrast-enhanced T1 slice in the coronal plane through the sella: the one plane in which the
convexity, the falx, the white matter and the pituitary gland are all in view, so that every class can share one head
and only the mass tells them apart. Patient first (`draw_patient`), then tissue, mass, scanner, and the files.

Head coordinates: x to the right, y downwards, both in half image widths (-1 to 1), before the head is turned or moved.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import DataError

Field = NDArray[np.float64]
Row = tuple[str, ...]  # one line of lesions.csv

PHANTOM_CLASSES = ("glioma", "meningioma", "notumor", "pituitary")

NOTICE = """These images are synthetic. A program (engine/data/phantoms.py) drew them from random numbers.
They show no patient, come from no hospital, and must not be used for any medical purpose.
"""


@dataclass(frozen=True)
class Scanner:
    """The look of one hospital's images."""

    contrast: float  # exponent on the signal: above 1 deepens the dark tissues
    brightness: float  # factor on the signal
    noise: float  # standard deviation, as a share of full white
    blur: float  # standard deviation in pixels of a 128 px image
    bias: float  # strength of the slow shading across the image
    bias_angle: float  # radians: where the receiving coil sits, 0 is to the right


@dataclass(frozen=True)
class Lesion:
    """Where the mass is, in pixels of the image: the centre of pixel (0, 0) is x = 0, y = 0."""

    x: float
    y: float
    radius: float


Slice = tuple[NDArray[np.uint8], Lesion | None]


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


SCANNERS: Mapping[str, Scanner] = MappingProxyType(
    {
        "hospital-a": Scanner(contrast=1.10, brightness=1.00, noise=0.025, blur=0.45, bias=0.10, bias_angle=-1.2),
        "hospital-b": Scanner(contrast=0.80, brightness=0.90, noise=0.040, blur=0.80, bias=0.24, bias_angle=0.4),
        "hospital-c": Scanner(contrast=1.45, brightness=1.12, noise=0.055, blur=0.60, bias=0.32, bias_angle=2.6),
    }
)

# Hospital C has never seen a head without a tumour: what its own model then makes of one is a story worth telling.
DEFAULT_COUNTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "hospital-a": MappingProxyType({"glioma": 46, "meningioma": 20, "notumor": 40, "pituitary": 24}),
        "hospital-b": MappingProxyType({"glioma": 18, "meningioma": 44, "notumor": 26, "pituitary": 22}),
        "hospital-c": MappingProxyType({"glioma": 24, "meningioma": 22, "pituitary": 44}),
    }
)

# The brain fills an ellipse; the sella lies where its lower edge meets the midline.
BRAIN_Y, BRAIN_HALF_WIDTH, BRAIN_HALF_HEIGHT = -0.14, 0.71, 0.64
SELLA_Y = 0.38


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


def _noise(size_px: int, cells: int, rng: np.random.Generator) -> Field:
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


def _draw_head(x: Field, y: Field, patient: Patient, mass: Mass | None) -> Field:
    """Signal (0 to 1) of every tissue of the head in its mass-free or displaced form."""
    size_px = x.shape[0]
    edge = 3.0 / size_px
    rng = np.random.default_rng(patient.texture_seed)
    coarse, middle, fine = _noise(size_px, 6, rng), _noise(size_px, 12, rng), _noise(size_px, 40, rng)
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


def _draw_lesion(image: Field, x: Field, y: Field, label: str, mass: Mass, texture_seed: int) -> None:
    size_px = image.shape[0]
    edge = 3.0 / size_px
    rng = np.random.default_rng([texture_seed, 1])
    middle, fine = _noise(size_px, 14, rng), _noise(size_px, 32, rng)
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


def _scan(tissue: Field, scanner: Scanner, rng: np.random.Generator) -> NDArray[np.uint8]:
    size_px = tissue.shape[0]
    spread = scanner.blur * size_px / 128
    reach = int(np.ceil(2.5 * spread))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(spread, 1e-3)) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        shifted = (weight * np.roll(tissue, shift, axis) for shift, weight in enumerate(weights, start=-reach))
        tissue = sum(shifted, start=np.zeros_like(tissue))
    position = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    slope = np.cos(scanner.bias_angle) * position[None, :] + np.sin(scanner.bias_angle) * position[:, None]
    shading = np.exp(scanner.bias * (slope + 0.35 * _noise(size_px, 4, rng)))
    signal = scanner.brightness * rng.normal(1, 0.04) * shading * np.clip(tissue, 0, None) ** scanner.contrast
    # Magnitude images carry Rician noise: the length of a complex number with noise in both parts.
    real, imaginary = rng.normal(0, scanner.noise, (2, size_px, size_px))
    magnitude: Field = np.hypot(signal + real, imaginary)
    return np.clip(magnitude * 255, 0, 255).round().astype(np.uint8)


def render_slice(patient: Patient, scanner: Scanner, size_px: int, rng: np.random.Generator) -> Slice:
    """One slice of a patient, (size_px, size_px). `rng` moves the slice a little and makes the noise.

    The same `rng` state with `replace(patient, mass=None)` gives the same head in the same place without its mass.
    """
    rotation = patient.rotation + rng.normal(0, 0.02)
    shift_x, shift_y = rng.normal(0, 0.025, 2)
    shrink, move_x, move_y = rng.uniform(0.82, 1.0), *rng.normal(0, 0.008, 2)
    head = replace(patient, ventricle=patient.ventricle * rng.uniform(0.9, 1.1))

    position = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    right, down = position[None, :] - shift_x, position[:, None] - shift_y
    cosine, sine = float(np.cos(rotation)), float(np.sin(rotation))
    x, y = (cosine * right + sine * down) / patient.width, (cosine * down - sine * right) / patient.height
    if head.mass is None:
        return _scan(_draw_head(x, y, head, None), scanner, rng), None

    mass = replace(head.mass, x=head.mass.x + move_x, y=head.mass.y + move_y, radius=head.mass.radius * shrink)
    tissue = _draw_head(x, y, head, mass)
    _draw_lesion(tissue, x, y, head.label, mass, head.texture_seed)
    across, along = mass.x * patient.width, mass.y * patient.height  # forwards what x and y undo
    lesion = Lesion(
        x=(cosine * across - sine * along + shift_x + 1) * size_px / 2 - 0.5,
        y=(sine * across + cosine * along + shift_y + 1) * size_px / 2 - 0.5,
        radius=mass.radius * (patient.width + patient.height) / 2 * size_px / 2,
    )
    return _scan(tissue, scanner, rng), lesion


def draw_slice(label: str, scanner: Scanner, size_px: int, rng: np.random.Generator) -> Slice:
    """One slice of a new patient."""
    return render_slice(draw_patient(label, rng), scanner, size_px, rng)


def write_phantoms(
    root: Path,
    *,
    seed: int,
    size_px: int = 128,
    progress: Callable[[int, int], None] | None = None,
    images_per_hospital: Mapping[str, Mapping[str, int]] = DEFAULT_COUNTS,
) -> None:
    """Write `root/HOSPITAL/CLASS/phantom-a-p012-s1.png`, `root/lesions.csv` and `root/SYNTHETIC.txt`, all or nothing.

    `progress` hears (images written, images in all). Raises DataError if `root` exists or a hospital is unknown.
    """
    if root.exists():
        raise DataError(f"{root} is already there; remove it to draw the phantoms again")
    for hospital, counts in images_per_hospital.items():
        if hospital not in SCANNERS or not set(counts) <= set(PHANTOM_CLASSES):
            known = f"hospitals: {', '.join(SCANNERS)}; classes: {', '.join(PHANTOM_CLASSES)}"
            raise DataError(f"no phantoms for {hospital!r} with classes {sorted(counts)}; {known}")
    n_images = sum(sum(counts.values()) for counts in images_per_hospital.values())
    root.parent.mkdir(parents=True, exist_ok=True)
    # Drawn beside its destination and then renamed: whoever finds `root` finds all of it.
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workshop:
        unfinished = Path(workshop) / "phantoms"
        unfinished.mkdir()
        rows: list[Row] = []
        for hospital, counts in images_per_hospital.items():
            for row in _write_hospital(unfinished, hospital, counts, seed, size_px):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), n_images)
        with (unfinished / "lesions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "label", "x", "y", "radius_px", "patient"))
            writer.writerows(rows)
        (unfinished / "SYNTHETIC.txt").write_text(NOTICE, encoding="utf-8")
        unfinished.rename(root)


def _write_hospital(root: Path, hospital: str, counts: Mapping[str, int], seed: int, size_px: int) -> Iterator[Row]:
    """Write one hospital's images, yielding the row of `lesions.csv` after each."""
    hospital_index = list(SCANNERS).index(hospital)
    n_patients = 0
    for class_index, label in enumerate(PHANTOM_CLASSES):
        n_left = counts.get(label, 0)
        if n_left:
            (root / hospital / label).mkdir(parents=True)
        n_patients_of_class = 0
        while n_left > 0:
            n_patients += 1
            n_patients_of_class += 1
            # An image's randomness knows its hospital, class, patient and slice, never how many others there are.
            origin = [seed, hospital_index, class_index, n_patients_of_class]
            rng = np.random.default_rng([*origin, 0])
            patient, n_slices = draw_patient(label, rng), min(n_left, int(rng.integers(1, 4)))
            n_left -= n_slices
            name = f"phantom-{hospital[-1]}-p{n_patients:03d}"
            for number in range(1, n_slices + 1):
                rng = np.random.default_rng([*origin, number])
                image, lesion = render_slice(patient, SCANNERS[hospital], size_px, rng)
                path = f"{hospital}/{label}/{name}-s{number}.png"
                Image.fromarray(image).save(root / path)
                place = ("", "", "") if lesion is None else tuple(f"{value:.2f}" for value in astuple(lesion))
                yield (path, label, *place, name)
