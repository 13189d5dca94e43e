"""Images that look alike: the same slice saved twice, or its neighbour.

Perceptual hashes at most 4 bits apart, confirmed by a correlation of at least 0.98 between 64 px greys. Looser rules
chain hundreds of unlike slices into one group.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data.images import Pixels

MAX_BITS = 4
MIN_CORRELATION = 0.98
MAX_SHARE = 0.02  # of all images; a larger group is reported, not merged
BLOCK = 512


def find_look_alikes(greys: Pixels) -> list[list[int]]:
    """Groups (two or more rows each, sorted) of `greys` (n, 64, 64) connected by looking alike, largest first."""
    parent = list(range(len(greys)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in _alike_pairs(greys):
        parent[find(first)] = find(second)
    groups: dict[int, list[int]] = {}
    for index in range(len(greys)):
        groups.setdefault(find(index), []).append(index)
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group[0]))


def too_large(n_group: int, n_images: int) -> bool:
    """A group this large is a look that many patients share, not one patient. A pair never is."""
    return n_group > max(2, MAX_SHARE * n_images)


def _alike_pairs(greys: Pixels) -> Iterator[tuple[int, int]]:
    """Every pair once, found block by block: 100 million pairs need no more memory than a few."""
    hashes = np.array([_hash(grey) for grey in greys], np.uint64)
    flat = greys.reshape(len(greys), greys.shape[1] * greys.shape[2]).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.where(norms > 0, norms, 1)
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK]
        bits = np.bitwise_count(block[:, None] ^ hashes[None, start:])
        rows, columns = np.nonzero(bits <= MAX_BITS)
        later = columns > rows
        first, second = rows[later] + start, columns[later] + start
        alike = _correlations(flat, first, second) >= MIN_CORRELATION
        yield from zip(first[alike].tolist(), second[alike].tolist(), strict=True)


def _correlations(
    flat: npt.NDArray[np.float32], first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    return np.concatenate(
        [np.zeros(0, np.float32)]
        + [
            np.einsum("ij,ij->i", flat[first[i : i + BLOCK]], flat[second[i : i + BLOCK]])
            for i in range(0, len(first), BLOCK)
        ]
    )


def _hash(grey: Pixels) -> int:
    """64-bit perceptual hash (discrete cosine transform)."""
    import imagehash  # here, because the dashboard reads audits and has no need of scipy

    bits = imagehash.phash(Image.fromarray(grey)).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
