"""The audit log: what it tells, that no change to it goes unnoticed, and that kills leave one to go on with."""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.data.federation_data import FederationData
from engine.errors import RunError
from engine.federation.audited import AuditedRounds, fingerprint
from engine.federation.checkpoint import Checkpoint, load_tensors
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.results.audit_log import AuditLog, Finished, Resumed, RoundDone, Started, Stopped, read_log
from engine.results.files import read_json, sha256_of
from engine.results.rounds import best_round
from engine.results.run_folder import Run, find_run
from engine.sections import TrainingConfig
from engine.training.build import build_network
from engine.training.networks import Tensors
from tests.conftest import Command
from tests.test_rounds import Scripted
from tests.test_training_run import Killed

PROJECT = Path(__file__).resolve().parent.parent
AT = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def run(phantom_run: Path, tmp_path: Path) -> Run:
    """A copy of the finished run, to damage."""
    shutil.copytree(phantom_run / "run-001", tmp_path / "run-001")
    return Run(tmp_path / "run-001")


def log_of(run: Run) -> Path:
    return run.folder / "audit-log.jsonl"


def lines_of(run: Run) -> list[bytes]:
    return log_of(run).read_bytes().splitlines(keepends=True)


def events(run: Run) -> list[Any]:
    return [entry.what for entry in read_log(log_of(run)).entries]


# --- what it tells -------------------------------------------------------------------------------------------------


def test_a_run_tells_who_began_it_with_what_each_round_and_its_end(
    phantom_run: Path, tiny_data: FederationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setattr("platform.node", lambda: "some-machine")
    run = train_run(start_run(tiny_data, "federations/phantoms.toml", tmp_path), tiny_data)
    started, *rounds, finished = events(run)
    names = ("config.json", "dataset_splits.json")
    files = {name: sha256_of(run.folder / name) for name in names}
    assert started == Started(user="somebody", host="some-machine", files=files)
    assert [done.round for done in rounds] == [1, 2, 3]
    assert all(done.participants == tuple(done.updates) for done in rounds)
    assert all(set(done.updates) == {"hospital-a", "hospital-b", "hospital-c"} for done in rounds)
    assert len({sha256 for done in rounds for sha256 in (*done.updates.values(), done.weights)}) == 12
    assert finished == Finished(manifest_sha256=sha256_of(run.folder / "manifest.json"))
    run.verify()
    first = events(find_run(phantom_run, "run-001"))
    assert first[1:4] == rounds, "the same training has the same fingerprints"


def test_the_fingerprint_that_the_docs_compute_is_the_rounds(phantom_run: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "audit-log.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    run = find_run(phantom_run, "run-001")
    rounds = {what.round: what.weights for what in events(run) if isinstance(what, RoundDone)}
    best = best_round(run.rounds(), "global")
    assert best is not None
    assert space["fingerprint"](run.folder / "weights" / "global-last.safetensors") == rounds[3]
    assert space["fingerprint"](run.weights("global")) == rounds[best]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.tensor(7),
        torch.zeros(0, 2),
        torch.randn(3).half(),
        torch.tensor([1, 2], dtype=torch.uint16),
        torch.randn(6)[::2],
        torch.randn(3, requires_grad=True),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{list(tensor.shape)}",
)
def test_a_fingerprint_is_of_names_types_shapes_and_values(tensor: torch.Tensor) -> None:
    plain = tensor.detach()
    content = hashlib.sha256(plain.numpy().tobytes(order="C")).hexdigest()
    line = f"w {plain.numpy().dtype} {list(plain.shape)} {content}\n"
    assert fingerprint({"w": tensor}) == hashlib.sha256(line.encode()).hexdigest()
    other = {"v": plain}, {"w": plain.double()}, {"w": plain[None]}, {"w": plain, "x": plain}
    assert len({fingerprint({"w": tensor}), *map(fingerprint, other)}) == 5
    changed = torch.from_numpy(np.asarray(plain.numpy() + 1))
    assert (fingerprint({"w": changed}) == fingerprint({"w": tensor})) == (plain.numel() == 0)


def test_a_refused_and_a_failed_hospital_are_told_beside_those_that_counted(tmp_path: Path) -> None:
    audited = AuditedRounds(Checkpoint(tmp_path, keep_rounds=False), AuditLog(tmp_path / "audit-log.jsonl"))
    transport = Scripted({"a": 1.0, "b": 3.0, "c": 5.0}, {"b": "nan", "c": "fails"})
    start = {"w": torch.zeros(1)}
    run_rounds(
        "federated",
        "global",
        TrainingConfig(rounds=2),
        transport,
        TrainingState(start, start),
        audited,
        on_update=audited.see_update,
    )
    nan = fingerprint({"w": torch.tensor([float("nan")])})
    for number, entry in enumerate(read_log(tmp_path / "audit-log.jsonl").entries, start=1):
        weights = fingerprint({"w": torch.tensor([float(number)])})
        assert isinstance(entry.what, RoundDone)
        assert (entry.what.round, entry.what.participants, entry.what.weights) == (number, ("a",), weights)
        assert entry.what.updates == {"a": weights, "b": nan}
        assert "NaN" in entry.what.failures["b"]
        assert entry.what.failures["c"] == "no power"
    assert number == 2


def test_a_frozen_rounds_fingerprint_is_its_heads(tiny_data: FederationData, tmp_path: Path) -> None:
    model = tiny_data.federation.model
    start = build_network(model, 4, seed=5).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in start.items()}, tmp_path / "start.safetensors")
    frozen = model.model_copy(update={"weights": str(tmp_path / "start.safetensors"), "freeze_backbone": True})
    federation = tiny_data.federation.model_copy(update={"model": frozen, "arms": ("federated",)})
    data = dataclasses.replace(tiny_data, federation=federation)
    run = train_run(start_run(data, "x.toml", tmp_path), data)
    last = load_tensors(run.folder / "weights" / "global-last.safetensors")
    head: Tensors = {name: tensor for name, tensor in last.items() if name.startswith("head.")}
    assert events(run)[-2].weights == fingerprint(head)
    assert len(head) < len(last)


# --- what is noticed -----------------------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_in_a_finished_runs_log_is_noticed(run: Run) -> None:
    content = log_of(run).read_bytes()
    run.verify()
    for place in np.random.default_rng(0).choice(len(content), 200, replace=False):
        changed = bytearray(content)
        changed[place] ^= 1
        log_of(run).write_bytes(changed)
        with pytest.raises(RunError, match=r"audit-log\.jsonl(:\d+)?: .*the run folder is damaged"):
            run.verify()


def renumbered(lines: list[bytes]) -> list[bytes]:
    return [json.dumps({**json.loads(line), "number": n}).encode() + b"\n" for n, line in enumerate(lines, start=1)]


def chained(lines: list[bytes]) -> list[bytes]:
    """As somebody would forge it who knows how the chain is made."""
    done: list[bytes] = []
    for line in renumbered(lines):
        previous = hashlib.sha256(done[-1].rstrip(b"\n")).hexdigest() if done else None
        done.append(json.dumps({**json.loads(line), "previous": previous}).encode() + b"\n")
    return done


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], r":3: is entry 4, so entries are missing or moved"),
        (lambda lines: renumbered([*lines[:2], *lines[3:]]), r":3: does not follow the entry before it"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], r":2: is entry 3"),
        (lambda lines: [lines[0].replace(b'"user": "', b'"user": "x'), *lines[1:]], r":2: does not follow .* edited"),
        (lambda lines: [*lines[:3], b"{}\n", *lines[3:]], r":4: is no entry of this schema"),
        (lambda lines: chained([*lines[:2], *lines[3:]]), r":4: is not the end that manifest.json names"),
        (lambda lines: chained([lines[0].replace(b'"user": "', b'"user": "x'), *lines[1:]]), r":5: is not the end"),
        (lambda lines: lines[:-1], r":4: is not the end that manifest.json names, so it was cut"),
        (lambda lines: lines[:-2], r":3: is not the end"),
        (lambda lines: [*lines, b'{"torn'], r":5: is not the end"),
        (lambda lines: chained([*lines, lines[1]]), r":6: is not the end"),
        (lambda lines: [], r"audit-log\.jsonl: is not the end"),
    ],
    ids=range(12),
)
def test_verify_says_where_a_finished_runs_log_breaks(
    engine: Command, run: Run, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    log_of(run).write_bytes(b"".join(change(lines_of(run))))
    error = engine("audit-log", "verify", "run-001", "--artifacts", run.folder.parent).error
    assert re.search(words, error), error
    with pytest.raises(RunError, match=words):
        run.verify()


def test_a_lost_log_is_noticed(engine: Command, run: Run) -> None:
    log_of(run).unlink()
    assert (
        "audit-log.jsonl: cannot be read (No such file"
        in engine("audit-log", "verify", "run-001", "--artifacts", run.folder.parent).error
    )
    with pytest.raises(RunError, match=r"audit-log\.jsonl: cannot be read"):
        run.verify()


def test_a_manifest_that_disowns_the_log_is_noticed(engine: Command, run: Run) -> None:
    manifest = read_json(run.folder / "manifest.json") | {"audit_log": None}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    error = engine("audit-log", "verify", "run-001", "--artifacts", run.folder.parent).error
    assert "is not the end that manifest.json names" in error


def test_a_log_that_holds_says_so_with_the_last_hash(engine: Command, run: Run) -> None:
    said = engine("audit-log", "verify", "run-001", "--artifacts", run.folder.parent).success
    last = hashlib.sha256(lines_of(run)[-1].rstrip(b"\n")).hexdigest()
    assert said == f"run-001: its audit log holds: 5 entries, the last is {last}\n"
    shown = engine("audit-log", "show", "run-001", "--artifacts", run.folder.parent).success.splitlines()
    assert shown[-1] == said.rstrip("\n")
    assert [line.split()[0] for line in shown[:-1]] == ["1", "2", "3", "4", "5"]
    assert "federated round 2: of hospital-a, hospital-b and hospital-c: hospital-a " in shown[2]


def test_a_run_from_before_there_were_logs_verifies_and_has_none(
    engine: Command, copy_run: Callable[[Path], Path], tmp_path: Path
) -> None:
    run = Run(copy_run(tmp_path / "artifacts" / "run-007"))
    run.verify()
    for command in ("verify", "show"):
        error = engine("audit-log", command, "run-007", "--artifacts", tmp_path / "artifacts").error
        assert f"{run.folder}: no audit log" in error


def test_the_repositorys_own_runs_say_that_they_have_none(engine: Command) -> None:
    assert "no audit log" in engine("audit-log", "verify", "run-001", "--artifacts", PROJECT / "artifacts").error


# --- kills and resumes ---------------------------------------------------------------------------------------------


def stopped_run(data: FederationData, artifacts: Path, batches: int) -> Run:
    def stop(progress: object) -> None:
        nonlocal batches
        batches -= 1
        if batches == 0:
            raise Killed

    run = start_run(data, "federations/phantoms.toml", artifacts)
    with pytest.raises(Killed):
        train_run(run, data, stop)
    return run


def test_a_stop_and_its_resume_are_told_and_a_torn_line_is_put_right(
    engine: Command, phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    run = stopped_run(tiny_data, tmp_path, batches=25)
    whole = events(find_run(phantom_run, "run-001"))
    n_done = len(events(run)) - 2
    assert 0 < n_done < 3
    with log_of(run).open("ab") as stream:
        stream.write(b'{"schema_version": 1, "number"')
    said = engine("audit-log", "verify", "run-001", "--artifacts", tmp_path).success
    assert "the run is not finished, so nothing says where the log must end; after it 30 bytes of a line" in said
    done = train_run(reopen_run(tmp_path, "run-001"), tiny_data)
    done.verify()
    told = events(done)
    assert told[1 : 1 + n_done] == whole[1 : 1 + n_done]
    stop, resume = told[1 + n_done : 3 + n_done]
    assert stop == Stopped(reason="Killed")
    assert (resume.after_round, resume.torn_bytes) == (n_done, 30)
    assert told[3 + n_done : -1] == whole[1 + n_done : -1]


def test_a_round_lost_between_the_log_and_its_checkpoint_is_told_twice_and_alike(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_round = Checkpoint.write_round

    def die_in_round_2(self: Checkpoint, state: TrainingState, lines: Any) -> None:
        if state.round == 2:
            raise Killed
        write_round(self, state, lines)

    run = start_run(tiny_data, "federations/phantoms.toml", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write_round", die_in_round_2)
        with pytest.raises(Killed):
            train_run(run, tiny_data)
    told = events(train_run(reopen_run(tmp_path, "run-001"), tiny_data))
    rounds = [what for what in told if isinstance(what, RoundDone)]
    assert [done.round for done in rounds] == [1, 2, 2, 3]
    assert rounds[1] == rounds[2]
    resumed = told.index(rounds[1]) + 2
    assert isinstance(told[resumed], Resumed)
    assert told[resumed].after_round == 1


def test_an_edited_log_is_not_gone_on_with(tiny_data: FederationData, tmp_path: Path) -> None:
    run = stopped_run(tiny_data, tmp_path, batches=25)
    log_of(run).write_bytes(b"".join(lines_of(run)[1:]))
    with pytest.raises(RunError, match=r"audit-log\.jsonl:1: is entry 2, so entries are missing"):
        train_run(reopen_run(tmp_path, "run-001"), tiny_data)


def test_a_log_lost_before_a_resume_is_begun_anew_and_says_what_it_lacks(
    engine: Command, tiny_data: FederationData, tmp_path: Path
) -> None:
    run = stopped_run(tiny_data, tmp_path, batches=25)
    log_of(run).unlink()
    done = train_run(reopen_run(tmp_path, "run-001"), tiny_data)
    done.verify()
    error = engine("audit-log", "verify", "run-001", "--artifacts", tmp_path).error
    assert "audit-log.jsonl:1: is 'resumed', so how the run began is missing" in error


def test_settings_changed_under_an_unfinished_run_are_noticed(
    engine: Command, tiny_data: FederationData, tmp_path: Path
) -> None:
    run = stopped_run(tiny_data, tmp_path, batches=5)
    config = (run.folder / "config.json").read_text()
    (run.folder / "config.json").write_text(config.replace('"rounds": 3', '"rounds": 2'))
    error = engine("audit-log", "verify", "run-001", "--artifacts", tmp_path).error
    assert "config.json: is not the file that audit-log.jsonl:1 names" in error


def test_the_torn_tail_is_written_over_whatever_its_length(tmp_path: Path) -> None:
    path = tmp_path / "audit-log.jsonl"
    log = AuditLog(path)
    log.append(Stopped(reason="first"), AT)
    for torn in (b"{", b"x" * 5000):
        with path.open("ab") as stream:
            stream.write(torn)
        again = AuditLog(path)
        assert again.torn_bytes == len(torn)
        again.append(Stopped(reason="next"), AT)
        assert read_log(path).torn == b""
    assert [entry.number for entry in read_log(path).entries] == [1, 2, 3]


def test_a_full_disk_is_one_line_and_the_log_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "audit-log.jsonl"
    log = AuditLog(path)
    log.append(Stopped(reason="first"), AT)
    before = log.last
    path.chmod(0o400)
    path.rename(tmp_path / "kept")
    path.mkdir()  # nothing can be written there, whoever asks
    with pytest.raises(RunError, match="cannot write"):
        log.append(Stopped(reason="second"), AT)
    assert log.last == before
