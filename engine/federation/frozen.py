"""Features of every hospital's images, for a federation whose backbone is frozen."""

import torch

from engine.config import Federation
from engine.federation.arms import Sets, Shown
from engine.federation.seeds import derive_seed
from engine.training.device import explained_out_of_memory
from engine.training.features import FeatureSet, compute_features
from engine.training.networks import Network


def cache_features(network: Network, sets: Sets, federation: Federation, device: torch.device) -> Sets:
    """Every image through the backbone once per view; only training images have augmented views."""
    training = federation.training
    cached: dict[Shown, dict[str, FeatureSet]] = {}
    for part, by_hospital in sets.items():
        for hospital, images in by_hospital.items():
            with explained_out_of_memory(federation):
                cached.setdefault(part, {})[hospital] = compute_features(
                    network,
                    images,
                    device,
                    augment=training.augment,
                    views=training.views if part == "train" else 0,
                    seed=derive_seed(training.seed, 0, hospital),
                )
    return {part: cached.get(part, {}) for part in sets}
