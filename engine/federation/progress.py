"""How far a training is, for the screen; for the dashboard every second and as a round's hospitals are done."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.federation.rounds import choose_hospitals
from engine.results.files import write_json
from engine.results.run_folder import HospitalState, Progress, now
from engine.sections import TrainingConfig

OnTraining = Callable[[Progress], None]


def images_by_round(sizes: Mapping[str, int], training: TrainingConfig) -> list[int]:
    """How many images each round trains on, in all its local epochs together; `sizes` are images by trainer."""
    trainers = tuple(sizes)
    chosen = [choose_hospitals(trainers, training, number) for number in range(1, training.rounds + 1)]
    return [training.local_epochs * sum(sizes[one] for one in hospitals) for hospitals in chosen]


class ProgressReport:
    """Counts images over all models, rounds and local epochs, and watches the round in flight.

    `sizes` are images by model and trainer, `rounds_done` is where each model's checkpoint stands.
    """

    def __init__(
        self,
        file: Path,
        sizes: Mapping[str, Mapping[str, int]],
        training: TrainingConfig,
        *,
        rounds_done: Mapping[str, int],
        on_training: OnTraining,
    ) -> None:
        by_round = {model: images_by_round(trainers, training) for model, trainers in sizes.items()}
        self._total = sum(map(sum, by_round.values()))
        self._done = self._at_start = sum(sum(by_round[model][:done]) for model, done in rounds_done.items())
        self._rounds = training.rounds
        self._started = now()
        self._file = file
        self._written = 0.0
        self._on_training = on_training
        self._model = ""
        self._hospitals: dict[str, HospitalState] = {}
        self._last: Progress | None = None

    def begin(self, model: str) -> None:
        """Models are trained one after another; what is heard from now on is of this one."""
        self._model, self._last = model, None

    def asked(self, hospitals: Sequence[str]) -> None:
        self._hospitals = dict.fromkeys(hospitals, "waiting")

    def answered(self, hospital: str, *, usable: bool) -> None:
        self._hospitals[hospital] = "trained" if usable else "failed"
        if self._last is not None and not {"waiting", "training"} & set(self._hospitals.values()):
            # While the round is validated nothing else would say that the last hospital is done.
            self._write(self._last.model_copy(update={"hospitals": dict(self._hospitals), "updated_at": now()}))

    def on_images(self, round_number: int, hospital: str, n_images: int) -> None:
        """Takes the number of images just trained on."""
        self._done += n_images
        self._hospitals[hospital] = "training"
        self._last = Progress(
            model=self._model,
            round=round_number,
            rounds=self._rounds,
            hospital=hospital,
            images_done=self._done,
            images_total=self._total,
            images_at_start=self._at_start,
            started_at=self._started,
            updated_at=now(),
            hospitals=dict(self._hospitals),
        )
        self._on_training(self._last)
        if time.monotonic() - self._written > 1:
            self._write(self._last)
            self._written = time.monotonic()  # here alone: rounds of less than a second would only be seen to end

    def _write(self, progress: Progress) -> None:
        write_json(self._file, progress.model_dump(mode="json"))
