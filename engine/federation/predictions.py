"""What every model says about every validation, test and external image: the rows of `predictions.parquet`."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from engine.config import EXTERNAL
from engine.data.federation_data import FederationData
from engine.data.hospitals import LocalImage
from engine.federation.arms import ModelPlan, Sets, Shown
from engine.federation.checkpoint import load_tensors
from engine.federation.training_log import log
from engine.results.run_folder import Run, weights_name
from engine.training.device import explained_out_of_memory
from engine.training.local import predict_logits
from engine.training.networks import Network

PREDICTED: tuple[Shown, ...] = ("validation", "test", EXTERNAL)


def predict_all(
    run: Run, plans: Sequence[ModelPlan], data: FederationData, sets: Sets, network: Network, device: torch.device
) -> pd.DataFrame:
    """Of the weights in the run folder. External images have split and hospital "external".

    Where hospitals keep tensors private no one model is the federated one: "global" reads each hospital's images with
    the hospital's own, and external images not at all.
    """
    everyone = [hospital.id for hospital in data.federation.hospital]
    frames = []

    def predict(model: str, weights_of: str, places: Collection[str]) -> None:
        log.info("%s: predicting validation and test images", weights_of)
        tensors = load_tensors(run.folder / weights_name(weights_of))
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
        for part in PREDICTED:
            for place, images in sets[part].items():
                if place in places:
                    with explained_out_of_memory(data.federation):
                        logits = predict_logits(network, images, device)
                    frames.append(prediction_rows(model, part, _images_of(data, part, place), logits))

    for plan in plans:
        if plan.model == "global" and data.federation.aggregation.keeps_private:
            for hospital in everyone:
                predict("global", f"personal/{hospital}", [hospital])
            for hospital in everyone:
                predict(f"personal/{hospital}", f"personal/{hospital}", [*everyone, EXTERNAL])
        else:
            predict(plan.model, plan.model, [*everyone, EXTERNAL])
    return pd.concat(frames, ignore_index=True)


def _images_of(data: FederationData, part: Shown, place: str) -> list[tuple[LocalImage, str]]:
    """The images of a part at a hospital, or all external ones, with their groups, as `image_sets` orders them."""
    if data.external is not None and part == EXTERNAL:
        groups = data.external.groups()
        return [(image, groups[image.path]) for image in data.external.holding.images]
    mine = [split for split in data.splits if split.part == part and split.image.hospital == place]
    return [(split.image, split.group) for split in mine]


def prediction_rows(
    model: str, part: Shown, dealt: Sequence[tuple[LocalImage, str]], logits: npt.NDArray[np.float32]
) -> pd.DataFrame:
    """Rows of `predictions.parquet`; `dealt` are images with their groups, in the order of `logits`."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "split": part,
                "hospital": image.hospital,
                "group": group,
                "path": image.path,
                "label": image.label,
                "logits": values.astype(np.float32),
            }
            for (image, group), values in zip(dealt, logits, strict=True)
        ]
    )
