"""Features of every hospital's images, for a federation whose backbone is frozen."""

import json

import torch

from engine.config import Federation
from engine.data.federation_data import FederationData
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


class FeatureMemory:
    """The features of the last training, for the next one: in a sweep most see the same images the same way."""

    def __init__(self) -> None:
        self._key = ""
        self._sets: Sets = {}

    def features(self, network: Network, sets: Sets, data: FederationData, device: torch.device) -> Sets:
        """Those of `cache_features`, computed only where anything that they follow from has changed."""
        key = _origin(data)
        if key != self._key:
            self._sets = {}  # before the new ones need their memory
            self._sets = cache_features(network, sets, data.federation, device)
            self._key = key
        return self._sets


def _origin(data: FederationData) -> str:
    """All that features follow from: the images and whose they are, the backbone, and how views are drawn."""
    federation = data.federation
    model = federation.model.model_dump(mode="json", exclude={"dropout"})
    views = [federation.training.augment.model_dump(), federation.training.seed] if federation.training.views else []
    scanners = {one.id: one.scanner.model_dump() for one in federation.hospital if one.scanner is not None}
    labelled = [federation.labelled_fraction(one) for one in federation.hospital]
    parts = [model, federation.training.views, views, scanners, labelled, str(data.root.absolute()), data.splits_json()]
    return json.dumps(parts)
