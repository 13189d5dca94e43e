"""Run folders: numbered, finished by their manifest, and any change to them noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.errors import RunError
from engine.results.files import read_json, sha256_of, write_json
from engine.results.run_folder import (
    Run,
    artifacts_folder,
    create_run,
    find_run,
    list_runs,
    weights_name,
    write_table,
)

FILES = {
    "config.json",
    "environment.json",
    "audit.json",
    "dataset_stats.json",
    "dataset_splits.json",
    "label_map.json",
    "rounds.jsonl",
    "training_history.json",
    "metrics/fit_metrics.csv",
    "metrics/eval_metrics.csv",
    "metrics/fit_client_metrics.csv",
    "metrics/eval_client_metrics.csv",
    "predictions.parquet",
    "evaluation.json",
    "communication.json",
    "training.log",
    "weights/global-best.safetensors",
    "weights/global-last.safetensors",
    "weights/central.safetensors",
    "weights/local-hospital-a.safetensors",
    "weights/local-hospital-b.safetensors",
    "weights/local-hospital-c.safetensors",
}
MODELS = ("global", "central", "local/hospital-a", "local/hospital-b", "local/hospital-c")


@pytest.fixture
def run(phantom_run: Path, tmp_path: Path) -> Run:
    """A copy of the finished run, to damage."""
    shutil.copytree(phantom_run / "run-001", tmp_path / "run-001")
    return Run(tmp_path / "run-001")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes), encoding="utf-8")


def test_a_finished_run_holds_what_the_contract_lists_and_its_manifest_all_of_it(run: Run) -> None:
    present = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert present == FILES | {"audit-log.jsonl", "manifest.json"}
    assert set(run.manifest.files) == FILES


def test_the_manifest_holds_each_files_hash_and_size(run: Run) -> None:
    for name, entry in run.manifest.files.items():
        assert (entry.sha256, entry.bytes) == (sha256_of(run.folder / name), (run.folder / name).stat().st_size)


def test_weights_alone_are_detached(run: Run) -> None:
    detached = {name for name, entry in run.manifest.files.items() if entry.detached}
    assert detached == {name for name in FILES if name.startswith("weights/")}


def test_an_untouched_run_verifies(run: Run) -> None:
    run.verify(with_weights=True)
    assert run.is_finished
    assert run.progress() is None


@pytest.mark.parametrize("name", sorted(name for name in FILES if not name.startswith("weights/")))
def test_one_changed_byte_is_noticed_and_the_file_named(run: Run, name: str) -> None:
    flip_a_byte(run.folder / name)
    with pytest.raises(RunError) as caught:
        run.verify()
    assert str(caught.value).startswith(f"{run.folder / name}: is not as it was written")


def test_an_appended_line_is_noticed(run: Run) -> None:
    with (run.folder / "training.log").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    with pytest.raises(RunError, match=r"training\.log: is not as it was written"):
        run.verify()


@pytest.mark.parametrize("name", ["config.json", "predictions.parquet", "metrics/fit_metrics.csv"])
def test_a_missing_file_is_noticed_and_named(run: Run, name: str) -> None:
    (run.folder / name).unlink()
    with pytest.raises(RunError) as caught:
        run.verify()
    assert str(caught.value).startswith(f"{run.folder / name}: is missing; ")


def test_weights_may_be_absent(run: Run) -> None:
    shutil.rmtree(run.folder / "weights")
    run.verify()
    run.verify(with_weights=True)


@pytest.mark.parametrize("model", MODELS)
def test_absent_weights_say_that_they_are_not_on_this_machine(run: Run, model: str) -> None:
    assert run.weights(model).is_file()
    shutil.rmtree(run.folder / "weights")
    with pytest.raises(RunError, match="these weights are not on this machine"):
        run.weights(model)


def test_changed_weights_of_the_same_size_are_noticed_with_weights(run: Run) -> None:
    flip_a_byte(run.weights("central"))
    with pytest.raises(RunError, match=r"weights/central\.safetensors: is not as it was written"):
        run.verify(with_weights=True)


def test_weights_of_another_size_are_noticed_always(run: Run) -> None:
    path = run.weights("global")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"global-best\.safetensors: is not as it was written"):
        run.verify()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("global", "weights/global-best.safetensors"),
        ("central", "weights/central.safetensors"),
        ("local/north", "weights/local-north.safetensors"),
    ],
)
def test_where_a_models_weights_lie(model: str, name: str) -> None:
    assert weights_name(model) == name


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_newer_schema_is_refused_with_the_file_and_the_number(run: Run, name: str) -> None:
    change_json(run.folder / name, schema_version=2, something_new={"a": 1})
    with pytest.raises(RunError) as caught:
        _ = run.manifest if name == "manifest.json" else run.config
    assert str(caught.value).startswith(f"{run.folder / name}: has schema 2, unknown to this program")


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}'], ids=repr)
def test_a_damaged_description_is_refused_in_one_line(run: Run, name: str, content: bytes) -> None:
    (run.folder / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        _ = run.manifest if name == "manifest.json" else run.config
    message = str(caught.value)
    assert message.startswith(f"{run.folder / name}: ")
    assert message.endswith("the run folder is damaged, restore it from a copy")
    assert "\n" not in message
    assert ": :" not in message


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_damaged_predictions_are_refused(run: Run, content: bytes) -> None:
    (run.folder / "predictions.parquet").write_bytes(content)
    with pytest.raises(RunError, match=r"predictions\.parquet: cannot be read"):
        run.predictions()


def test_reading_a_missing_file_says_it_is_missing(run: Run) -> None:
    (run.folder / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"evaluation\.json: is missing"):
        run.read_json("evaluation.json")


def test_predictions_hold_every_validation_and_test_image_once_per_model(run: Run) -> None:
    held = {
        (entry["split"], entry["hospital"], entry["group"], entry["path"], entry["label"])
        for entry in run.read_json("dataset_splits.json")["images"]
        if entry["split"] != "train"
    }
    table = run.predictions()
    assert set(table["model"]) == set(MODELS)
    for _, rows in table.groupby("model"):
        found = list(zip(rows["split"], rows["hospital"], rows["group"], rows["path"], rows["label"], strict=True))
        assert len(found) == len(held)
        assert set(found) == held
    assert {len(logits) for logits in table["logits"]} == {4}
    assert {logits.dtype for logits in table["logits"]} == {np.dtype(np.float32)}


# --- unfinished ----------------------------------------------------------------------------------------------------


def test_a_run_without_a_manifest_is_unfinished_and_says_how_to_go_on(run: Run) -> None:
    (run.folder / "manifest.json").unlink()
    assert not run.is_finished
    with pytest.raises(RunError, match=r"is not finished \(no manifest\.json\); go on with train --resume run-001"):
        run.verify()


def test_an_unfinished_runs_progress_is_read(run: Run) -> None:
    progress = {
        "model": "global",
        "round": 2,
        "rounds": 3,
        "hospital": "hospital-a",
        "images_done": 10,
        "images_total": 40,
        "images_at_start": 0,
        "started_at": "2026-01-01T00:00:00+00:00",
        "updated_at": "2026-01-01T00:00:10+00:00",
        "hospitals": {"hospital-a": "training"},
    }
    write_json(run.folder / "checkpoint" / "progress.json", progress)
    found = run.progress()
    assert found is not None
    assert found.model_dump() == progress


# --- names ---------------------------------------------------------------------------------------------------------


def test_runs_are_numbered_from_one(tmp_path: Path) -> None:
    artifacts = tmp_path / "deep" / "artifacts"
    assert [create_run(artifacts).name for _ in range(3)] == ["run-001", "run-002", "run-003"]


@pytest.mark.parametrize(
    ("there", "new"), [("run-007", "run-008"), ("run-999", "run-1000"), ("run-1", "run-001"), ("other", "run-001")]
)
def test_the_next_run_follows_the_highest_number(tmp_path: Path, there: str, new: str) -> None:
    (tmp_path / there).mkdir()
    assert create_run(tmp_path).name == new


def test_a_file_in_the_way_of_a_number_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run-001").touch()
    assert create_run(tmp_path).name == "run-002"


def test_an_artifacts_folder_that_cannot_be_made_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="give --artifacts DIR"):
        create_run(tmp_path / "file" / "artifacts")


def test_runs_are_listed_by_number_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("run-1000", "run-002", "run-010", "run-x", "notes", ".run-003"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-004").touch()
    assert [run.name for run in list_runs(tmp_path)] == ["run-002", "run-010", "run-1000"]


def test_no_artifacts_folder_holds_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []


def test_an_unknown_run_says_which_command_lists_them(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run-005: no such run; `python -m engine runs` lists them"):
        find_run(tmp_path, "run-005")


@pytest.mark.parametrize("name", ["", "run-1", "latest", "../run-001", "run-001/", "run-001\n", "RUN-001"])
def test_what_is_no_runs_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match=r"is no run; runs are called run-001"):
        find_run(tmp_path, name)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [(Path("g"), "e", "g"), (None, "e", "e"), (None, "", "artifacts"), (None, None, "artifacts")],
)
def test_where_runs_lie(
    monkeypatch: pytest.MonkeyPatch, given: Path | None, environment: str | None, expected: str
) -> None:
    monkeypatch.delenv("CONSILIUM_ARTIFACTS", raising=False)
    if environment is not None:
        monkeypatch.setenv("CONSILIUM_ARTIFACTS", environment)
    assert artifacts_folder(given) == Path(expected)


# --- writing -------------------------------------------------------------------------------------------------------


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_table_without_rows_keeps_its_header(tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", [], ["round", "loss"])
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == "round,loss\n"


def test_a_run_under_another_name_is_refused(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run-006")
    with pytest.raises(RunError, match="holds run-001, copied or renamed"):
        Run(tmp_path / "run-006").verify()
