"""The registry of published models: `models/NAME/vN/`, each written once; `current.json` names the served version.

An exact version is loaded and checked against its hashes; nothing is ever "the latest by guess".
"""

import os
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.config import Federation
from engine.errors import ModelError
from engine.results.files import read_json, read_model, sha256_of, write_json
from engine.results.run_folder import FileEntry

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
VERSION = re.compile(r"v([1-9]\d*)")
REMEDY = "restore the version or publish it anew"
Precision = Literal["int8", "fp16", "fp32"]


class PublishedFile(BaseModel):
    """One model of a version: its ONNX file, its precision, and what publishing cost it on validation images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    precision: Precision
    validation_images: int
    accuracy_before: float
    accuracy_after: float
    note: str = ""


class Composite(BaseModel):
    """A picture to try the version with: the aligned average of so many training images of one class; no patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    label: str
    n_images: int
    hospitals: tuple[str, ...]


class VersionManifest(BaseModel):
    """`manifest.json` of a version. `class_counts` are training images by hospital id and class."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    name: str
    version: str
    published_at: str
    run: str
    run_manifest_sha256: str
    federation: Federation
    class_counts: dict[str, dict[str, int]]
    models: dict[str, PublishedFile]
    composites: dict[str, Composite] = {}  # by file name
    files: dict[str, FileEntry]


class Current(BaseModel):
    """`current.json`: which version of a name is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    version: str = Field(pattern=f"^{VERSION.pattern}$")


class PublishedVersion:
    """One published version, read lazily. Raises ModelError with what is wrong and what to do."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "manifest.json").is_file():
            raise ModelError(f"{folder}: no such published version; `python -m engine models` lists them")
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> VersionManifest:
        return read_model(self.folder / "manifest.json", VersionManifest, ModelError, REMEDY)

    @property
    def federation(self) -> Federation:
        return self.manifest.federation

    @property
    def manifest_sha256(self) -> str:
        return sha256_of(self.folder / "manifest.json")

    def verify(self, except_for: Collection[str] = ()) -> None:
        """Raise ModelError at the first file that is missing or not as it was published."""
        if (self.manifest.name, self.manifest.version) != (self.name, self.version):
            was = f"{self.manifest.name}@{self.manifest.version}"
            raise ModelError(f"{self.folder}: holds {was}, copied or renamed; publish versions, do not move them")
        unknown = {path.name for path in self.folder.iterdir()} - {"manifest.json", *self.manifest.files, *except_for}
        if unknown:
            raise ModelError(f"{self.folder / min(unknown)}: is no part of this version; take it away")
        for name, entry in self.manifest.files.items():
            if name in except_for:
                continue
            path = self.folder / name
            if not path.is_file():
                raise ModelError(f"{path}: is missing; {REMEDY}")
            if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
                raise ModelError(f"{path}: is not as it was published; {REMEDY}")

    def read_json(self, name: str) -> Any:
        try:
            return read_json(self.folder / name)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.folder / name}: cannot be read ({error}); publish the run anew") from None


def models_folder(given: Path | None = None) -> Path:
    """--models, else $CONSILIUM_MODELS, else models/."""
    return given or Path(os.environ.get("CONSILIUM_MODELS") or "models")


def published_names(models: Path) -> list[str]:
    """Names with a served version."""
    if not models.is_dir():
        return []
    return sorted(path.parent.name for path in models.glob("*/current.json") if NAME.fullmatch(path.parent.name))


def list_versions(models: Path, name: str) -> list[PublishedVersion]:
    """Every complete version of a name, oldest first."""
    folder = models / name
    found = [path for path in folder.glob("v*/") if VERSION.fullmatch(path.name) and (path / "manifest.json").is_file()]
    return [PublishedVersion(path) for path in sorted(found, key=lambda path: int(path.name.removeprefix("v")))]


def current_version(models: Path, name: str) -> PublishedVersion:
    """The version that `current.json` names."""
    if not NAME.fullmatch(name):
        raise ModelError(f"'{name}' is no model name; use lower-case letters, digits and '-'")
    path = models / name / "current.json"
    if not path.is_file():
        known = ", ".join(published_names(models)) or "none yet"
        raise ModelError(f"no published model '{name}' in {models} (there: {known}); make one with publish RUN {name}")
    version = read_model(path, Current, ModelError, f"set the served version with rollback {name} VERSION").version
    return exact_version(models, name, version)


def exact_version(models: Path, name: str, version: str) -> PublishedVersion:
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise ModelError(f"'{name}@{version}' is no published version; write it as NAME@v1")
    return PublishedVersion(models / name / version)


def find_source(models: Path, source: str) -> PublishedVersion:
    """NAME (the served version) or NAME@vN."""
    name, at, version = source.partition("@")
    return exact_version(models, name, version) if at else current_version(models, name)


def set_current(models: Path, version: PublishedVersion) -> None:
    """Serve this version from now on; it is verified first."""
    version.verify()
    write_json(models / version.name / "current.json", Current(version=version.version).model_dump())
