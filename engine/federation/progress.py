"""How far a training is, told to the screen and, at most once a second, to the dashboard."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.federation.arms import ModelPlan
from engine.results.files import write_json
from engine.results.run_folder import Progress, now

OnTraining = Callable[[Progress], None]


class ProgressReport:
    """Counts images over all models, rounds and local epochs. `rounds_done` is where each model's checkpoint stands."""

    def __init__(
        self,
        file: Path,
        plans: Sequence[ModelPlan],
        *,
        rounds: int,
        local_epochs: int,
        rounds_done: Mapping[str, int],
        on_training: OnTraining,
    ) -> None:
        per_round = {plan.model: plan.n_training_images * local_epochs for plan in plans}
        self._total = sum(per_round.values()) * rounds
        self._done = self._at_start = sum(per_round[model] * done for model, done in rounds_done.items())
        self._rounds = rounds
        self._started = now()
        self._file = file
        self._written = 0.0
        self._on_training = on_training

    def listener(self, model: str) -> Callable[[int, str, int], None]:
        """Takes round, hospital and the number of images just trained on."""

        def on_images(round_number: int, hospital: str, n_images: int) -> None:
            self._done += n_images
            progress = Progress(
                model=model,
                round=round_number,
                rounds=self._rounds,
                hospital=hospital,
                images_done=self._done,
                images_total=self._total,
                images_at_start=self._at_start,
                started_at=self._started,
                updated_at=now(),
            )
            self._on_training(progress)
            if time.monotonic() - self._written > 1:
                write_json(self._file, progress.model_dump(mode="json"))
                self._written = time.monotonic()

        return on_images
