"""CIFAR-10's binary batches as PNG. The Python version of the set is pickled, and nothing here unpickles."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from engine.data.catalogue import CIFAR10_CLASSES
from engine.errors import DataError

SIDE_PX = 32
RECORD_BYTES = 1 + 3 * SIDE_PX * SIDE_PX  # one byte of label, then red, green and blue planes


def read_batch(content: bytes, split: str, n_so_far: Counter[str]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Every image of one batch as (SPLIT/CLASS/NNNN.png, PNG).

    `n_so_far` counts each SPLIT/CLASS over the batches of one import. Raises DataError for what is no such batch.
    """
    if not content or len(content) % RECORD_BYTES:
        raise DataError(f"a CIFAR-10 batch of {len(content):,} bytes is no multiple of {RECORD_BYTES:,}: it is damaged")
    for record in np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES):
        if record[0] >= len(CIFAR10_CLASSES):
            raise DataError(f"a CIFAR-10 batch holds the label {record[0]}; it is damaged, or another data set")
        folder = f"{split}/{CIFAR10_CLASSES[record[0]]}"
        pixels = record[1:].reshape(3, SIDE_PX, SIDE_PX).transpose(1, 2, 0)
        picture = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(picture, "PNG")
        yield PurePosixPath(folder, f"{n_so_far[folder]:04d}.png"), picture.getvalue()
        n_so_far[folder] += 1
