"""A sweep: runs that bear one name. What makes two of them the same grid point, or share their reference arms."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import Federation
from engine.errors import ConfigError, RunError
from engine.results.run_folder import Run, list_runs

SWEEP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
SEED = "training.seed"
STRATEGY = ("aggregation", "communication", "secure_aggregation")  # what the local and the pooled arm never see


def sweep_runs(artifacts: Path, name: str) -> list[Run]:
    """The runs of a sweep, unfinished ones too, oldest first; none where nothing bears the name.

    Raises RunError where a run's config.json is damaged.
    """
    if not SWEEP_NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name of a sweep: small letters, digits, '-', '_' and '.'")
    begun = [run for run in list_runs(artifacts) if (run.folder / "config.json").is_file()]
    return [run for run in begun if run.config.sweep == name]


def require_one_federation(name: str, runs: Sequence[Run], federation: Federation | None = None) -> None:
    """Raise RunError where the runs of a sweep are of several federations, or of another than the given one."""
    first = federation or runs[0].federation
    for run in runs:
        other = run.federation
        if (other.name, other.data, other.classes) != (first.name, first.data, first.classes):
            raise RunError(
                f"sweep {name}: {run.name} is of '{other.name}' ({other.data}), not of '{first.name}' ({first.data}); "
                "give each federation a sweep of its own, with --name"
            )


def point_key(federation: Federation) -> str:
    """The same for runs that differ in nothing but their seed."""
    return _key(federation, SEED)


def run_key(federation: Federation) -> str:
    """The same for runs that differ in nothing but which arms they train."""
    return _key(federation)


def reference_key(federation: Federation) -> str:
    """The same for runs whose local and pooled arms are the same training."""
    return _key(federation, *STRATEGY)


def data_key(federation: Federation) -> str:
    """The same for runs on the same images, dealt and split alike."""
    return _key(federation, *STRATEGY, "training", "privacy")


def images_key(federation: Federation) -> str:
    """The same for runs tested on the same images, dealt and split alike, whatever learns from them."""
    return _key(federation, *STRATEGY, "training", "privacy", "model")


def setting_of(federation: Federation, key: str) -> str:
    """The value of a dotted key as people read it; "" where these settings have no such key."""
    value: Any = federation.model_dump(mode="json")
    value["hospital"] = {one["id"]: one for one in value["hospital"]}  # hospital.ID.key
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    if isinstance(value, dict):  # a whole section, given as {method = "iid"}
        return ", ".join(f"{name}={one}" for name, one in value.items() if one not in (None, {}))
    return value if isinstance(value, str) else json.dumps(value)


def _key(federation: Federation, *without: str) -> str:
    """Threads change how long a training takes, not what it is."""
    settings = federation.model_dump(mode="json")
    for dotted in ("arms", "training.threads", *without):
        section, _, key = dotted.partition(".")
        if key:
            settings.get(section, {}).pop(key, None)
        else:
            settings.pop(section, None)
    return json.dumps(settings, sort_keys=True)
