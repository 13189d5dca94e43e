"""What every model of a run answered on the images of one split, in one order for all: what the views compare."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from engine.errors import RunError
from engine.results.metrics import Floats, Integers, softmax
from engine.results.rounds import ALL
from engine.results.run_folder import Run

IMAGE = ["hospital", "path", "label", "group"]


@dataclass(frozen=True)
class Answers:
    """`images` has the columns of IMAGE, a row per image; `logits` are (images, classes) by model, row by row."""

    classes: tuple[str, ...]
    images: pd.DataFrame
    logits: dict[str, Floats]

    @property
    def labels(self) -> Integers:
        """The place of each image's class among `classes`."""
        places = {label: place for place, label in enumerate(self.classes)}
        return self.images["label"].map(places).to_numpy(np.int64)

    @property
    def groups(self) -> list[str]:
        return list(self.images["group"])

    @property
    def n_groups(self) -> int:
        return int(self.images["group"].nunique())

    def __len__(self) -> int:
        return len(self.images)

    def probabilities(self, model: str) -> npt.NDArray[np.float64]:
        """(images, classes), as trained: before the temperature that publishing fits."""
        return softmax(self.logits[model])

    def chosen(self, mask: npt.NDArray[np.bool_]) -> "Answers":
        """Those on some of the images."""
        logits = {model: rows[mask] for model, rows in self.logits.items()}
        return replace(self, images=self.images[mask].reset_index(drop=True), logits=logits)

    def at(self, hospital: str) -> "Answers":
        """Those on a hospital's images; "all" means every image."""
        return self if hospital == ALL else self.chosen((self.images["hospital"] == hospital).to_numpy())


def read_answers(run: Run, split: str) -> Answers:
    """Sorted by hospital and path. Raises RunError where the run holds no predictions of its own, or damaged ones."""
    if run.config.transport == "flower":
        raise RunError(
            f"{run.name}: was trained over a network, and what its models said of single images stays with the "
            "hospitals; Scores has what they summed up"
        )
    table = run.predictions()
    table = table[table["split"] == split].sort_values(["hospital", "path"])
    images: pd.DataFrame | None = None
    logits: dict[str, Floats] = {}
    for model, rows in table.groupby("model", sort=False):
        mine = rows[IMAGE].reset_index(drop=True)
        images = mine if images is None else images
        if not mine.equals(images):
            raise RunError(f"{run.folder / 'predictions.parquet'}: {model} was asked about other images than the rest")
        logits[str(model)] = np.stack(list(rows["logits"]))
    if images is None:
        images = pd.DataFrame(columns=IMAGE)
    return Answers(run.federation.classes, images, logits)
