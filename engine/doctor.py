"""`python -m engine doctor`: what is here, what is missing, what to do. Runs with requirements.txt alone."""

import importlib.util
import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine import __version__
from engine.config import data_root, load_federation
from engine.data.cache import default_cache
from engine.errors import ConsiliumError
from engine.results.published import models_folder, published_names
from engine.results.run_folder import artifacts_folder, list_runs

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("requirements.txt", "requirements-engine.txt")
LITTLE_DISK_BYTES = 2_000_000_000  # a ResNet18 run keeps some 300 MB of weights, and as much again while it trains


@dataclass(frozen=True)
class Check:
    """One line of the report. `remedy` is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    checks = [
        Check("Consilium", __version__),
        Check("Python", platform.python_version(), _python_remedy()),
        Check("Machine", f"{platform.platform()}, {os.cpu_count()} cores"),
        _torch(),
    ]
    checks += [_packages(name) for name in REQUIREMENTS]
    checks += [_federation(path) for path in sorted((PROJECT / "federations").glob("*.toml"))]
    artifacts, models = artifacts_folder(), models_folder()
    checks.append(Check("Runs", f"{len(list_runs(artifacts))} in {artifacts}"))
    checks.append(Check("Published models", f"{', '.join(published_names(models)) or 'none'} in {models}"))
    places = {"artifacts": artifacts, "models": models, "image cache": default_cache()}
    return checks + [_disk(name, folder) for name, folder in places.items()]


def _python_remedy() -> str:
    fits = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) <= (3, 13)
    return "" if fits else "use Python 3.11, 3.12 or 3.13"


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("Training", "torch is not installed", "to train: pip install -r requirements-engine.txt")
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return Check("Training", f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads")


def _packages(requirements: str) -> Check:
    """Whether what the file pins is what is installed."""
    wrong = []
    rows = (PROJECT / requirements).read_text(encoding="utf-8").splitlines()
    for name, pinned in (match.groups() for row in rows if (match := re.match(r"([\w-]+)==(\S+)", row))):
        try:
            installed = version(name).partition("+")[0]  # a build such as 2.13.0+cpu is the pinned version
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if installed != pinned:
            wrong.append(f"{name} {installed} instead of {pinned}")
    if wrong:
        return Check(requirements, "; ".join(wrong), f"pip install -r {requirements}")
    return Check(requirements, "installed as pinned")


def _federation(path: Path) -> Check:
    what = f"federations/{path.name}"
    try:
        federation = load_federation(path)
    except ConsiliumError as error:
        return Check(what, str(error), "mend the file")
    root = data_root(federation)
    if root.is_dir():
        return Check(what, f"images in {root}")
    if federation.phantom_seed is not None:
        return Check(what, f"draws its images into {root}")
    return Check(what, f"no images in {root}", "put them there, give --data DIR, or set CONSILIUM_DATA")


def _disk(name: str, folder: Path) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    remedy = "" if free > LITTLE_DISK_BYTES else "free some disk: a training may not fit"
    found = f"{free / 1e9:,.1f} GB free"
    return Check(f"Disk for {name}", found, remedy if writable else f"{existing} is read-only: name another folder")
