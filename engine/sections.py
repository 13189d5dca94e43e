"""The sections of a federation file, each a frozen, validated model. `config.py` puts them together."""

import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Arm = Literal["federated", "local", "central"]
ARMS: tuple[Arm, ...] = ("federated", "local", "central")
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
ObjectiveName = Literal["rotation", "simclr", "simsiam"]
Word = Annotated[str, Field(min_length=1)]


def _stay_inside_root(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError("must be a path inside the federation's data folder, without '..'")
    return path


InsideRoot = Annotated[str, Field(min_length=1), AfterValidator(_stay_inside_root)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Location(Section):
    place: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


class Scanner(Section):
    """How a simulated hospital's scanner changes what it decodes; see `engine.data.scanner`."""

    noise: float = Field(0.0, ge=0, le=0.5, description="standard deviation, of the full range from black to white")
    contrast: float = Field(1.0, gt=0, le=4, description="factor around the image's mean grey")
    blur: float = Field(0.0, ge=0, le=20, description="Gaussian radius in pixels of the decoded image")


class ViewsConfig(Section):
    """How a view of an image is drawn where nobody has labels; 1 (crop), 0 or false switch a change off.

    Nothing here turns an image: rotation's labels would be wrong.
    """

    crop: Share = Field(0.2, description="smallest share of the image's area that a view shows")
    flip: bool = Field(True, description="left and right; before rotation turns the view, so its label stays right")
    jitter: float = Field(0.4, ge=0, lt=1, description="brightness, contrast; in colour saturation too, hue a quarter")
    grayscale: float = Field(0.0, ge=0, le=1, description="share of views without their colour")
    blur: float = Field(0.0, ge=0, le=10, description="largest standard deviation of a Gaussian, in pixels as trained")
    noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation, of black to white")


class Hospital(Section):
    """The owner of one local data set. `aliases` maps its own folder names to the federation's classes.

    `folder` is its own; of a manifest with a hospital column it has `source` instead, its words in that column.
    `objective` and `views` stand for those of [pretext] here; `labelled_fraction` for that of [training].
    """

    id: Identifier
    name: str = Field(min_length=1)
    folder: InsideRoot | None = None
    source: tuple[Word, ...] = ()
    location: Location | None = None
    specialty: str = ""
    aliases: dict[str, str] = {}
    scanner: Scanner | None = None
    objective: ObjectiveName | None = None
    views: ViewsConfig | None = None
    labelled_fraction: Share | None = None


class Columns(Section):
    """A manifest's column names. `patient` ties images together, across hospitals too; `hospital` says whose."""

    image: Word
    label: Word
    patient: Word | None = None
    hospital: Word | None = None


class Source(Section):
    """Images that lie together: a `folder` of class folders, or a CSV `manifest` of files below `images`.

    `archive` is a zip or tar in the data folder that holds them; it is unpacked once, into the cache. `subgroups` are
    columns of the manifest by which scores are told apart, each with the edges that cut its numbers into bands; without
    edges its words stand as they are.
    """

    archive: InsideRoot | None = None
    folder: InsideRoot | None = None
    manifest: InsideRoot | None = None
    images: InsideRoot | None = None
    suffix: str = Field("", description="what the manifest's image names lack, e.g. .jpg")
    columns: Columns | None = None
    subgroups: dict[Word, tuple[float, ...]] = {}
    aliases: dict[str, str] = {}

    @model_validator(mode="after")
    def _subgroups_name_nobody(self) -> Self:
        for column, edges in self.subgroups.items():
            if self.columns is not None and column in (self.columns.image, self.columns.patient):
                raise ValueError(f"subgroups: column '{column}' says which image or patient it is; take it away")
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"subgroups: the edges of '{column}' must rise")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.folder is None) == (self.manifest is None):
            raise ValueError("needs either 'folder' (one folder per class) or 'manifest' (a CSV), and not both")
        if self.manifest is None:
            for key in ("images", "suffix", "columns", "subgroups"):
                if getattr(self, key):
                    raise ValueError(f"'{key}' goes with a manifest, not with a folder")
        elif self.images is None or self.columns is None:
            raise ValueError(f"a manifest also needs '{'images' if self.images is None else 'columns'}'")
        return self


class Partition(Section):
    """How a pooled source is dealt to the hospitals; see `engine.data.partition`.

    `alpha` is the Dirichlet's concentration: small is uneven. `quotas` are parts by hospital id and class: of a class
    that north holds 3 parts of and south 1, north gets three quarters; a class that is not named has no part.
    """

    method: Literal["iid", "dirichlet", "quotas", "quantity"]
    alpha: float | None = Field(None, gt=0, le=1e6)
    quotas: dict[str, dict[str, Weight]] = {}
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _settings_fit_method(self) -> Self:
        for key, methods in (("alpha", ("dirichlet", "quantity")), ("quotas", ("quotas",))):
            given = bool(getattr(self, key))
            if given != (self.method in methods):
                raise ValueError(f"method '{self.method}' {'has no' if given else 'needs'} '{key}'")
        return self


class External(Section):
    """A test set from elsewhere, one folder per class: reported apart, never trained on, never used for choosing."""

    name: Word
    folder: InsideRoot


class SplitConfig(Section):
    """Fractions of each hospital's images; `patient_pattern` is a regex whose first group names the patient."""

    train: Fraction = 0.70
    validation: Fraction = 0.15
    test: Fraction = 0.15
    seed: int = Field(0, ge=0)
    patient_pattern: str | None = None

    @field_validator("patient_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"needs exactly one group, the patient; it has {groups}")
        return pattern

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        if not math.isclose(self.train + self.validation + self.test, 1.0, abs_tol=1e-6):
            raise ValueError("train + validation + test must be 1")
        return self


SEES_PX = {"compact-cnn": 46, "patch-cnn": 46}  # side of what one cell of the last map sees; of others about all


class ModelConfig(Section):
    """`weights`: "none" (from scratch), "imagenet" (a download or a package), "run-NNN" (the encoder of that run's
    federated model), or a .safetensors/.pth file. `freeze_backbone` trains the head alone, on features computed once.
    `norm` = "group" puts GroupNorm (Wu & He, ECCV 2018) in the place of every BatchNorm: it looks at one image alone.
    """

    architecture: Literal["resnet18", "resnet50", "efficientnet-lite0", "compact-cnn", "patch-cnn"] = "resnet18"
    weights: str = "none"
    freeze_backbone: bool = False
    norm: Literal["batch", "group"] = "batch"
    image_size_px: int = Field(128, ge=32, le=1024)
    colour: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.freeze_backbone and self.weights == "none":
            raise ValueError("freeze_backbone needs weights: a frozen random backbone learns nothing")
        if self.architecture in ("compact-cnn", "patch-cnn") and self.weights == "imagenet":
            raise ValueError("weights = 'imagenet' exist for resnet18, resnet50 and efficientnet-lite0 only")
        if self.norm == "group" and self.architecture == "compact-cnn":
            raise ValueError("norm = 'group' stands in for BatchNorm, and compact-cnn has none; take it away")
        if self.norm == "group" and self.freeze_backbone and self.weights == "imagenet":
            raise ValueError("norm = 'group' does not fit a frozen backbone that ImageNet trained with BatchNorm")
        return self

    @property
    def has_batch_norm(self) -> bool:
        return self.norm == "batch" and self.architecture != "compact-cnn"


class AugmentConfig(Section):
    """Random changes to training images, drawn anew for each image. Zero or false switches one off."""

    flip: bool = True
    rotation_degrees: float = Field(10.0, ge=0, le=180)
    shift: float = Field(0.05, ge=0, le=0.5, description="of the image side")
    scale: float = Field(0.1, ge=0, lt=1)
    intensity: float = Field(0.1, ge=0, lt=1, description="brightness and contrast, relative")
    blur: float = Field(0.0, ge=0, le=10, description="largest standard deviation of a Gaussian, in pixels as trained")
    noise: float = Field(0.0, ge=0, le=1, description="largest standard deviation, of black to white")


class TrainingConfig(Section):
    rounds: int = Field(20, ge=1)
    local_epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["auto", "float32"] = Field("auto", description="auto: bf16 where the machine multiplies it")
    hospital_fraction: float = Field(1.0, gt=0, le=1)
    min_hospitals: int = Field(1, ge=1)
    labelled_fraction: Share = Field(1.0, description="of each hospital's training images; the others stay unused")
    keep_rounds: bool = False
    views: int = Field(
        0, ge=0, le=1000, description="frozen backbone: augmented views of each image to cache; 0: the plain image"
    )
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0, description="0 leaves torch's own choice")
    augment: AugmentConfig = AugmentConfig()

    def hospitals_per_round(self, n_hospitals: int) -> int:
        """How many of `n_hospitals` a round asks: hospital_fraction of them, at least min_hospitals."""
        return min(n_hospitals, max(1, self.min_hospitals, round(self.hospital_fraction * n_hospitals)))
