"""Questions over Flower's Grid, answered by nodes here: late, lost, lying, absent hospitals; what travels as an app."""

import datetime
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.task_identity import TaskIdentity

from engine.config import load_federation
from engine.errors import ConfigError, DataError
from engine.federation.certificates import days_left, make_certificates, public_key
from engine.federation.conversation import Declined, Question, Saying, Validated
from engine.federation.transports.flower import FlowerLink, from_record, to_record
from engine.federation.transports.flower.apps import data_folder, settings_of
from engine.federation.transports.flower.node import WHO, reply_to
from engine.federation.transports.flower.runtime import BUNDLE
from engine.federation.transports.flower.serve import opened_link
from engine.federation.transports.flower.superlink import PRAGMAS, OneDoor
from engine.federation.updates import HospitalFailure
from engine.training.networks import Tensors

PROJECT = Path(__file__).resolve().parent.parent
NAMES = [f"h{number}" for number in range(10)]


class Echo:
    """A node that answers with the loss it is told, in tensors that it got."""

    def __init__(self, hospital: str) -> None:
        self.hospital = hospital

    def answer(self, question: Question, tensors: Tensors) -> tuple[Saying, Tensors]:
        return Validated(loss=float(self.hospital[1:]), confusion_matrix=((1, 0), (0, 1))), tensors


class GridHere:
    """Messages answered at once by `nodes`; a hospital in `does` answers as told, or not at all."""

    def __init__(self, does: dict[str, Any] | None = None) -> None:
        self.does = does or {}
        self.waiting: dict[str, Message] = {}
        self.numbers = {name: 100 + number for number, name in enumerate(NAMES)}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = f"m{len(self.waiting)}"
            message.metadata.__dict__["_message_id"] = message_id
            name = next(name for name, node in self.numbers.items() if node == message.metadata.dst_node_id)
            self.waiting[message_id] = self.does.get(name, lambda m, name=name: reply_to(m, Echo(name)))(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, ids: Sequence[str]) -> Iterable[Message]:
        return [reply for one in ids if (reply := self.waiting[one]) is not None]


def asked(names: Sequence[str] = NAMES, kind: str = "validate") -> list[tuple[Question, Tensors]]:
    weights = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "half": torch.ones(2, dtype=torch.float16)}
    return [(Question(kind=kind, training="0" * 16, hospital=name, federation={}), weights) for name in names]


def link(grid: Any, connected: Any = None, **settings: Any) -> FlowerLink:
    given = {"timeout_s": 0.5, "rounds": 1, "needed": 1, "patience_s": 0.0} | settings
    return FlowerLink(grid, connected or (lambda: grid.numbers), **given)


def test_answers_come_in_the_order_of_the_questions_with_the_very_tensors() -> None:
    replies = list(link(GridHere()).ask(asked()))
    assert [said.loss for said, _ in replies] == list(range(10))
    for (_, sent), (_, back) in zip(asked(), replies, strict=True):
        assert list(back) == list(sent)
        assert all(torch.equal(back[name], sent[name]) and back[name].dtype == sent[name].dtype for name in sent)


def test_late_lost_dead_lying_and_absent_hospitals_are_each_said_so_and_the_others_count() -> None:
    def error(code: int) -> Any:
        return lambda message: Message(Error(code=code, reason="/secret/path"), reply_to=message)

    def nonsense(message: Message) -> Message:
        return Message(
            RecordDict({"said": ConfigRecord({"json": '{"said": "validated", "images": [1]}'})}), reply_to=message
        )

    def unsaid(message: Message) -> Message:
        return Message(RecordDict({}), reply_to=message)

    grid = GridHere(
        {"h1": lambda message: None, "h2": error(5), "h3": error(8), "h4": nonsense, "h5": unsaid, "h6": error(2)}
    )
    there = {name: node for name, node in grid.numbers.items() if name not in ("h7", "h8", "h9")}  # 30% are missing
    replies = dict(zip(NAMES, link(grid, lambda: there).ask(asked()), strict=True))
    reasons = {name: reply.reason for name, reply in replies.items() if isinstance(reply, HospitalFailure)}
    assert set(replies) - set(reasons) == {"h0"}
    assert reasons["h1"] == "did not answer in time"
    assert reasons["h2"] == "was lost while it worked"
    assert reasons["h3"] == "its process died"
    assert "no known words" in reasons["h4"]
    assert "no known words" in reasons["h5"]
    assert reasons["h7"] == reasons["h8"] == reasons["h9"] == "is not connected"
    assert not any("secret" in reason for reason in reasons.values())


def test_too_few_are_waited_for_and_who_joins_is_everybody() -> None:
    looks = []

    def coming() -> dict[str, int]:
        looks.append(1)
        return dict(list(GridHere().numbers.items())[: len(looks)])

    replies = list(link(GridHere(), coming, needed=3, patience_s=30.0).ask(asked()))
    assert len(looks) == 3
    assert sum(isinstance(reply, HospitalFailure) for reply in replies) == 7
    looks.clear()
    replies = list(link(GridHere(), coming, needed=1, patience_s=60.0).ask(asked(NAMES[:4], kind="join")))
    assert len(looks) == 4
    assert not any(isinstance(reply, HospitalFailure) for reply in replies)


def test_a_node_answers_what_it_cannot_read_without_repeating_it() -> None:
    GridHere()
    for content in (RecordDict({}), RecordDict({"said": ConfigRecord({"json": "{'rows': 1}"})})):
        message = Message(content, dst_node_id=5, message_type="query")
        message.metadata.__dict__["_message_id"] = "m"
        said, tensors = from_record(reply_to(message, Echo("h1")).content)
        assert Declined.model_validate_json(said).reason == "asked in no known words"
        assert tensors == {}
    message = Message(RecordDict({WHO: ConfigRecord({})}), dst_node_id=5, message_type="query")
    message.metadata.__dict__["_message_id"] = "m"
    assert reply_to(message, Echo("h1")).content.config_records[WHO]["hospital"] == "h1"


def test_a_record_without_tensors_has_none() -> None:
    said, tensors = from_record(to_record(Declined(reason="no"), {}))
    assert Declined.model_validate_json(said).reason == "no"
    assert tensors == {}


@pytest.mark.parametrize("bundle", ["coordinator", "flwr run"])
def test_what_travels_as_an_app_is_names_and_no_code_no_data_no_model(bundle: str) -> None:
    content = (
        build_fab_from_files({"pyproject.toml": BUNDLE})[0] if bundle == "coordinator" else build_fab_from_disk(PROJECT)
    )
    names = {Path(name).name for name in zipfile.ZipFile(io.BytesIO(content)).namelist()}
    assert names <= {"pyproject.toml", "LICENSE", "CONTENT", "fab.json", "metadata.json"}, names


def test_flwr_run_settings_are_the_federation_files_and_its_environments() -> None:
    nothing = {"num-server-rounds": 0, "fraction-fit": 0.0, "fraction-evaluate": 1.0, "image-size": 0}
    assert settings_of(nothing, {}) == []
    given = nothing | {"num-server-rounds": 3, "fraction-fit": 0.5}
    environment = {"ROUNDS": "9", "IMAGE_SIZE": "64", "MIN_FIT_CLIENTS": "2"}
    assert settings_of(given, environment) == [
        "training.rounds=3",
        "training.hospital_fraction=0.5",
        "training.min_hospitals=2",
        "model.image_size_px=64",
    ]
    load_federation(PROJECT / "federations" / "phantoms.toml", settings_of(given, environment))
    with pytest.raises(ConfigError, match="every hospital validates every round"):
        settings_of({"fraction-evaluate": 0.5}, {})


def test_a_data_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    federation = load_federation(PROJECT / "federations" / "phantoms.toml")
    assert data_folder(federation, {"DATA_DIR": str(tmp_path)}) == tmp_path
    with pytest.raises(DataError, match="set DATA_DIR"):
        data_folder(federation, {"DATA_DIR": str(tmp_path / "nowhere")})


def test_what_is_set_of_the_database_is_what_flower_sets() -> None:
    assert PRAGMAS.keys() <= dict(SQLITE_PRAGMAS).keys()
    assert vars(sql_mixin)["SQLITE_PRAGMAS"] is SQLITE_PRAGMAS, "and read where it is changed"


def test_from_another_machine_there_is_one_door() -> None:
    heard = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope["path"])

    def ask(client: str, path: str, own: str = "10.0.0.1") -> list[int]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "client": (client, 1), "server": (own, 8443), "path": path}
        with pytest.raises(StopIteration):  # it waits for nothing, so it needs no loop
            OneDoor(inner)(scope, None, send).send(None)  # type: ignore[arg-type, attr-defined]
        return [message["status"] for message in sent if "status" in message]

    assert ask("10.0.0.7", "/v1/control/start-run") == [404]
    assert ask("10.0.0.7", "/v1/runtime/acquire-task") == [404]
    assert ask("10.0.0.7", "/v1/fleet/../control/start-run") == [404]
    assert heard == []
    ask("10.0.0.7", "/v1/fleet/activate-node")
    ask("127.0.0.1", "/v1/control/start-run")
    ask("10.0.0.1", "/v1/runtime/acquire-task")
    assert heard == ["/v1/fleet/activate-node", "/v1/control/start-run", "/v1/runtime/acquire-task"]


def test_certificates_are_made_once_hospitals_are_added_and_secrets_are_their_owners(tmp_path: Path) -> None:
    made = {path.relative_to(tmp_path).as_posix() for path in make_certificates(tmp_path, ["a.example"], ["h0"], 30)}
    assert made == {"ca.crt", "ca.key", "server.pem", "server.key", "h0/node.key", "h0/node.pub", "h0/ca.crt"}
    before = (tmp_path / "h0" / "node.key").read_bytes()
    added = make_certificates(tmp_path, [], ["h0", "h1"], 30)
    assert {path.parent.name for path in added} == {"h1"}
    assert (tmp_path / "h0" / "node.key").read_bytes() == before
    for secret in ("ca.key", "server.key", "h0/node.key"):
        assert (tmp_path / secret).stat().st_mode & 0o077 == 0
    assert 29 < days_left(tmp_path / "server.pem") < 31
    assert days_left(tmp_path / "server.pem", datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=31)) < 0
    (tmp_path / "h1" / "node.pub").write_text("ssh-nothing AAAA")
    with pytest.raises(ConfigError, match="no public key"):
        public_key(tmp_path / "h1" / "node.pub")
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key: is not here"):
        make_certificates(tmp_path, ["b.example"], [], 30)


def test_an_expired_certificate_is_refused_before_anything_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = load_federation(PROJECT / "federations" / "phantoms.toml")
    make_certificates(tmp_path, [], [one.id for one in federation.hospital], 1)
    monkeypatch.setattr("engine.federation.transports.flower.serve.days_left", lambda path: -1.0)
    opening = opened_link(federation, tmp_path, tmp_path / "s", host="127.0.0.1", port=1, timeout_s=1, patience_s=1)
    with pytest.raises(ConfigError, match="has expired; renew it"), opening:
        pass
