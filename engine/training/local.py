"""The one local training loop. A hospital, and the pooled arm too, runs exactly this between two aggregations."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.results.metrics import Floats
from engine.sections import ModelConfig, TrainingConfig
from engine.training.device import autocast, seeded
from engine.training.images import TrainingSet
from engine.training.networks import Network, set_training_mode
from engine.training.objectives import Objective, PretextObjective, Supervised
from engine.training.objectives.objective import Score
from engine.training.private import Noise, Step, poisson_batches, private_steps

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class EpochScore:
    """Means over the training images of one epoch, as they were seen. Without labels `accuracy` is the share that
    the objective says (engine/training/objectives)."""

    loss: float
    accuracy: float
    seconds: float


def train_locally(
    network: Network,
    images: TrainingSet,
    model: ModelConfig,
    training: TrainingConfig,
    *,
    round_number: int,
    seed: int,
    device: torch.device,
    objective: Objective | None = None,
    on_images: Callable[[int], None] = lambda n_images: None,
    on_gradients: Callable[[], None] = lambda: None,
    noise: Noise | None = None,
) -> list[EpochScore]:
    """Train `network` in place for `local_epochs`; the optimiser starts anew each round, in every arm.

    `round_number` counts from 1 and places the epochs on the schedule, which runs across all rounds. `seed` decides
    order, augmentation and dropout. Without an `objective` the network learns the labels. `on_images` hears how many
    images each batch had; `on_gradients` may change the gradients of each batch before the optimiser's step. With
    `noise` every step is private (private.py), and `on_images` hears each step's share of the epoch instead.
    """
    set_training_mode(network, model)
    optimizer = _make_optimizer(network, training)
    objective = objective or Supervised(training, images, network.n_classes, device)
    generator = torch.Generator().manual_seed(seed)
    n_images = len(images)
    scores = []

    def score(epoch: int, positions: Tensor) -> Score:
        pixels, targets = objective.inputs(images, positions, device, generator, epoch)
        with autocast(device, training):
            outputs = network(network.normalise(pixels))
        return objective.score(outputs.float(), targets)

    with seeded(seed), _steps(network, optimizer, training, n_images, on_gradients, noise) as step:
        for epoch in range(training.local_epochs):
            started = time.perf_counter()
            epochs_done = (round_number - 1) * training.local_epochs + epoch
            batches = _batches(n_images, training.batch_size, generator, noise)
            loss_sum = torch.zeros((), device=device)
            correct = torch.zeros((), device=device)
            for number, positions in enumerate(batches):
                done = epochs_done + number / len(batches)
                for group in optimizer.param_groups:
                    group["lr"] = _learning_rate(training, done / (training.rounds * training.local_epochs))
                losses, hits = step(positions, partial(score, epochs_done))
                loss_sum += losses
                correct += hits
                share = n_images * (number + 1) // len(batches) - n_images * number // len(batches)
                on_images(len(positions) if noise is None else share)
            n_seen = max(1, sum(map(len, batches)))
            seconds = time.perf_counter() - started
            scores.append(EpochScore(float(loss_sum) / n_seen, float(correct) / n_seen, seconds))
    return scores


@contextmanager
def _steps(
    network: Network,
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
    n_images: int,
    on_gradients: Callable[[], None],
    noise: Noise | None,
) -> Iterator[Step]:
    """Gives the function that takes one step and returns the sums of loss and hits over its images."""

    def step(positions: Tensor, score: Callable[[Tensor], Score]) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss, hits = score(positions)
        loss.backward()
        on_gradients()
        optimizer.step()
        return loss.detach() * len(positions), hits

    if noise is None:
        yield step
    else:
        expected_batch = min(training.batch_size, n_images)
        with private_steps(network, optimizer, noise, expected_batch, on_gradients) as private_step:
            yield private_step


@torch.inference_mode()
def predict_logits(network: Network, images: TrainingSet, device: torch.device) -> Floats:
    """float32 logits (n, classes) in the set's order, unaugmented, in evaluation mode."""
    network.eval()
    rows = []
    for positions in torch.arange(len(images)).split(EVALUATION_BATCH):
        pixels, _ = images.batch(positions, device)
        rows.append(network(network.normalise(pixels)).float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def score_objective(
    network: Network, images: TrainingSet, objective: PretextObjective, batch_size: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """Mean loss and share over all images, in evaluation mode, in shuffled batches of training's size: a contrastive
    loss counts what it is told apart from. The same seed draws the same batches and views."""
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    loss_sum, hits_sum = 0.0, 0.0
    for positions in _shuffled_batches(len(images), batch_size, generator):
        pixels, targets = objective.inputs(images, positions, device, generator, 0)
        loss, hits = objective.score(network(network.normalise(pixels)).float(), targets)
        loss_sum += float(loss) * len(positions)
        hits_sum += float(hits)
    return loss_sum / len(images), hits_sum / len(images)


def _batches(n_images: int, batch_size: int, generator: torch.Generator, noise: Noise | None) -> list[Tensor]:
    """Positions of each step of an epoch."""
    if noise is None:
        return _shuffled_batches(n_images, batch_size, generator)
    return poisson_batches(n_images, math.ceil(n_images / batch_size), noise.sample_rate, generator)


def _shuffled_batches(n_images: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """A last batch of one image joins the one before it: BatchNorm has no variance over one value."""
    batches = list(torch.randperm(n_images, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _learning_rate(training: TrainingConfig, progress: float) -> float:
    """`progress` runs from 0 to 1 over all epochs of all rounds."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _make_optimizer(network: Network, training: TrainingConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=training.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay)
