"""A run of another system as a run folder: `imported.json` holds what its file says, and there is nothing else.

Such a run has no configuration, splits, predictions or weights, and none are made up: what asks for them says so.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from engine.errors import RunError
from engine.results.files import read_model, sha256_of, write_json
from engine.results.flower_result import read_flower_json, read_flower_log
from engine.results.foreign import Curves, Reading, parse_json, require_label
from engine.results.nvflare_result import read_cross_site
from engine.results.run_folder import IMPORTED, FileEntry, Run, RunManifest, create_run, now

MAX_BYTES = 8_000_000
MAX_FIGURES = 100_000


class Imported(BaseModel):
    """`imported.json`. `curves` are means over hospitals, {"train" | "evaluate" | "server": {metric: ((round, value),
    ...)}}; `cross_site` is {hospital whose images: {model: {metric: value}}}. `left_out` says what was no figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    system: Literal["Flower", "NVFlare"]
    form: str
    file: str
    bytes: int
    sha256: str
    imported_at: str
    curves: dict[str, dict[str, tuple[tuple[int, FiniteFloat], ...]]] = {}
    cross_site: dict[str, dict[str, dict[str, FiniteFloat]]] = {}
    left_out: tuple[str, ...] = ()

    @property
    def rounds(self) -> int:
        """The last round that has a figure; 0 where the file tells of no rounds."""
        return _last_round(self.curves)


def import_run(file: Path, artifacts: Path, name: str | None = None) -> Run:
    """Write what the file says as the next run of `artifacts`; `name` stands where a federation's name stands.

    Raises RunError, one line, for a file that is no such result or holds what no figure can be.
    """
    imported = read_result(file)
    title = f"{file.stem} ({imported.system})" if name is None else name
    require_label(title, "--name" if name is not None else f"the name of {file}")
    folder = create_run(artifacts)
    try:
        write_json(folder / IMPORTED, imported.model_dump(mode="json"))
        path = folder / IMPORTED
        manifest = RunManifest(
            run=folder.name,
            federation=title,
            arms=(),
            started_at="",  # the file does not say
            finished_at=imported.imported_at,
            files={IMPORTED: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)},
        )
        write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Run(folder)


def read_imported(run: Run) -> Imported:
    """Raises RunError where it is damaged."""
    remedy = "the run folder is damaged, restore it or import the file again"
    return read_model(run.folder / IMPORTED, Imported, RunError, remedy)


def read_result(file: Path) -> Imported:
    """A Flower `Result` or `History` (JSON, or the console log), or NVFlare's cross_val_results.json; told apart by
    what is in it. Raises RunError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RunError(f"{file}: is larger than {MAX_BYTES / 1e6:.0f} MB, which no such result is")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RunError(f"{file}: {error.strerror or error}; give a file of Flower's or NVFlare's") from None
    except UnicodeDecodeError:
        raise RunError(f"{file}: is not UTF-8 text; give a JSON file or a log") from None
    try:
        reading = _read(text)
    except RunError as error:
        raise RunError(f"{file}: {error}") from None
    n_figures = sum(len(points) for metrics in reading.curves.values() for points in metrics.values())
    n_figures += sum(len(metrics) for models in reading.cross_site.values() for metrics in models.values())
    if not n_figures:
        raise RunError(f"{file}: is {reading.form} without a single figure, so there is nothing to import")
    if n_figures > MAX_FIGURES:
        raise RunError(f"{file}: holds {n_figures:,} figures; more than {MAX_FIGURES:,} are not taken")
    return Imported(
        system=reading.system,
        form=reading.form,
        file=file.name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        imported_at=now(),
        curves=reading.curves,
        cross_site=reading.cross_site,
        left_out=reading.left_out,
    )


def _read(text: str) -> Reading:
    if not text.lstrip().startswith(("{", "[")):
        return read_flower_log(text)
    content = parse_json(text)
    return read_flower_json(content) or read_cross_site(content)


def _last_round(curves: Mapping[str, Mapping[str, Curves]]) -> int:
    return max((point[0] for metrics in curves.values() for points in metrics.values() for point in points), default=0)
