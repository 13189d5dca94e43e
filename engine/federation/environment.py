"""`environment.json`: what a run was trained with, so that someone else can do it again."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine import __version__
from engine.sections import TrainingConfig
from engine.training.device import choose_device, trains_in_bf16

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "torch", "torchvision", "opacus", "numpy", "pandas", "pyarrow", "pillow", "pydicom", "safetensors", "pydantic",
)  # fmt: skip


def describe_environment(config: TrainingConfig) -> dict[str, Any]:
    """Raises ConfigError where the configured device is not here."""
    device = choose_device(config)
    return {
        "schema_version": 1,
        "consilium": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "training_precision": "bfloat16" if trains_in_bf16(device, config) else "float32",
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
