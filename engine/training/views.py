"""Views of images for learning without labels, drawn anew for each image and for a whole batch at once."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from engine.sections import ViewsConfig
from engine.training.augment import blur_each, grain_each
from engine.training.images import TrainingSet

LOG_RATIO = math.log(4 / 3)  # a crop's width to height lies between 3:4 and 4:3
GREY = (0.299, 0.587, 0.114)  # what red, green and blue add to brightness (ITU-R BT.601)


def draw_pairs(
    images: TrainingSet, positions: Tensor, device: torch.device, config: ViewsConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Two views of each of n images (2 n, channels, side, side): all first ones, then all second; and the position
    of each one's partner (2 n,)."""
    pixels, _ = images.batch(positions, device)
    pairs = draw_views(torch.cat([pixels, pixels]), config, generator)
    return pairs, torch.arange(len(pairs), device=device).roll(len(pixels))


def picture_squares(images: Tensor) -> Tensor:
    """The largest square in the middle of each picture, without the black that pads it (n, 3): its middle's x and y and
    half its side, where -1 and 1 are the edges of the image. An image that is black all over is its own square.

    One pixel at each edge is left out, so that resizing mixes no padding in.
    """
    side = images.shape[-1]
    bright = images.amax(1) > 0
    ends = []
    for lines in (bright.any(1), bright.any(2)):  # columns, then rows, (n, side)
        some = lines.any(1)
        first, last = lines.int().argmax(1), side - 1 - lines.flip(1).int().argmax(1)
        ends.append((torch.where(some, first, 0), torch.where(some, last, side - 1)))
    (left, right), (top, bottom) = ends
    half = torch.minimum(right - left, bottom - top).sub(1).clamp(min=1) / side
    return torch.stack([(left + right + 1) / side - 1, (top + bottom + 1) / side - 1, half], dim=1)


def draw_views(
    images: Tensor, config: ViewsConfig, generator: torch.Generator, squares: Tensor | None = None
) -> Tensor:
    """One view of each of floats in 0..1 (n, 1 or 3, side, side): crop and flip, jitter, grayscale, blur, noise.

    `generator` lives on the CPU, so that every device draws the same. Colour changes only where there is colour.
    `squares` (of `picture_squares`) stand for whole images: a view shows a part of them alone.
    """
    n, channels = images.shape[:2]
    per_image = (n, 1, 1, 1)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    if config.crop < 1 or config.flip or squares is not None:
        images = _crop(images, config, uniform(config.crop, 1), uniform(-LOG_RATIO, LOG_RATIO),
                       uniform(-1, 1), uniform(-1, 1), uniform(0, 1), squares)  # fmt: skip
    if config.jitter:
        j = config.jitter
        brightness, contrast = (uniform(1 - j, 1 + j).to(images.device).view(per_image) for _ in range(2))
        images = images * brightness
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * contrast + mean
        if channels == 3:
            images = _recolour(images, uniform(1 - j, 1 + j), uniform(-j / 4, j / 4))
        images = images.clamp(0, 1)
    if config.grayscale and channels == 3:
        weights = images.new_tensor(GREY).view(1, 3, 1, 1)
        chosen = (uniform(0, 1) < config.grayscale).to(images.device).view(per_image)
        images = torch.where(chosen, (images * weights).sum(1, keepdim=True), images)
    if config.blur:
        images = blur_each(images, uniform(0, config.blur).to(images.device), config.blur)
    if config.noise:
        images = grain_each(images, config.noise, generator)
    return images.contiguous(memory_format=torch.channels_last)


def _crop(
    images: Tensor,
    config: ViewsConfig,
    area: Tensor,
    log_ratio: Tensor,
    x: Tensor,
    y: Tensor,
    coin: Tensor,
    squares: Tensor | None,
) -> Tensor:
    """A part of each image, resized to the whole side, and flipped where the coin says so; one affine grid for all.

    `area` is the part's share, `x` and `y` place it within what is free, from -1 to 1.
    """
    if config.crop == 1:
        area, log_ratio = torch.ones_like(area), torch.zeros_like(log_ratio)
    width = (area.sqrt() * (log_ratio / 2).exp()).clamp(max=1)
    height = (area.sqrt() * (-log_ratio / 2).exp()).clamp(max=1)
    mirror = torch.where(coin < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(coin)
    zero = torch.zeros_like(area)
    rows = torch.stack([width * mirror, zero, x * (1 - width), zero, height, y * (1 - height)], dim=1).view(-1, 2, 3)
    rows = rows.to(images.device)
    if squares is not None:
        rows = rows * squares[:, 2].view(-1, 1, 1)
        rows[:, :, 2] += squares[:, :2]
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recolour(images: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Colours (n, 3, ...) further from grey or nearer, by a factor each, and turned around it by a share of a circle.

    Both are one 3 x 3 matrix per image: turn and stretch the plane across the grey axis (Rodrigues' formula).
    """
    angle = 2 * math.pi * hue
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    across = torch.cos(angle).view(-1, 1, 1) * (torch.eye(3) - grey) + torch.sin(angle).view(-1, 1, 1) * cross
    matrices = (grey + saturation.view(-1, 1, 1) * across).to(images.device)
    return torch.einsum("nij,njhw->nihw", matrices, images)
