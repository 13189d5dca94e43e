"""DP-SGD: a step of which every image's part is bounded, and hidden in noise.

Abadi et al., Deep Learning with Differential Privacy, CCS 2016. Opacus computes, clips and adds.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.training.networks import Network
from engine.training.objectives.objective import Score

Step = Callable[[Tensor, Callable[[Tensor], Score]], tuple[Tensor, Tensor]]  # positions, how they score -> sums
AT_ONCE = 16  # images whose own gradients are in memory together, each as large as the network


@dataclass(frozen=True)
class Noise:
    """How one hospital's steps are made private in one round.

    Every step takes each image with probability `sample_rate`, scales its gradient down to `max_grad_norm`, adds to the
    sum normal noise with standard deviation `multiplier` x `max_grad_norm`, and divides by the expected batch size.
    `seed` must be known to nobody: who knows the noise can take it off again.
    """

    sample_rate: float
    multiplier: float
    max_grad_norm: float
    seed: int


def poisson_batches(n_images: int, n_steps: int, sample_rate: float, generator: torch.Generator) -> list[Tensor]:
    """Positions of each step. Every image is in each of them with the same probability, whatever the others do, as the
    accountant assumes; so batches differ in size, and one may be empty."""
    draws = [torch.rand(n_images, generator=generator) < sample_rate for _ in range(n_steps)]
    return [draw.nonzero().flatten() for draw in draws]


@contextmanager
def private_steps(
    network: Network,
    optimizer: torch.optim.Optimizer,
    noise: Noise,
    expected_batch: float,
    on_gradients: Callable[[], None],
) -> Iterator[Step]:
    """Gives the function that takes one step over the images at some positions, as local.py's plain one does.

    What `on_gradients` changes it changes after the noise, so it cannot undo the bound.
    """
    from opacus import GradSampleModule  # here: it takes seconds to import, and most trainings need it not
    from opacus.optimizers import DPOptimizer

    device = next(network.parameters()).device
    for module in network.modules():  # Opacus sees only layers in training mode, a frozen network's head is in none
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.train()
    plain = [m.register_forward_pre_hook(_plain_layout) for m in network.modules() if isinstance(m, nn.Conv2d)]
    per_image = GradSampleModule(network, loss_reduction="mean")
    private = DPOptimizer(
        optimizer,
        noise_multiplier=noise.multiplier,
        max_grad_norm=noise.max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
        generator=torch.Generator(device).manual_seed(noise.seed),
    )

    def take(positions: Tensor, score: Callable[[Tensor], Score]) -> tuple[Tensor, Tensor]:
        private.zero_grad(set_to_none=True)
        loss_sum, hits_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        for some in positions.split(AT_ONCE) if len(positions) else ():
            loss, hits = score(some)
            loss.backward()
            private.clip_and_accumulate()
            for parameter in private.params:
                parameter.grad_sample = None
            loss_sum += loss.detach() * len(some)
            hits_sum += hits
        for parameter in private.params:
            if parameter.summed_grad is None:  # nobody was drawn: noise alone, or the step would tell
                parameter.summed_grad = torch.zeros_like(parameter)
        private.add_noise()
        for parameter in private.params:
            parameter.grad /= expected_batch
        on_gradients()
        optimizer.step()
        return loss_sum, hits_sum

    try:
        with warnings.catch_warnings():
            # The first layer's input is an image, and nobody asks for its gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield take
    finally:
        per_image.cleanup()
        for hook in plain:
            hook.remove()
        for parameter in private.params:
            del parameter.summed_grad
        for module in network.modules():  # what a forward pass that failed halfway leaves would spoil the next one
            for left in ("activations", "max_batch_len"):
                if hasattr(module, left):
                    delattr(module, left)


def _plain_layout(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Opacus 1.6.0 reads what a convolution saw as if it lay channel by channel; where channels lie last, as they do
    everywhere here, its gradients would be wrong, and nobody told."""
    return tuple(tensor.contiguous() for tensor in inputs)
