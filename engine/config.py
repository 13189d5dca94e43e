"""The federation file: what one TOML under federations/ may say, validated, frozen, unknown keys refused.

One file names the classes, the hospitals and their folders, how images are split, and how every arm trains.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from engine.aggregation_config import (
    STRATEGIES,
    AggregationConfig,
    CommunicationConfig,
    FedAvgConfig,
    refuse_impossible,
)
from engine.config_text import apply_override, explain
from engine.errors import ConfigError, DataError
from engine.pretext_config import PretextConfig, refuse_impossible_pretext
from engine.privacy_config import PrivacyConfig, refuse_impossible_privacy
from engine.sections import (
    ARMS,
    Arm,
    AugmentConfig,
    Columns,
    External,
    Hospital,
    Identifier,
    Location,
    ModelConfig,
    ObjectiveName,
    Partition,
    Scanner,
    Section,
    Source,
    SplitConfig,
    TrainingConfig,
    ViewsConfig,
)
from engine.secure_aggregation_config import SecureAggregationConfig, refuse_impossible_secure_aggregation

Headline = Literal["macro_f1", "balanced_accuracy", "accuracy"]
PRESETS = {  # --preset NAME: settings that --set may still change
    "low-memory": ("training.batch_size=8", "model.image_size_px=64", "training.threads=1"),
}
EXTERNAL: Literal["external"] = "external"  # stands where a hospital's id stands for images of the external test set
RESERVED = ("all", "pooled", "global", "central", "federated", "local", "personal", EXTERNAL)  # words of the run folder
SECTIONS: tuple[type[Section], ...] = (
    Hospital, Location, Scanner, Source, Columns, Partition, External,
    SplitConfig, ModelConfig, TrainingConfig, AugmentConfig, CommunicationConfig, PretextConfig, ViewsConfig,
    PrivacyConfig, SecureAggregationConfig,
    *STRATEGIES.values(),
)  # fmt: skip


class Federation(Section):
    """One federation file. `data` is the data set's name below $CONSILIUM_DATA or data/."""

    name: str = Field(min_length=1)
    data: Identifier
    classes: tuple[str, ...] = Field(min_length=2)
    positive: str | None = Field(None, description="of two classes the one that must not be missed; default the last")
    intended_input: str = Field(min_length=1)
    simulated: str = ""
    synthetic: str = ""
    licence: str = Field("", description="what the images' licence allows, where a reader must know it")
    headline: Headline = Field("macro_f1", description="the score that pages lead with")
    phantom_seed: int | None = Field(None, ge=0, description="draw the phantom images where no data folder exists")
    source: Source | None = None
    partition: Partition | None = None
    external: External | None = None
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    aggregation: AggregationConfig = FedAvgConfig()
    communication: CommunicationConfig = CommunicationConfig()
    pretext: PretextConfig | None = Field(None, description="learn without labels; docs/pretext.md")
    privacy: PrivacyConfig | None = Field(None, description="train with differential privacy; docs/privacy.md")
    secure_aggregation: SecureAggregationConfig | None = Field(
        None, description="the coordinator sees sums of updates alone; docs/secure-aggregation.md"
    )
    arms: tuple[Arm, ...] = ARMS
    left_out: Identifier | None = Field(None, description="a hospital that trains and chooses nothing, to test on")
    hospital: tuple[Hospital, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_repeats("classes", [normalise(label) for label in self.classes])
        _refuse_repeats("arms", self.arms)
        _refuse_repeats("hospital ids", [h.id for h in self.hospital])
        _refuse_repeats("hospital names", [h.name for h in self.hospital])
        _refuse_repeats("hospital folders", [str(Path(h.folder)) for h in self.hospital if h.folder is not None])
        _refuse_repeats("hospital sources", [value for h in self.hospital for value in h.source])
        for hospital in self.hospital:
            if hospital.id in RESERVED:
                raise ValueError(f"hospital id '{hospital.id}' means something else in a run folder; choose another")
        if not self.arms:
            raise ValueError("arms: name at least one of federated, local, central")
        owners = [(f"hospital {hospital.id}", hospital.aliases) for hospital in self.hospital]
        for owner, aliases in [*owners, ("source", self.source.aliases if self.source else {})]:
            for folder, label in aliases.items():
                if label not in self.classes:
                    raise ValueError(f"{owner}: alias '{folder}' means '{label}', which is not among the classes")
        if self.positive is not None and (len(self.classes) != 2 or self.positive not in self.classes):
            raise ValueError(f"positive: '{self.positive}' must be one of exactly two classes")
        if self.left_out is not None:
            self._check_left_out(self.left_out)
        if self.training.min_hospitals > len(self.trainers):
            raise ValueError(
                f"training.min_hospitals is {self.training.min_hospitals}, but there are {len(self.trainers)} hospitals"
            )
        self._check_origins()
        refuse_impossible(self.aggregation, self.communication, self.training, self.model, len(self.trainers))
        refuse_impossible_pretext(self.pretext, self.aggregation, self.training, self.model, self.hospital)
        refuse_impossible_privacy(self.privacy, self.aggregation, self.training, self.model, self.pretext)
        refuse_impossible_secure_aggregation(
            self.secure_aggregation,
            self.aggregation,
            self.communication,
            self.training,
            self.pretext,
            set(self.objectives.values()),
            len(self.trainers),
        )
        return self

    def _check_left_out(self, left_out: str) -> None:
        ids = [hospital.id for hospital in self.hospital]
        if left_out not in ids:
            raise ValueError(f"left_out: '{left_out}' is no hospital's id; there is {', '.join(ids)}")
        if len(ids) < 3:
            raise ValueError("left_out: without it a federation of two is one hospital alone; name three or more")
        if self.pretext is not None:
            raise ValueError("left_out tests what a model says, and [pretext] learns without labels; take one away")
        if self.aggregation.keeps_private:
            raise ValueError(
                f"left_out: with aggregation.strategy = '{self.aggregation.strategy}' every hospital keeps "
                f"{self.aggregation.keeps_private}, so there is no model for one that never trained"
            )

    def _check_origins(self) -> None:
        """Every hospital's images come from one place: its folder, its rows of a manifest, or a partition."""
        if self.source is None:
            if self.partition is not None:
                raise ValueError("[partition] deals a [source], and there is none; add it or give hospitals folders")
            for hospital in self.hospital:
                if hospital.folder is None:
                    raise ValueError(f"hospital {hospital.id}: needs a 'folder', because there is no [source]")
                if hospital.source:
                    raise ValueError(f"hospital {hospital.id}: 'source' needs a [source] with a hospital column")
        else:
            has_column = self.source.columns is not None and self.source.columns.hospital is not None
            if has_column and self.partition is not None:
                raise ValueError("source.columns.hospital already says whose the images are; take [partition] away")
            if not has_column and self.partition is None:
                raise ValueError("[source] has no hospital column; add a [partition] that deals it to the hospitals")
            for hospital in self.hospital:
                for key in ("folder", "aliases"):
                    if getattr(hospital, key):
                        raise ValueError(f"hospital {hospital.id}: '{key}' belongs to [source], where there is one")
                if has_column and not hospital.source:
                    raise ValueError(f"hospital {hospital.id}: needs 'source', its words in the hospital column")
                if hospital.source and not has_column:
                    raise ValueError(f"hospital {hospital.id}: 'source' needs source.columns.hospital")
        if self.partition is not None and self.partition.quotas:
            self._check_quotas(self.partition.quotas)
        shifted = [hospital.id for hospital in self.hospital if hospital.scanner is not None]
        if (shifted or self.partition is not None) and not self.simulated:
            what = f"hospital {shifted[0]}'s scanner" if shifted else "[partition]"
            raise ValueError(f"{what} makes hospitals that are not real; say so in 'simulated'")

    def _check_quotas(self, quotas: Mapping[str, Mapping[str, float]]) -> None:
        ids = [hospital.id for hospital in self.hospital]
        for hospital in [*quotas, *ids]:
            if hospital not in ids:
                raise ValueError(f"partition.quotas: '{hospital}' is no hospital's id")
            if hospital not in quotas or not any(quotas[hospital].values()):
                raise ValueError(f"partition.quotas: hospital {hospital} has no part of any class; give it one")
            unknown = [label for label in quotas[hospital] if label not in self.classes]
            if unknown:
                raise ValueError(f"partition.quotas.{hospital}: '{unknown[0]}' is not among the classes")
        for label in self.classes:
            if not any(parts.get(label) for parts in quotas.values()):
                raise ValueError(f"partition.quotas: nobody has a part of '{label}', so its images would be lost")

    @property
    def trainers(self) -> tuple[Hospital, ...]:
        """All hospitals but the one left out."""
        return tuple(hospital for hospital in self.hospital if hospital.id != self.left_out)

    @property
    def aliases(self) -> dict[str, str]:
        """Folder names of source and hospitals -> class; a name that two of them use differently is left out."""
        merged: dict[str, str] = {}
        meanings: dict[str, set[str]] = {}
        for aliases in (self.source.aliases if self.source else {}, *(h.aliases for h in self.hospital)):
            merged |= aliases
            for folder, label in aliases.items():
                meanings.setdefault(normalise(folder), set()).add(label)
        return {folder: label for folder, label in merged.items() if len(meanings[normalise(folder)]) == 1}

    @property
    def objectives(self) -> dict[str, ObjectiveName]:
        """What each hospital learns without labels, by its id; empty where the federation learns its labels."""
        if self.pretext is None:
            return {}
        return {hospital.id: hospital.objective or self.pretext.objective for hospital in self.hospital}

    def labelled_fraction(self, hospital: Hospital) -> float:
        """The share of the hospital's training images whose labels are used."""
        return hospital.labelled_fraction or self.training.labelled_fraction

    @property
    def positive_class(self) -> str | None:
        """Of two classes the disease, for sensitivity and specificity; None where there are more classes."""
        return (self.positive or self.classes[-1]) if len(self.classes) == 2 else None

    def model_name(self, model: str) -> str:
        """A model key as people read it: "Federated", the hospital's display name, or "Pooled, for reference".

        Where hospitals keep a part of the network private, "global" is each one's personal model on its own images.
        """
        words = {"global": "Federated", "central": "Pooled, for reference"}
        if model.startswith("personal/"):
            return f"Federated, personal to {self.display_name(model.removeprefix('personal/'))}"
        if model == "global" and self.aggregation.keeps_private:
            return "Federated, each hospital's own"
        return words.get(model) or self.display_name(model.removeprefix("local/"))

    def display_name(self, hospital_id: str) -> str:
        """The name people see; says "(simulated)" wherever the federation is one. The external set has its own."""
        if hospital_id == EXTERNAL and self.external is not None:
            return self.external.name
        name = next((h.name for h in self.hospital if h.id == hospital_id), hospital_id)
        if hospital_id == self.left_out:
            name += ", left out"
        return f"{name} (simulated)" if self.simulated else name

    def origin(self, hospital: Hospital) -> str:
        """Where its images come from, below the data folder: its folder, or the source and its words in it."""
        if self.source is None or hospital.folder is not None:
            return hospital.folder or ""
        place = self.source.folder or self.source.manifest or ""
        return f"{place} ({', '.join(hospital.source)})" if hospital.source else place


def load_federation(path: Path, overrides: Sequence[str] = ()) -> Federation:
    """Read a federation file and apply `--set section.key=value` overrides; a hospital's keys are hospital.ID.key.

    Raises ConfigError with file, line and key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Notepad begins a file with a byte order mark
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a federation file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; a federation file is TOML") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    raw.setdefault("data", re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()).strip("-"))
    changed = dict(apply_override(raw, override) for override in overrides)
    try:
        return Federation.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, path, text, changed, [Federation, *SECTIONS])) from None


def networked(federation: Federation) -> Federation:
    """The federation as it is trained over a network. Raises ConfigError for what cannot be."""
    if federation.partition is not None:
        raise ConfigError("[partition] deals images from one place; hospitals on their own machines hold their own")
    if federation.external is not None:
        raise ConfigError("[external] images lie on one machine; take the section away to train over a network")
    if federation.left_out is not None:
        raise ConfigError("left_out: over a network a hospital is left out by not starting it; take the key away")
    if federation.model.weights not in ("none", "imagenet"):
        raise ConfigError(
            f"model.weights = '{federation.model.weights}': hospitals have not got these weights; over a network a "
            "training starts from 'none' or 'imagenet'"
        )
    arms = tuple(arm for arm in federation.arms if arm != "central")
    if "federated" not in arms:
        raise ConfigError("arms: over a network there is the federated arm, and beside it the local one")
    return federation.model_copy(update={"arms": arms})


def preset_overrides(name: str | None) -> tuple[str, ...]:
    """The settings that a preset stands for."""
    if name is None:
        return ()
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: there is no such preset; there is {', '.join(PRESETS)}")
    return PRESETS[name]


def data_root(federation: Federation, data: Path | None = None) -> Path:
    """Where the federation's images lie: --data, else $CONSILIUM_DATA/NAME, else data/NAME.

    A federation that draws its own phantoms falls through to data/NAME where $CONSILIUM_DATA has none.
    """
    if data is not None:
        return data
    environment = os.environ.get("CONSILIUM_DATA")
    if environment and (federation.phantom_seed is None or (Path(environment) / federation.data).is_dir()):
        return Path(environment) / federation.data
    return Path("data") / federation.data


def require_data_root(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder; give --data DIR or set CONSILIUM_DATA to the folder above it")
    return root


def normalise(name: str) -> str:
    """A folder's or class's name as it is compared: without case, spaces, '_' and '-'."""
    return "".join(character for character in name.casefold() if character not in " _-")


def _refuse_repeats(what: str, values: Sequence[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what}: '{repeated[0]}' stands twice")
