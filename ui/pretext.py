"""Runs that learned without labels: what they are, in words that several pages need."""

import shlex
from pathlib import Path

from engine.config import Federation
from engine.results.run_folder import Run
from engine.results.words import join_words

OBJECTIVES = {"rotation": "rotation", "simclr": "SimCLR", "simsiam": "SimSiam"}
# What "accuracy" of a round means (docs/pretext.md).
SHARES = {
    "rotation": "turns named rightly",
    "simclr": "views whose nearest other view is their partner",
    "simsiam": "predictions whose nearest projection is their own image's",
}


def pretext_sentence(federation: Federation) -> str:
    """What such a federation learned and what that is not; empty where it learned its labels."""
    if federation.pretext is None:
        return ""
    hospitals: dict[str, list[str]] = {}
    for hospital, objective in federation.objectives.items():
        hospitals.setdefault(objective, []).append(federation.display_name(hospital))
    if len(hospitals) == 1:
        tasks = f"by {OBJECTIVES[next(iter(hospitals))]} at every hospital"
    else:
        tasks = "by " + join_words([f"{OBJECTIVES[task]} at {join_words(names)}" for task, names in hospitals.items()])
    return f"An encoder, learned from images alone {tasks}. No label was used, so it has no opinions and no diagnosis."


def probe_command(run: Run) -> str:
    return shlex.join(["python", "-m", "engine", "probe", run.name, "--labels", "0.01,0.1,1", *elsewhere(run)])


def start_command(run: Run) -> str:
    """A supervised training from the encoder: which federation, the reader knows."""
    model = run.federation.model
    given = {"weights": run.name, "architecture": model.architecture, "image_size_px": model.image_size_px}
    changes = [part for key, value in given.items() for part in ("--set", f"model.{key}={value}")]
    return shlex.join(["python", "-m", "engine", "train", "federations/NAME.toml", *changes, *elsewhere(run)])


def elsewhere(run: Run) -> list[str]:
    """Another artifacts folder than the usual one has to be named."""
    return [] if run.folder.parent == Path("artifacts") else ["--artifacts", str(run.folder.parent)]
