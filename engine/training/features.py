"""A frozen backbone runs once per image: its features are kept in memory, and training sees the head alone.

A feature is the last feature map, averaged over its cells: what `classify` gives to dropout and head. With
`training.views` = V each training image has V augmented views, drawn and computed once; local epoch number e of the
whole training takes view e mod V. With 0 there is one view, the plain image.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from engine.sections import AugmentConfig
from engine.training.images import TrainingSet
from engine.training.networks import Network

BATCH = 64


class HeadNetwork(Network):
    """The head of `network`, sharing its layer: features (n, channels) -> logits. Its tensors keep their names."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.n_classes = network.n_classes
        self.head_name = network.head_name
        self.dropout = network.get_submodule("dropout")
        self.add_module(network.head_name, network.get_submodule(network.head_name))

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels

    def feature_map(self, images: Tensor) -> Tensor:
        return images

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self.get_submodule(self.head_name)(self.dropout(feature_map))
        return logits


class FeatureSet:
    """Features (views, n, channels) on their device, and labels (n,): stands where an ImageSet would."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self._features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of the first view, which for validation and test images is the plain one."""
        return self._view(0, positions, device)

    def training_batch(
        self, positions: Tensor, device: torch.device, config: AugmentConfig, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        return self._view(epoch % len(self._features), positions, device)

    def _view(self, view: int, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        features = self._features[view, positions.to(self._features.device)]
        return features.to(device), self.labels[positions].to(device)

    def join(self, others: Sequence[Self]) -> "FeatureSet":
        sets = [self, *others]
        features = torch.cat([one._features for one in sets], dim=1)
        return FeatureSet(features, torch.cat([one.labels for one in sets]))


@torch.no_grad()
def compute_features(
    network: Network,
    images: TrainingSet,
    device: torch.device,
    *,
    augment: AugmentConfig,
    views: int,
    seed: int,
) -> FeatureSet:
    """float32 features of all images. `seed` decides the augmentation; 0 views are the plain image alone."""
    network.eval()
    rows = []
    for view in range(max(views, 1)):
        generator = torch.Generator().manual_seed(seed + view)
        for positions in torch.arange(len(images)).split(BATCH):
            if views:
                pixels, _ = images.training_batch(positions, device, augment, generator, view)
            else:
                pixels, _ = images.batch(positions, device)
            rows.append(network.feature_map(network.normalise(pixels)).float().mean((2, 3)))
    features = torch.cat(rows).view(max(views, 1), len(images), -1)
    return FeatureSet(features, images.labels)
