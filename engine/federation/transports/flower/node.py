"""A hospital's side of Flower: every message goes to the `HospitalNode`, whose answer is the reply."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Message, RecordDict

from engine.federation.conversation import Declined, Question
from engine.federation.node import HospitalNode
from engine.federation.training_log import log
from engine.federation.transports.flower import from_record, to_record

WHO = "who"  # a message that asks nothing but whose node this is


def reply_to(message: Message, node: HospitalNode) -> Message:
    """Never raises: Flower would send an exception's text to the coordinator."""
    try:
        if WHO in message.content.config_records:
            return Message(RecordDict({WHO: ConfigRecord({"hospital": node.hospital})}), reply_to=message)
        text, tensors = from_record(message.content)
        question = Question.model_validate_json(text)
    except Exception as error:  # bytes of a coordinator's choosing fail in many ways, and must not stop this node
        log.error("a question in no known words: %s", error)
        return Message(to_record(Declined(reason="asked in no known words"), {}), reply_to=message)
    log.info("%s, round %d, of training %s", question.kind, question.round, question.training)
    said, back = node.answer(question, tensors)
    return Message(to_record(said, back), reply_to=message)


Answer = Callable[[Message], Message]
