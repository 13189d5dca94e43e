"""The federated arm's rounds as the audit log keeps them: whose updates came, which counted, and what came of them."""

import hashlib
from collections.abc import Sequence

import torch

from engine.federation.checkpoint import Checkpoint
from engine.federation.rounds import TrainingState
from engine.federation.updates import Update
from engine.results.audit_log import AuditLog, RoundDone
from engine.results.rounds import ALL, RoundLine
from engine.results.run_folder import now
from engine.training.networks import Tensors


class AuditedRounds:
    """A recorder that tells the log of a round before the checkpoint moves on: no round is ever kept and not told.

    A kill between the two leaves a round that is told twice, with the resume in between.
    """

    def __init__(self, checkpoint: Checkpoint, log: AuditLog) -> None:
        self._checkpoint = checkpoint
        self._log = log
        self._updates: dict[str, str] = {}

    def see_update(self, update: Update) -> None:
        self._updates[update.hospital] = fingerprint(update.tensors)

    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None:
        hospitals = [line for line in lines if line.hospital != ALL]
        done = RoundDone(
            round=state.round,
            participants=tuple(line.hospital for line in hospitals if line.fit),
            updates=self._updates,
            failures={line.hospital: line.failure for line in hospitals if line.failure},
            weights=fingerprint(state.weights),
        )
        self._updates = {}
        self._log.append(done, now())
        self._checkpoint.write_round(state, lines)


def fingerprint(tensors: Tensors) -> str:
    """SHA-256 of one line per tensor, in the order of their names: name, type, shape, SHA-256 of its bytes in C order.

    docs/audit-log.md computes the same from a weights file.
    """
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
        kind = str(tensor.dtype).removeprefix("torch.")
        whole.update(f"{name} {kind} {list(tensor.shape)} {content}\n".encode())
    return whole.hexdigest()
