"""Learning from labels."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.sections import TrainingConfig
from engine.training.images import TrainingSet
from engine.training.objectives.objective import Score


class Supervised:
    """Cross entropy over the classes, with the configured augmentation, smoothing and class weights.

    The share is the accuracy.
    """

    def __init__(self, training: TrainingConfig, images: TrainingSet, n_classes: int, device: torch.device) -> None:
        self._training = training
        self._weight = _class_weights(images, training, n_classes, device)

    def inputs(
        self, images: TrainingSet, positions: Tensor, device: torch.device, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        return images.training_batch(positions, device, self._training.augment, generator, epoch)

    def score(self, outputs: Tensor, targets: Tensor) -> Score:
        """Of logits (n, classes) and class indices (n,)."""
        loss = functional.cross_entropy(
            outputs, targets, weight=self._weight, label_smoothing=self._training.label_smoothing
        )
        return Score(loss, (outputs.detach().argmax(1) == targets).sum())


def _class_weights(
    images: TrainingSet, training: TrainingConfig, n_classes: int, device: torch.device
) -> Tensor | None:
    """Inverse frequency over the classes present, mean 1 per image; None when switched off."""
    if training.class_weights == "none":
        return None
    counts = torch.bincount(images.labels, minlength=n_classes).float()
    present = counts > 0
    weights = torch.zeros(n_classes)
    weights[present] = len(images) / (present.sum() * counts[present])
    return weights.to(device)
