"""Random changes to a batch of training images, drawn anew for each image and for a whole batch at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from engine.sections import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Flip, rotate, shift, scale, change the intensity, blur and add noise to floats in 0..1 (n, channels, side, side).

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
    if config.blur:
        images = blur_each(images, uniform(0, config.blur).to(images.device), config.blur)
    if config.noise:
        images = grain_each(images, config.noise, generator)
    return images


def grain_each(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on each of floats in 0..1 (n, channels, height, width), of its own deviation up to `largest`."""
    n = len(images)
    grain = torch.randn((n, 1, *images.shape[2:]), generator=generator).to(images.device)  # grey images stay grey
    deviations = torch.empty(n).uniform_(0, largest, generator=generator).to(images.device)
    return (images + deviations.view(n, 1, 1, 1) * grain).clamp(0, 1)


def blur_each(images: Tensor, sigmas: Tensor, largest: float) -> Tensor:
    """Each image (n, channels, height, width) by a Gaussian of its own standard deviation (n,), rows then columns."""
    n, channels, height, width = images.shape
    radius = min(math.ceil(3 * largest), height - 1, width - 1)
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-(places**2) / (2 * sigmas.clamp(min=1e-3) ** 2)[:, None], dim=1)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]
    flat = images.reshape(1, n * channels, height, width)
    for kernel, pad in ((kernels[:, :, None], (radius, radius, 0, 0)), (kernels[..., None], (0, 0, radius, radius))):
        flat = functional.conv2d(functional.pad(flat, pad, mode="reflect"), kernel, groups=n * channels)
    return flat.view(n, channels, height, width).contiguous(memory_format=torch.channels_last)
