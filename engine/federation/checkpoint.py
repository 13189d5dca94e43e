"""What a resume needs, on disk after every round. A kill at any moment leaves the last whole round."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from engine.errors import RunError
from engine.federation.named_tensors import label, of_kind
from engine.federation.rounds import TrainingState
from engine.results.files import read_json, write_atomically, write_json
from engine.results.rounds import RoundLine, append_rounds
from engine.results.run_folder import round_weights_name
from engine.training.networks import Tensors


class Checkpoint:
    """The recorder of one run's rounds: appends their lines, then moves the checkpoint on."""

    def __init__(self, run_folder: Path, *, keep_rounds: bool) -> None:
        self._run_folder = run_folder
        self.folder = run_folder / "checkpoint"
        self._keep_rounds = keep_rounds
        self.backbone: Tensors = {}  # a frozen one: no round changes it, every weights file of the run has it

    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None:
        model = lines[-1].model
        append_rounds(self._run_folder / "rounds.jsonl", lines)
        if self._keep_rounds:
            save_tensors(self._run_folder / round_weights_name(model, state.round), {**self.backbone, **state.weights})
        last, best = f"{slug(model)}@{state.round:04d}", f"{slug(model)}@{state.best_round:04d}"
        if state.server or state.hospitals:
            save_tensors(self.folder / f"{last}.state.safetensors", _state_tensors(state))
        save_tensors(self.folder / f"{last}.safetensors", state.weights)
        # The pointer moves only once the tensors are on disk; what it no longer names goes afterwards.
        write_json(
            self._pointer(model),
            {
                "schema_version": 1,
                "round": state.round,
                "best_round": state.best_round,
                "best_macro_f1": state.best_macro_f1,
                "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,  # JSON has no infinity
                "has_state": bool(state.server or state.hospitals),
            },
        )
        for file in self.folder.glob(f"{slug(model)}@*"):
            if file.name.partition(".")[0] not in (last, best):
                file.unlink()

    def last_round(self, model: str) -> int:
        """The model's last whole round; 0 before its first."""
        if not self._pointer(model).is_file():
            return 0
        try:
            return int(read_json(self._pointer(model))["round"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(model, error) from None

    def read(self, model: str) -> TrainingState | None:
        """The state after the model's last whole round, or None before its first."""
        if not self._pointer(model).is_file():
            return None
        try:
            pointer = read_json(self._pointer(model))
            last, best = (f"{slug(model)}@{pointer[key]:04d}" for key in ("round", "best_round"))
            has_state = pointer.get("has_state", False)
            server, hospitals = self._read_state(last, has_state)
            _, best_hospitals = self._read_state(best, has_state)
            return TrainingState(
                weights=load_tensors(self.folder / f"{last}.safetensors"),
                best_weights=load_tensors(self.folder / f"{best}.safetensors"),
                round=pointer["round"],
                best_round=pointer["best_round"],
                best_macro_f1=pointer["best_macro_f1"],
                best_loss=math.inf if pointer["best_loss"] is None else pointer["best_loss"],
                server=server,
                hospitals=hospitals,
                best_hospitals=best_hospitals,
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(model, error) from None

    def _damaged(self, model: str, error: Exception) -> RunError:
        return RunError(f"{self._pointer(model)}: is damaged ({error}); this run cannot go on, train anew")

    def remove(self) -> None:
        """Atomically out of sight first, so that a kill in between leaves no half checkpoint."""
        done = self.folder.with_name("checkpoint.done")
        if self.folder.is_dir():
            self.folder.replace(done)
        shutil.rmtree(done, ignore_errors=True)

    def _read_state(self, stem: str, has_state: bool) -> tuple[Tensors, dict[str, Tensors]]:
        """The strategy's state, and by hospital id what it keeps."""
        if not has_state:
            return {}, {}
        hospitals: dict[str, Tensors] = {}
        both = load_tensors(self.folder / f"{stem}.state.safetensors")
        for name, tensor in of_kind("hospital", both).items():
            hospital, _, own = name.partition("/")
            hospitals.setdefault(hospital, {})[own] = tensor
        return of_kind("server", both), hospitals

    def _pointer(self, model: str) -> Path:
        return self.folder / f"{slug(model)}.json"


def _state_tensors(state: TrainingState) -> Tensors:
    tensors = label("server", state.server)
    for hospital, kept in state.hospitals.items():
        tensors |= label(f"hospital/{hospital}", kept)
    return tensors


def slug(model: str) -> str:
    return model.replace("/", "-")


def save_tensors(path: Path, tensors: Tensors) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(contiguous, temporary)
        except safetensors.SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from None

    write_atomically(path, write)


def load_tensors(path: Path) -> Tensors:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); the run folder is damaged") from None
