"""`rounds.jsonl`: one line per arm, round and hospital, appended while a run is trained, and what follows from them.

The line with hospital "all" sums a round up. It is the one that best rounds are chosen by.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import RunError
from engine.results.files import cannot_write, write_text

ALL = "all"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Epoch(_Line):
    loss: float
    accuracy: float
    seconds: float


class Fit(_Line):
    """Local training of one hospital in one round. `loss` and `accuracy` are those of the last local epoch, over
    augmented images as seen; in the "all" line they are means weighted by n_images.

    `epsilon` is what the hospital has spent of its images' privacy from the first round to this one, with the delta of
    the configuration; in the "all" line the most that any has. None where it trains without noise."""

    n_images: int
    loss: float
    accuracy: float
    epochs: tuple[Epoch, ...]
    seconds: float
    bytes_down: int
    bytes_up: int
    epsilon: float | None = None


class Validation(_Line):
    """The round's model on validation images. `confusion_matrix` counts (true class, predicted class).

    Where hospitals learn without labels there is none, and no macro-F1; loss and accuracy are those of their
    objectives (engine/training/objectives), and in the "all" line means over unlike scales, comparable over rounds.
    `bytes_down` are tensors sent for the validation alone: none in one process, whose hospitals have got them anyway.
    """

    n_images: int
    loss: float
    accuracy: float
    macro_f1: float | None = None
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    bytes_down: int = 0


class RoundLine(_Line):
    schema_version: Literal[1] = 1
    arm: Literal["federated", "local", "central"]
    model: str
    round: int
    hospital: str
    fit: Fit | None = None
    validation: Validation | None = None
    failure: str | None = None
    seconds: float | None = None
    is_best_so_far: bool = False


def read_rounds(path: Path) -> list[RoundLine]:
    """All whole lines; a torn last line (the writer was killed in it) is dropped. No file yet: no lines."""
    try:
        rows = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows.pop()  # empty after a whole last line, else the torn one
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(RoundLine.model_validate_json(row))
        except ValidationError:
            raise RunError(f"{path}:{number}: is no line of this schema; the run folder is damaged") from None
    return lines


def append_rounds(path: Path, lines: Iterable[RoundLine]) -> None:
    """Raises RunError where the disk takes no more; a torn line that this leaves is dropped by the next reader."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(line.model_dump_json() + "\n" for line in lines)
    except OSError as error:
        raise cannot_write(path, error) from None


def summaries(lines: Sequence[RoundLine], model: str) -> list[RoundLine]:
    return [line for line in lines if line.model == model and line.hospital == ALL]


def best_round(lines: Sequence[RoundLine], model: str) -> int | None:
    """The round whose weights stand for the model: best validation macro-F1, ties to the lower loss; without labels
    the lowest loss."""
    best = [line.round for line in summaries(lines, model) if line.is_best_so_far]
    return best[-1] if best else None


def training_history(lines: Sequence[RoundLine]) -> list[dict[str, float | int]]:
    """The global model by round, with the reference system's keys (epoch = round)."""
    return [
        {
            "epoch": line.round,
            "train_loss": line.fit.loss,
            "train_accuracy": line.fit.accuracy,
            "val_loss": line.validation.loss,
            "val_accuracy": line.validation.accuracy,
        }
        for line in summaries(lines, "global")
        if line.fit and line.validation
    ]


def metric_tables(lines: Sequence[RoundLine]) -> dict[str, list[dict[str, float | int | str]]]:
    """The four CSV tables of the global model: {fit,eval}_metrics by round, {fit,eval}_client_metrics by hospital."""
    tables: dict[str, list[dict[str, float | int | str]]] = {
        "fit_metrics": [],
        "eval_metrics": [],
        "fit_client_metrics": [],
        "eval_client_metrics": [],
    }
    for line in lines:
        if line.model != "global":
            continue
        whole = line.hospital == ALL
        start: dict[str, float | int | str] = {"round": line.round}
        if not whole:
            start["client_id"] = line.hospital
        suffix = "metrics" if whole else "client_metrics"
        if line.fit:
            row = {"num_examples": line.fit.n_images, "loss": line.fit.loss, "accuracy": line.fit.accuracy}
            tables[f"fit_{suffix}"].append({**start, **row, "seconds": line.fit.seconds})
        if line.validation:
            seen = line.validation
            row = {"num_examples": seen.n_images, "loss": seen.loss, "accuracy": seen.accuracy}
            chosen_by = {} if seen.macro_f1 is None else {"macro_f1": seen.macro_f1}
            tables[f"eval_{suffix}"].append({**start, **row, **chosen_by})
    return tables


def communication(lines: Sequence[RoundLine]) -> dict[str, dict[str, int]]:
    """Bytes of the tensors that travelled between coordinator and hospitals in the federated arm."""
    totals: dict[str, dict[str, int]] = {}
    for line in lines:
        checked = line.validation.bytes_down if line.validation else 0
        if line.model == "global" and line.hospital != ALL and (line.fit or checked):
            hospital = totals.setdefault(line.hospital, {"bytes_down": 0, "bytes_up": 0, "rounds": 0})
            hospital["bytes_down"] += checked
            if line.fit:
                hospital["bytes_down"] += line.fit.bytes_down
                hospital["bytes_up"] += line.fit.bytes_up
                hospital["rounds"] += 1
    return totals


def drop_rounds_after(path: Path, last_round: dict[str, int]) -> None:
    """Keep of each model only the rounds that its checkpoint knows, so that a resume writes the rest once."""
    kept = [line for line in read_rounds(path) if line.round <= last_round.get(line.model, 0)]
    write_text(path, "".join(line.model_dump_json() + "\n" for line in kept))
