"""Random changes to a batch of training images, drawn anew for each image and for a whole batch at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from engine.sections import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Flip, rotate, shift, scale and change the intensity of floats in 0..1 (n, channels, side, side).

    `generator` lives on the CPU, so that every device draws the same.
    """
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = uniform(-1, 1) * math.radians(config.rotation_degrees)
    zoom = 1 / (1 + uniform(-1, 1) * config.scale)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if config.flip else torch.ones(n)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift_x, shift_y = uniform(-2, 2) * config.shift, uniform(-2, 2) * config.shift  # the grid is two units wide
    rows = torch.stack([cosine * mirror, -sine, shift_x, sine * mirror, cosine, shift_y], dim=1).view(n, 2, 3)
    contrast, brightness = 1 + uniform(-1, 1) * config.intensity, uniform(-1, 1) * config.intensity / 2
    if config.flip or config.rotation_degrees or config.shift or config.scale:
        grid = functional.affine_grid(rows.to(images.device), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    if config.intensity:
        per_image = (n, 1, 1, 1)
        images = images * contrast.to(images.device).view(per_image) + brightness.to(images.device).view(per_image)
        images = images.clamp_(0, 1)
    return images
