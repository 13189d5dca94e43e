"""Questions and answers as Flower messages over its `Grid`. Nothing outside this package knows Flower.

Flower carries; it averages nothing, chooses nobody and runs no code of a coordinator's at a hospital.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import httpx
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from pydantic import BaseModel, TypeAdapter

from engine.federation.conversation import Question, Saying
from engine.federation.training_log import log
from engine.federation.updates import HospitalFailure
from engine.training.networks import Tensors

POLL_SECONDS = 0.2
# flwr.common.constant.ErrorCode, in words; what Flower says beside them may be an exception's text and is not shown.
ERRORS = {
    2: "its node could not answer",
    3: "did not answer in time",
    5: "was lost while it worked",
    8: "its process died",
}
_SAYING: TypeAdapter[Saying] = TypeAdapter(Saying)


class FlowerLink:
    """`connected` says which hospitals are there now, and under which node. While they are fewer than `needed`, an
    `ask` waits for them, up to `patience_s`; a question to join waits for everybody. A hospital that does not answer
    within `timeout_s` is left out; its own model's training has that long for each of its rounds."""

    def __init__(
        self,
        grid: Grid,
        connected: Callable[[], Mapping[str, int]],
        *,
        timeout_s: float,
        rounds: int,
        needed: int,
        patience_s: float = 120.0,
    ) -> None:
        self._grid = grid
        self._connected = connected
        self._timeout_s = timeout_s
        self._rounds = rounds
        self._needed = needed
        self._patience_s = patience_s

    def ask(self, asked: Sequence[tuple[Question, Tensors]]) -> Iterator[tuple[Saying, Tensors] | HospitalFailure]:
        """Everybody is asked at once; an early answer waits at the SuperLink, so that one at a time is in memory."""
        if not asked:
            return
        hospitals, kind = {question.hospital for question, _ in asked}, asked[0][0].kind
        nodes = self.wait_for(hospitals, len(hospitals) if kind == "join" else min(self._needed, len(hospitals)))
        seconds = self._timeout_s * self._rounds if kind == "local" else self._timeout_s
        deadline = time.monotonic() + seconds
        sent: list[str | None] = []
        for question, tensors in asked:
            node = nodes.get(question.hospital)
            sent.append(None if node is None else self._send(question, tensors, node, seconds))
        for (question, _), message_id in zip(asked, sent, strict=True):
            if message_id is None:
                yield HospitalFailure(question.hospital, "is not connected")
            else:
                yield self._reply(question.hospital, message_id, deadline)

    def wait_for(self, hospitals: set[str], needed: int) -> Mapping[str, int]:
        """The nodes that are there once `needed` of the hospitals are, or patience has ended."""
        until, told = time.monotonic() + self._patience_s, -1
        while (here := len(hospitals & (nodes := self._connected()).keys())) < needed and time.monotonic() < until:
            if here != told:
                log.info("%d of %d hospitals are connected; waiting for %d", here, len(hospitals), needed)
                told = here
            time.sleep(1.0)
        return nodes

    def _send(self, question: Question, tensors: Tensors, node: int, seconds: float) -> str | None:
        message = Message(
            to_record(question, tensors),
            dst_node_id=node,
            message_type=MessageType.QUERY,
            group_id=str(question.round),
            ttl=seconds,
        )
        ids = list(self._grid.push_messages([message]))
        return ids[0] if ids else None

    def _reply(self, hospital: str, message_id: str, deadline: float) -> tuple[Saying, Tensors] | HospitalFailure:
        while True:
            try:
                for reply in self._grid.pull_messages([message_id]):
                    if reply.has_error():
                        return HospitalFailure(hospital, ERRORS.get(reply.error.code, "its node could not answer"))
                    text, tensors = from_record(reply.content)
                    return _SAYING.validate_json(text), tensors
            except httpx.HTTPError:  # the SuperLink is gone, and with it every hospital
                raise
            except Exception as error:  # bytes of a hospital's choosing fail in many ways, and must not stop the others
                log.warning("%s: an answer cannot be read: %s: %s", hospital, type(error).__name__, error)
                return HospitalFailure(hospital, "answered in no known words; is its version this one?")
            if time.monotonic() > deadline:
                return HospitalFailure(hospital, "did not answer in time")
            time.sleep(POLL_SECONDS)


def to_record(said: BaseModel, tensors: Tensors) -> RecordDict:
    record = RecordDict({"said": ConfigRecord({"json": said.model_dump_json()})})
    if tensors:
        record["tensors"] = ArrayRecord({name: tensor.detach().cpu() for name, tensor in tensors.items()})
    return record


def from_record(record: RecordDict) -> tuple[str, Tensors]:
    said = record.config_records["said"]["json"]
    arrays = record.array_records.get("tensors")
    return str(said), dict(arrays.to_torch_state_dict()) if arrays else {}
