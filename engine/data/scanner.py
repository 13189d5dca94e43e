"""What a simulated hospital's scanner does to an image: blur, then contrast, then noise, as light would meet them.

A feature shift between hospitals (one label, another look); Kairouz et al., Advances and Open Problems in Federated
Learning, 2021, section 3.1.
"""

import numpy as np
from PIL import Image, ImageFilter

from engine.data.images import Pixels
from engine.sections import Scanner


def apply_scanner(pixels: Pixels, scanner: Scanner | None, sha256: str) -> Pixels:
    """A decoded image (height, width) or (height, width, 3), uint8, as `scanner` shows it; the same shape.

    The noise is seeded by the file's own hash: an image looks the same whenever and wherever it is read.
    """
    if scanner is None or scanner == Scanner():
        return pixels
    image = Image.fromarray(pixels)
    if scanner.blur:
        image = image.filter(ImageFilter.GaussianBlur(scanner.blur))
    values = np.asarray(image, np.float32)
    middle = values.mean()
    values = middle + scanner.contrast * (values - middle)
    if scanner.noise:
        generator = np.random.default_rng(int(sha256[:16], 16))
        noise = generator.standard_normal(values.shape[:2], np.float32)  # one for all channels: a grey image stays grey
        values = values + 255 * scanner.noise * (noise if values.ndim == 2 else noise[:, :, None])
    shown: Pixels = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return shown
