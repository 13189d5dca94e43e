"""Which published versions came from which run."""

from collections import defaultdict
from pathlib import Path

from engine.errors import ConsiliumError
from engine.results.files import sha256_of
from engine.results.published import PublishedVersion, current_version, list_versions, published_names
from engine.results.run_folder import Run


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


def is_served(models: Path, version: PublishedVersion) -> bool:
    try:
        return current_version(models, version.name).version == version.version
    except ConsiliumError:
        return False


def label(version: PublishedVersion) -> str:
    return f"{version.name} {version.version}"
