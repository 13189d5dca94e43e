"""What happened in one round, hospital by hospital, and the lines it leaves in `rounds.jsonl`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.federation.transports import AnyReply, PretextReply
from engine.federation.updates import HospitalFailure, Update
from engine.results.metrics import macro_f1
from engine.results.rounds import ALL, Fit, RoundLine, Validation
from engine.sections import Arm


@dataclass
class RoundReport:
    fits: dict[str, Fit] = field(default_factory=dict)
    validations: dict[str, Validation] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    has_diverged: bool = False  # some hospital's validation loss is no finite number

    def add_update(self, update: Update, bytes_down: int) -> None:
        last = update.epochs[-1]
        self.fits[update.hospital] = Fit(
            n_images=update.n_images,
            loss=last.loss,
            accuracy=last.accuracy,
            epochs=update.epochs,
            seconds=update.seconds,
            bytes_down=bytes_down,
            bytes_up=update.n_bytes,
            epsilon=update.epsilon,
        )

    def add_bytes(self, hospital: str, *, down: int, up: int) -> None:
        """What travelled beside the message and the update, of a hospital whose update counts."""
        fit = self.fits[hospital]
        more = {"bytes_down": fit.bytes_down + down, "bytes_up": fit.bytes_up + up}
        self.fits[hospital] = fit.model_copy(update=more)

    def add_failure(self, hospital: str, reason: str) -> None:
        self.failures[hospital] = reason

    def add_validation(self, reply: AnyReply) -> None:
        if isinstance(reply, HospitalFailure):
            self.add_failure(reply.hospital, reply.reason)
        elif not math.isfinite(reply.loss):
            self.has_diverged = True
            self.add_failure(reply.hospital, "its validation loss is no finite number")
        elif isinstance(reply, PretextReply):
            self.validations[reply.hospital] = Validation(
                n_images=reply.n_images, loss=reply.loss, accuracy=reply.share, bytes_down=reply.bytes_down
            )
        else:
            self.validations[reply.hospital] = _validation(reply.loss, reply.confusion_matrix, reply.bytes_down)

    def validation(self) -> Validation | None:
        """The hospitals' counts added up, or their means; None when no hospital holds validation images."""
        seen = list(self.validations.values())
        if not seen:
            return None
        loss, n_bytes = _mean((v.loss, v.n_images) for v in seen), sum(v.bytes_down for v in seen)
        matrices = [v.confusion_matrix for v in seen if v.confusion_matrix is not None]
        if matrices:
            return _validation(loss, np.sum(matrices, axis=0), n_bytes)
        share = _mean((v.accuracy, v.n_images) for v in seen)
        return Validation(n_images=sum(v.n_images for v in seen), loss=loss, accuracy=share, bytes_down=n_bytes)

    def lines(self, arm: Arm, model: str, round_number: int, *, seconds: float, is_best: bool) -> list[RoundLine]:
        """One line per hospital that had a part in the round, then the one that sums it up."""
        hospitals = dict.fromkeys([*self.fits, *self.validations, *self.failures])
        lines = [
            RoundLine(
                arm=arm,
                model=model,
                round=round_number,
                hospital=hospital,
                fit=self.fits.get(hospital),
                validation=self.validations.get(hospital),
                failure=self.failures.get(hospital),
            )
            for hospital in hospitals
        ]
        whole = RoundLine(
            arm=arm,
            model=model,
            round=round_number,
            hospital=ALL,
            fit=self._fit(),
            validation=self.validation(),
            seconds=seconds,
            is_best_so_far=is_best,
        )
        return [*lines, whole]

    def _fit(self) -> Fit:
        fits = list(self.fits.values())
        return Fit(
            n_images=sum(fit.n_images for fit in fits),
            loss=_mean((fit.loss, fit.n_images) for fit in fits),
            accuracy=_mean((fit.accuracy, fit.n_images) for fit in fits),
            epochs=(),
            seconds=sum(fit.seconds for fit in fits),
            bytes_down=sum(fit.bytes_down for fit in fits),
            bytes_up=sum(fit.bytes_up for fit in fits),
            epsilon=max((fit.epsilon for fit in fits if fit.epsilon is not None), default=None),
        )


def _mean(weighted: Iterable[tuple[float, int]]) -> float:
    pairs = list(weighted)
    return sum(value * n_images for value, n_images in pairs) / sum(n_images for _, n_images in pairs)


def _validation(loss: float, matrix: npt.NDArray[np.int64], bytes_down: int) -> Validation:
    n_images = int(matrix.sum())
    return Validation(
        n_images=n_images,
        loss=loss,
        accuracy=float(np.trace(matrix) / n_images),
        macro_f1=macro_f1(matrix),
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in matrix),
        bytes_down=bytes_down,
    )
