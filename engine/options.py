"""What several commands take: their options, and the settings that these change."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from engine.config import PRESETS, preset_overrides
from engine.sections import ARMS

FederationFile = Annotated[Path, typer.Argument(metavar="FEDERATION", help="A federation file, federations/NAME.toml")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Images; default $CONSILIUM_DATA/NAME, else data/NAME")
]
Artifacts = Annotated[
    Path | None,
    typer.Option("--artifacts", metavar="DIR", help="Run folders; default $CONSILIUM_ARTIFACTS or artifacts/"),
]
Models = Annotated[
    Path | None, typer.Option("--models", metavar="DIR", help="Published models; default $CONSILIUM_MODELS or models/")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting")]
Arms = Annotated[str | None, typer.Option(metavar="ARM,ARM", help=f"Some of {','.join(ARMS)}")]
Without = Annotated[
    str | None, typer.Option(metavar="HOSPITAL", help="Leave a hospital out: it trains nothing and is tested on")
]
Preset = Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(PRESETS)}")]


def settings(
    overrides: Sequence[str] | None,
    arms: str | None,
    preset: str | None = None,
    threads: int | None = None,
    without: str | None = None,
) -> list[str]:
    """All of these as `--set` takes them. Raises ConfigError for an unknown preset."""
    changes = [*preset_overrides(preset), *(overrides or [])]
    if threads is not None:
        changes.append(f"training.threads={threads}")
    if without is not None:
        changes.append(f"left_out={json.dumps(without)}")
    if arms is not None:
        changes.append(f"arms={json.dumps([arm.strip() for arm in arms.split(',') if arm.strip()])}")
    return changes
