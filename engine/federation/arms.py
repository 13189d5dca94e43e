"""Which models a run trains, whose images train each, and whose validation images choose its round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.config import EXTERNAL
from engine.data.external import ExternalSet
from engine.data.federation_data import FederationData
from engine.data.splits import PARTS, Part, SplitImage
from engine.errors import DataError
from engine.sections import Arm
from engine.training.images import ImageSet, Portion, TrainingSet

POOLED = "pooled"
Shown = Part | Literal["external"]
SHOWN: tuple[Shown, ...] = (*PARTS, EXTERNAL)


@dataclass(frozen=True)
class ModelPlan:
    """One model to train: its key in every artefact, and its trainers and validators by hospital id."""

    arm: Arm
    model: str
    training_sets: Mapping[str, TrainingSet]
    validation_sets: Mapping[str, TrainingSet]

    @property
    def sizes(self) -> dict[str, int]:
        """Training images by trainer."""
        return {trainer: len(images) for trainer, images in self.training_sets.items()}


Sets = Mapping[Shown, Mapping[str, TrainingSet]]  # by part and hospital id; of the external set by "external"


def plan_models(data: FederationData, sets: Sets | None = None) -> list[ModelPlan]:
    """The models of the configured arms, in order; every arm sees the same splits and the same number of epochs.

    `sets` may stand for the images: their features, where the backbone is frozen. A hospital left out trains nothing
    and chooses no round.
    """
    training, validation = (
        {hospital: images for hospital, images in part.items() if hospital != data.federation.left_out}
        for part in (sets[name] if sets else image_sets(data, name) for name in ("train", "validation"))
    )
    for hospital in data.federation.trainers:
        n_images = len(training.get(hospital.id, ()))
        if n_images < 2:
            raise DataError(f"{hospital.name}: has {n_images} training images; training needs at least 2")
    plans = []
    for arm in data.federation.arms:
        if arm == "federated":
            plans.append(ModelPlan(arm, "global", training, validation))
        elif arm == "central":
            first, *others = training.values()
            pooled = first.join(others)
            plans.append(ModelPlan(arm, "central", {POOLED: pooled}, validation))
        else:
            for name, images in training.items():
                own = {name: validation[name]} if name in validation else {}
                plans.append(ModelPlan(arm, f"local/{name}", {name: images}, own))
    return plans


def image_sets(data: FederationData, part: Shown) -> dict[str, ImageSet]:
    """By hospital id, in the federation's order; a hospital without images in this part has none. Of training images
    those whose labels the federation uses.

    The external test set is no hospital's: it stands alone, under its own name.
    """
    if part == EXTERNAL:
        return {EXTERNAL: _external(data, data.external)} if data.external is not None else {}
    sets = {
        one.id: ImageSet([portion_of(data, one.id, data.images_used(part, one))]) for one in data.federation.hospital
    }
    return {hospital: images for hospital, images in sets.items() if len(images)}


def _external(data: FederationData, external: ExternalSet) -> ImageSet:
    images = external.holding.images
    labels = np.array([data.federation.classes.index(image.label) for image in images], np.int64)
    return ImageSet([Portion(external.holding.pixels, np.arange(len(images)), labels)])


def portion_of(data: FederationData, hospital: str, images: Sequence[SplitImage]) -> Portion:
    """These images of one hospital, in their order."""
    holding = next(holding for holding in data.holdings if holding.hospital.id == hospital)
    row_of = {image.path: row for row, image in enumerate(holding.images)}
    labels = [data.federation.classes.index(split.image.label) for split in images]
    rows = [row_of[split.image.path] for split in images]
    return Portion(holding.pixels, np.array(rows, np.int64), np.array(labels, np.int64))
