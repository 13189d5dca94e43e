"""Which published versions came from which run, and which runs from which."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ConsiliumError
from engine.results.files import sha256_of
from engine.results.published import PublishedVersion, current_version, list_versions, published_names
from engine.results.run_folder import Run, find_run, weights_name
from ui.run_index import RunEntry


def versions_by_run(models: Path) -> tuple[dict[str, list[PublishedVersion]], list[str]]:
    """Readable versions by the name of their run, and a sentence for each that cannot be read."""
    found: dict[str, list[PublishedVersion]] = defaultdict(list)
    problems: list[str] = []
    for name in published_names(models):
        for version in list_versions(models, name):
            try:
                found[version.manifest.run].append(version)
            except ConsiliumError as error:
                problems.append(str(error))
    return dict(found), problems


def came_from(version: PublishedVersion, run: Run) -> bool:
    """By the manifest's hash: run names repeat from folder to folder, hashes do not."""
    try:
        return version.manifest.run_manifest_sha256 == sha256_of(run.folder / "manifest.json")
    except OSError:
        return False


def began_from(run: Run, origin: Run) -> bool:
    """Whether the run started from the other's federated weights; by their hash, for the same reason."""
    try:
        entry = origin.manifest.files[weights_name("global")]
        return run.federation.model.weights == origin.name and run.config.starting_weights_sha256 == entry.sha256
    except (ConsiliumError, KeyError):
        return False


def origin_of(run: Run) -> Run | None:
    """The run that this one started from, where it lies beside it."""
    try:
        origin = find_run(run.folder.parent, run.federation.model.weights)
    except ConsiliumError:
        return None
    return origin if began_from(run, origin) else None


def descendants_of(run: Run, entries: Sequence[RunEntry]) -> list[Run]:
    """Those of the listed runs that started from its federated weights."""
    own = next((entry.best for entry in entries if entry.name == run.name), None)
    return [Run(Path(entry.folder)) for entry in entries if own and entry.weights == run.name and entry.origin == own]


def is_served(models: Path, version: PublishedVersion) -> bool:
    try:
        return current_version(models, version.name).version == version.version
    except ConsiliumError:
        return False


def label(version: PublishedVersion) -> str:
    return f"{version.name} {version.version}"
