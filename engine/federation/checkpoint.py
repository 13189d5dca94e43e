"""What a resume needs, on disk after every round. A kill at any moment leaves the last whole round."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from engine.errors import RunError
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

    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None:
        model = lines[-1].model
        append_rounds(self._run_folder / "rounds.jsonl", lines)
        if self._keep_rounds:
            save_tensors(self._run_folder / round_weights_name(model, state.round), state.weights)
        last, best = f"{slug(model)}-{state.round:04d}", f"{slug(model)}-{state.best_round:04d}"
        save_tensors(self.folder / f"{last}.safetensors", state.weights)
        # The pointer moves only once the tensors are on disk; what it no longer names goes afterwards.
        write_json(
            self._pointer(model),
            {
                "schema_version": 1,
                "round": state.round,
                "best_round": state.best_round,
                "best_macro_f1": state.best_macro_f1,
                "best_loss": state.best_loss,
            },
        )
        for file in self.folder.glob(f"{slug(model)}-[0-9][0-9][0-9][0-9].safetensors"):
            if file.stem not in (last, best):
                file.unlink()

    def read(self, model: str) -> TrainingState | None:
        """The state after the model's last whole round, or None before its first."""
        if not self._pointer(model).is_file():
            return None
        try:
            pointer = read_json(self._pointer(model))
            weights = load_tensors(self.folder / f"{slug(model)}-{pointer['round']:04d}.safetensors")
            best = load_tensors(self.folder / f"{slug(model)}-{pointer['best_round']:04d}.safetensors")
            return TrainingState(
                weights, best, pointer["round"], pointer["best_round"], pointer["best_macro_f1"], pointer["best_loss"]
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{self._pointer(model)}: is damaged ({error}); this run cannot go on, train anew") from None

    def remove(self) -> None:
        """Atomically out of sight first, so that a kill in between leaves no half checkpoint."""
        done = self.folder.with_name("checkpoint.done")
        if self.folder.is_dir():
            self.folder.replace(done)
        shutil.rmtree(done, ignore_errors=True)

    def _pointer(self, model: str) -> Path:
        return self.folder / f"{slug(model)}.json"


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
