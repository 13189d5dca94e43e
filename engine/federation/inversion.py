"""Gradient inversion: images back out of the gradient that they gave.

The attacker knows the network and its weights, the labels, and how many images there were, and looks for images whose
gradient points the same way: Geiping, Bauermeister, Droege & Moeller, Inverting Gradients - How easy is it to break
privacy in federated learning?, NeurIPS 2020. The network is in evaluation mode: BatchNorm, where there is one, uses
the statistics that everybody knows and mixes no images, which favours the attacker.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine.training.networks import Network

LEARNING_RATE = 0.1  # of Adam, in units of black to white; the paper's, and its three falls to a tenth
FALLS = (3 / 8, 5 / 8, 7 / 8)
TOTAL_VARIATION = 0.03  # its weight beside the cosine distance

Gradient = list[Tensor]  # one tensor for each parameter that is trained, in the network's order


def gradient_of(network: Network, pixels: Tensor, labels: Tensor, *, to_differentiate: bool = False) -> Gradient:
    """Of the mean cross-entropy of images in 0..1 (n, channels, side, side), as one step of plain SGD sends it."""
    loss = functional.cross_entropy(network(network.normalise(pixels)), labels)
    return list(torch.autograd.grad(loss, _trained(network), create_graph=to_differentiate))


def private_gradient_of(
    network: Network, pixels: Tensor, labels: Tensor, multiplier: float, max_grad_norm: float, seed: int
) -> Gradient:
    """As DP-SGD makes it of these images (engine/training/private.py): every image's own gradient is scaled down to
    `max_grad_norm`, normal noise of `multiplier` x `max_grad_norm` is added to their sum, and that is divided by n."""
    total = [torch.zeros_like(parameter) for parameter in _trained(network)]
    for pixel, label in zip(pixels.split(1), labels.split(1), strict=True):
        own = gradient_of(network, pixel, label)
        shrink = float((max_grad_norm / _flat(own).norm()).clamp(max=1))
        for sum_, part in zip(total, own, strict=True):
            sum_.add_(part, alpha=shrink)
    generator = torch.Generator(pixels.device).manual_seed(seed)
    for sum_ in total:
        noise = torch.randn(sum_.shape, generator=generator, device=sum_.device, dtype=sum_.dtype)
        sum_.add_(noise, alpha=multiplier * max_grad_norm).div_(len(labels))
    return total


def invert(
    network: Network,
    observed: Gradient,
    labels: Tensor,
    shape: Sequence[int],
    *,
    n_steps: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Images in 0..1 (len(labels), *shape) whose gradient is like the observed one: cosine distance and total
    variation, Adam on the sign of their gradient, started from noise. `shape` is channels, side, side."""
    generator = torch.Generator().manual_seed(seed)
    start = (0.5 + 0.25 * torch.randn((len(labels), *shape), generator=generator)).clamp(0, 1)
    guess = start.to(labels.device).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(part * n_steps) for part in FALLS], gamma=0.1)
    target = _flat(observed)
    for _ in range(n_steps):
        mine = _flat(gradient_of(network, guess, labels, to_differentiate=True))
        distance = 1 - functional.cosine_similarity(mine, target, dim=0, eps=1e-12)
        guess.grad = torch.autograd.grad(distance + TOTAL_VARIATION * _total_variation(guess), guess)[0].sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
        on_step()
    return guess.detach()


def _trained(network: Network) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _flat(gradient: Gradient) -> Tensor:
    return torch.cat([part.flatten() for part in gradient])


def _total_variation(pixels: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down and across."""
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean()
    return down + (pixels[..., :, 1:] - pixels[..., :, :-1]).abs().mean()
