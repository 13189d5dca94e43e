"""`artifacts/probes/`: what a run's encoders are worth with few labels, one file for each share of labels.

The files lie beside the run folders, which are never written again; `run_manifest_sha256` says which run each is of.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.config import Federation
from engine.errors import RunError
from engine.results.files import read_model

ENCODERS = {"random": "Random encoder", "start": "Where the run began"}
METHODS = {"linear": "linear probe", "neighbours": "nearest neighbours", "finetuned": "fine-tuned"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Score(_Part):
    value: float
    low: float
    high: float


class Scores(_Part):
    accuracy: Score
    balanced_accuracy: Score
    macro_f1: Score


class ProbeRow(_Part):
    """One encoder, asked in one way. `l2` is the linear probe's, `best_round` the fine-tuned network's, which was
    trained for `epochs` on the labels."""

    encoder: str
    method: Literal["linear", "neighbours", "finetuned"]
    scores: Scores
    l2: float | None = None
    best_round: int | None = None
    epochs: int | None = None


class RoundRow(ProbeRow):
    """The federated encoder as one round left it."""

    round: int


class Axes(_Part):
    """Test images on the first two principal components of the training images' standardised features; `explained`
    are the shares of the training features' variance along each."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    explained: tuple[float, float]


class Embedding(_Part):
    """Where every encoder puts test images: `labels` and `hospitals` by image, the same images for every encoder."""

    labels: tuple[str, ...]
    hospitals: tuple[str, ...]
    encoders: dict[str, Axes] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_place_an_image(self) -> "Embedding":
        sizes = {len(self.labels), len(self.hospitals), *(len(c) for a in self.encoders.values() for c in (a.x, a.y))}
        if len(sizes) != 1:
            raise ValueError("labels, hospitals and places are not as many")
        return self


class Probe(_Part):
    """One file. `rounds` are empty where the run did not keep its own; probes from before `embedding` have none."""

    schema_version: Literal[1] = 1
    run: str
    run_manifest_sha256: str
    labels: float = Field(gt=0, le=1, description="the share of the training labels that was asked for")
    n_labels: int
    n_groups: int
    n_train: int
    n_validation: int
    n_test: int
    n_test_groups: int
    intervals: str
    rows: tuple[ProbeRow, ...] = Field(min_length=1)
    rounds: tuple[RoundRow, ...] = ()
    embedding: Embedding | None = None


def probe_file(artifacts: Path, run: str, fraction: float, *, finetune: bool) -> Path:
    return artifacts / "probes" / f"{run}-labels-{fraction:g}{'-finetuned' if finetune else ''}.json"


def probe_files(artifacts: Path, run: str) -> Iterator[Path]:
    """Of every run that had this name."""
    yield from sorted((artifacts / "probes").glob(f"{run}-labels-*.json"))


def read_probe(path: Path) -> Probe:
    """Raises RunError where the file is damaged."""
    return read_model(path, Probe, RunError, "this probe is damaged, probe the run again")


def encoder_name(federation: Federation, encoder: str, method: str) -> str:
    if (encoder, method) == ("random", "finetuned"):
        return "None: from scratch"
    return ENCODERS.get(encoder) or federation.model_name(encoder)
