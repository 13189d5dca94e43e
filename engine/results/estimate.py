"""What a training will cost, before it begins: bytes and memory that follow from its settings, time as it was measured.

Nothing is guessed: a model that no earlier run has timed on such a machine has no time.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.rounds import RoundLine, read_rounds, summaries
from engine.results.run_folder import Run, list_runs

MACHINE = ("platform", "cpu_cores", "threads", "cuda_device", "training_precision")  # of environment.json


class Traffic(BaseModel):
    """As in `communication.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes_down: int
    bytes_up: int
    rounds: int


class Estimate(BaseModel):
    """`hospitals` are those of the federated arm; `memory_bytes` says by name what it counts. `seconds` are those of
    all rounds, None where a model of `not_timed` has no run in `timed_by` (model -> run)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    n_training_images: int
    hospitals: dict[str, Traffic]
    memory_bytes: dict[str, int]
    seconds: float | None
    timed_by: dict[str, str]
    not_timed: tuple[str, ...]


class Timing(NamedTuple):
    """What one run measured of one model: medians over its rounds."""

    run: str
    seconds_per_image: float  # of one local epoch
    seconds_beside: float  # of a round, beside local training: validation, aggregation, checkpoint

    def seconds(self, images_by_round: Sequence[int]) -> float:
        """Of rounds that train on so many images each, local epochs counted."""
        return self.seconds_per_image * sum(images_by_round) + self.seconds_beside * len(images_by_round)


def find_timings(
    artifacts: Path, federation: Federation, environment: Mapping[str, Any], models: Collection[str]
) -> dict[str, Timing]:
    """By model the newest timing of the same work on a machine that calls itself the same. A run that cannot be read
    has none; one that was stopped has."""
    found: dict[str, Timing] = {}
    for run in reversed(list_runs(artifacts)):
        if set(models) <= found.keys():
            break
        try:
            if _work(run.federation) != _work(federation) or not _same_machine(run, environment):
                continue
            lines = read_rounds(run.folder / "rounds.jsonl")
        except ConsiliumError:
            continue
        for model in models:
            timing = None if model in found else _timing(run.name, lines, model)
            if timing is not None:
                found[model] = timing
    return found


def _timing(run: str, lines: Sequence[RoundLine], model: str) -> Timing | None:
    """None where the run has no whole round of the model."""
    per_image, beside = [], []
    for whole in summaries(lines, model):
        fits = [line.fit for line in lines if line.model == model and line.round == whole.round and line.fit]
        n_images = sum(fit.n_images * len(fit.epochs) for fit in fits)  # the line that sums up has no epochs
        if whole.fit is None or whole.seconds is None or not n_images:
            continue
        per_image.append(whole.fit.seconds / n_images)
        beside.append(whole.seconds - whole.fit.seconds)
    return Timing(run, median(per_image), median(beside)) if per_image else None


def _work(federation: Federation) -> dict[str, Any]:
    """All that the time per image follows from, but the machine. Strategies and compression cost little beside it."""
    return {
        "federation": (federation.name, federation.data),
        "model": federation.model.model_dump(exclude={"weights", "dropout"}),
        "batch": (federation.training.batch_size, federation.training.augment, federation.training.views),
        "pretext": (federation.pretext, federation.objectives),
        "private": federation.privacy is not None,  # gradients of single images are another work
    }


def _same_machine(run: Run, environment: Mapping[str, Any]) -> bool:
    theirs = run.read_json("environment.json")
    return isinstance(theirs, dict) and all(theirs.get(key) == environment.get(key) for key in MACHINE)
