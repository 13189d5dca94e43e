"""`artifacts/leakage/run-NNN.json`: what of a run's training images could be told from its models and from one update.

The file lies beside the run folders, which are never written again; `run_manifest_sha256` says which run it is of.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import RunError
from engine.results.files import read_model

VariantName = Literal["plain", "private", "masked"]
VARIANTS: tuple[VariantName, ...] = ("plain", "private", "masked")
MAX_FALSE = 0.01  # the false-positive rate at which a true-positive rate is given
ENOUGH = 100  # images that were not trained on: with fewer, one of them is more than MAX_FALSE


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Score(_Part):
    value: float
    low: float
    high: float


class Membership(_Part):
    """One model, asked by its loss which images of `hospital` (an id, or "all") it was trained on.

    `saw` false is a control: a model that saw neither the members nor the others, so that what its AUC has above 0.5
    is not memory. `tpr` is the share of members found at a false-positive rate of MAX_FALSE; none below ENOUGH others.
    """

    model: str
    hospital: str
    saw: bool
    n_members: int
    n_others: int
    n_groups: int
    loss_members: float
    loss_others: float
    auc: Score
    tpr: Score | None = None


class Rebuilt(_Part):
    """The best likeness of one image among `n_candidates` images: what the attack drew, the mean training image, and as
    many other training images of its class. Structural similarity, and peak signal-to-noise ratio in dB."""

    ssim: float
    psnr: float
    ssim_mean: float
    psnr_mean: float
    ssim_other: float | None
    psnr_other: float | None
    n_candidates: int

    @property
    def beats_guessing(self) -> bool:
        return self.ssim > max(self.ssim_mean, self.ssim_other if self.ssim_other is not None else -1.0)


class Attack(_Part):
    """One variant of the update, attacked at one batch size: `images` are those of the hospital, over `n_updates`. Of
    a masked update the attacker looks for as many images of every other hospital too."""

    variant: VariantName
    batch_size: int
    n_updates: int
    images: tuple[Rebuilt, ...] = Field(min_length=1)

    @property
    def n_better(self) -> int:
        return sum(image.beats_guessing for image in self.images)

    def mean(self, name: str) -> float | None:
        """Of one of the images' figures; None where an image has none."""
        values = [getattr(image, name) for image in self.images]
        return None if None in values else sum(values) / len(values)


class Noise(_Part):
    """Of the variant "private"; `recorded` says whether it is the run's own, from its privacy.json."""

    multiplier: float
    max_grad_norm: float
    recorded: bool


class Inversion(_Part):
    """`side_px` is that of the attacked images, which were scaled down where the run's are larger; `pictures_sha256` is
    of `pictures_file`, of synthetic federations alone: a row of what there was, then one for each attack."""

    hospital: str
    n_hospitals: int
    n_steps: int
    side_px: int
    channels: int
    noise: Noise
    attacks: tuple[Attack, ...] = Field(min_length=1)
    pictures_sha256: str | None = None

    def name(self, variant: VariantName) -> str:
        """What the attacker was given, in words that say what this run did not do."""
        if variant == "masked":
            return f"As if only the sum of {self.n_hospitals} hospitals were seen"
        if variant == "private":
            strength = f"multiplier {self.noise.multiplier:.3g}, norm {self.noise.max_grad_norm:.3g}"
            return f"With this run's noise ({strength})" if self.noise.recorded else f"As if with noise ({strength})"
        return "As if without noise" if self.noise.recorded else "As it is"


class Leakage(_Part):
    """One file. `inversion` is none where it was not tried; `notes` say why, and what else limits the figures."""

    schema_version: Literal[1] = 1
    run: str
    run_manifest_sha256: str
    measured_at: str
    intervals: str
    membership: tuple[Membership, ...]
    inversion: Inversion | None
    notes: tuple[str, ...]


def leakage_file(artifacts: Path, run: str) -> Path:
    return artifacts / "leakage" / f"{run}.json"


def pictures_file(artifacts: Path, run: str) -> Path:
    """What the attack drew; of synthetic federations alone."""
    return leakage_file(artifacts, run).with_suffix(".png")


def read_leakage(path: Path) -> Leakage:
    """Raises RunError where the file is damaged."""
    return read_model(path, Leakage, RunError, "this file is damaged, measure the leakage again")
