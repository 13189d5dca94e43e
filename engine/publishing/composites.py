"""Pictures to try a version with where no patient's image may be shown: aligned averages of a class's training images.

A composite averages N_IMAGES images of as many patients; where patients are unknown, of as many groups of which no two
are so alike that they are likely slices of one patient (a guess: nobody can check it there). It is kept only if the
version's own gate takes it for a scan.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data.federation_data import FederationData
from engine.data.hospitals import LocalImage
from engine.data.images import Pixels, fit, read_image
from engine.data.looks import GREY_PX
from engine.inference.panel import Panel
from engine.results.published import Composite

N_IMAGES = 8
AT_MOST = 8  # composites of one version
SIDE_PX = 256
REACH = 5  # pixels of GREY_PX by which an image may be shifted onto another, either way
TOO_ALIKE = 0.85  # aligned correlation from which two images may be slices of one patient
SAMPLE = 300  # groups of a class that are looked at; correlations grow with its square
TRIES = 10  # averages of a class that the gate may refuse before the class goes without
SEED = 0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Candidates:
    """One image of each group. `alike` (n, n) is the correlation at the best shift, `shift` (n, n, 2) that shift:
    rows down and columns right by which image j moves onto image i, in pixels of GREY_PX."""

    images: Sequence[LocalImage]
    alike: Floats
    shift: npt.NDArray[np.int64]

    def may_be_one_patient(self, a: int, b: int) -> bool:
        """Two groups never share a known patient."""
        known = self.images[a].patient is not None and self.images[b].patient is not None
        return not known and bool(self.alike[a, b] >= TOO_ALIKE)


def make_composites(data: FederationData, panel: Panel) -> Iterator[tuple[bytes, Composite]]:
    """PNG files, class by class; none of a class whose training images give none that the gate accepts."""
    per_class = max(1, AT_MOST // len(data.federation.classes))
    for label in data.federation.classes:
        candidates = _candidates(data, label)
        made = 0
        for members in itertools.islice(_clusters(candidates), TRIES):
            content = _average(data, candidates, members)
            if not panel.read(content).refused:
                hospitals = sorted({candidates.images[member].hospital for member in members})
                yield content, Composite(label=label, n_images=len(members), hospitals=tuple(hospitals))
                made += 1
            if made == per_class:
                break


def _candidates(data: FederationData, label: str) -> _Candidates:
    group = {(s.image.hospital, s.image.path): s.group for s in data.splits if s.part == "train"}
    of_group: dict[str, tuple[LocalImage, Pixels]] = {}
    for holding in data.holdings:
        for image, grey in zip(holding.images, holding.decoded.greys, strict=True):
            name = group.get((image.hospital, image.path))
            if image.label == label and name is not None:
                of_group.setdefault(name, (image, grey))
    names = sorted(of_group)
    if len(names) > SAMPLE:
        names = sorted(np.random.default_rng(SEED).choice(names, SAMPLE, replace=False).tolist())
    greys = np.array([of_group[name][1] for name in names], np.float64).reshape(-1, GREY_PX, GREY_PX)
    return _Candidates([of_group[name][0] for name in names], *_align(greys))


def _align(greys: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Correlation of each pair at its best shift, and that shift, by way of the Fourier transform."""
    n = len(greys)
    centred = greys - greys.mean(axis=(1, 2), keepdims=True)
    spectra = np.fft.rfft2(centred / np.maximum(np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True)), 1e-9))
    steps = range(-REACH, REACH + 1)
    offsets = np.array([(down, right) for down in steps for right in steps])
    alike, shift = np.zeros((n, n)), np.zeros((n, n, 2), np.int64)
    for row in range(n):
        correlation = np.fft.irfft2(spectra[row] * spectra.conj(), s=greys.shape[1:])
        values = correlation[:, offsets[:, 0], offsets[:, 1]]
        best = values.argmax(axis=1)
        alike[row], shift[row] = values[np.arange(n), best], offsets[best]
    return alike, shift


def _clusters(candidates: _Candidates) -> Iterator[list[int]]:
    """Groups of N_IMAGES like images of different patients, the likest first; no image is in two of them."""
    n = len(candidates.images)
    others = [
        [other for other in np.argsort(-row, kind="stable").tolist() if not candidates.may_be_one_patient(first, other)]
        for first, row in enumerate(candidates.alike)
    ]
    typical = [candidates.alike[first, others[first][:N_IMAGES]].sum() for first in range(n)]
    taken: set[int] = set()
    for first in np.argsort(-np.array(typical), kind="stable").tolist():
        if first in taken:
            continue
        members = [first]
        for other in others[first]:
            if other == first or other in taken or len(members) == N_IMAGES:
                continue
            if not any(candidates.may_be_one_patient(member, other) for member in members):
                members.append(other)
        if len(members) == N_IMAGES:
            taken |= set(members)
            yield members


def _average(data: FederationData, candidates: _Candidates, members: Sequence[int]) -> bytes:
    """A PNG of at most SIDE_PX: the mean of the members, each shifted onto the first, with one image's grey levels.

    Averaging flattens contrast; so each pixel keeps its rank and takes the members' mean value at that rank. Bars that
    make a member square, and what a shift brings in from the other side, are no part of it.
    """
    colour = data.federation.model.colour
    stack, shown, moved = [], [], []
    for member in members:
        image = read_image(data.root / candidates.images[member].path, colour=colour)
        shown.append([SIDE_PX * length // max(image.shape[:2]) for length in image.shape[:2]])
        pixels = fit(image, SIDE_PX)
        down, right = candidates.shift[members[0], member] * SIDE_PX // GREY_PX
        moved.append((int(down), int(right)))
        stack.append(np.roll(pixels, moved[-1], axis=(0, 1)).astype(np.float64))
    bars = (SIDE_PX - np.min(shown, axis=0)) // 2
    top, left = bars + np.max(moved, axis=0).clip(min=0)
    bottom, right = SIDE_PX - bars + np.min(moved, axis=0).clip(max=0)
    images = np.stack(stack)[:, top:bottom, left:right]
    mean = images.mean(axis=0)
    result = np.empty(mean.shape)
    for channel in range(mean.shape[2]):
        levels = np.sort(images[..., channel].reshape(len(images), -1), axis=1).mean(axis=0)
        ranks = np.argsort(mean[..., channel], axis=None, kind="stable")
        result[..., channel].flat[ranks] = levels
    picture = np.round(result).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(picture if colour else picture[..., 0]).save(content, "PNG", optimize=True)
    return content.getvalue()
