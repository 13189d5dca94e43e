"""Drawn heads: a small, seeded, synthetic brain-MRI federation, so that everything works before any real data is there.

Each image imitates a contrast-enhanced T1 slice in the coronal plane through the sella: the one plane in which the
convexity, the falx, the white matter and the pituitary gland are all in view, so that every class can share one head
and only the mass tells them apart. Patient, tissue and mass come first (`phantom_heads.py`), then scanner and
files, here.
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

from engine.data.phantom_heads import (
    PHANTOM_CLASSES,
    Field,
    Patient,
    draw_head,
    draw_lesion,
    draw_patient,
    smooth_noise,
)
from engine.errors import DataError

Row = tuple[str, ...]  # one line of lesions.csv

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
    shading = np.exp(scanner.bias * (slope + 0.35 * smooth_noise(size_px, 4, rng)))
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
        return _scan(draw_head(x, y, head, None), scanner, rng), None

    mass = replace(head.mass, x=head.mass.x + move_x, y=head.mass.y + move_y, radius=head.mass.radius * shrink)
    tissue = draw_head(x, y, head, mass)
    draw_lesion(tissue, x, y, head.label, mass, head.texture_seed)
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
