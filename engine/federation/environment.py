"""`environment.json`: what a run was trained with, so that someone else can do it again."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine import __version__

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "pillow", "pydicom", "safetensors", "pydantic")


def describe_environment() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "consilium": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this program's own checkout, "-dirty" where files differ from it; None without git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
