"""A whole run: its folder, its figures, and that stopping it changes nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from engine.config import load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.phantoms import write_phantoms
from engine.errors import ConfigError, DataError, RunError
from engine.federation.arms import plan_models
from engine.federation.progress import ProgressReport
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.results.metrics import score
from engine.results.rounds import ALL, best_round, read_rounds, summaries
from engine.results.run_folder import Progress, Run, find_run

PROJECT = Path(__file__).resolve().parent.parent
MODELS = ["global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central"]


def run_again(data: FederationData, artifacts: Path) -> Run:
    return train_run(start_run(data, "federations/phantoms.toml", artifacts), data)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted((run.folder / "weights").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_the_run_folder_holds_what_the_design_fixes(phantom_run: Path) -> None:
    names = {path.relative_to(phantom_run / "run-001").as_posix() for path in (phantom_run / "run-001").rglob("*.*")}
    locals_ = {f"weights/local-hospital-{letter}.safetensors" for letter in "abc"}
    assert names == {
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
        "weights/global-best.safetensors",
        "weights/global-last.safetensors",
        "weights/central.safetensors",
        "training.log",
        "audit-log.jsonl",
        "manifest.json",
        *locals_,
    }
    find_run(phantom_run, "run-001").verify(with_weights=True)


def test_every_model_trains_equally_long_on_the_same_splits(phantom_run: Path, tiny_data: FederationData) -> None:
    lines = find_run(phantom_run, "run-001").rounds()
    assert list(dict.fromkeys(line.model for line in lines)) == MODELS
    assert {model: len(summaries(lines, model)) for model in MODELS} == dict.fromkeys(MODELS, 3)
    seen = {model: summaries(lines, model)[0].fit.n_images for model in MODELS}  # type: ignore[union-attr]
    n_train = sum(split.part == "train" for split in tiny_data.splits)
    assert seen["global"] == seen["central"] == n_train
    assert sum(seen[model] for model in MODELS if model.startswith("local/")) == n_train


def test_predictions_cover_every_validation_and_test_image_once_per_model(
    phantom_run: Path, tiny_data: FederationData
) -> None:
    predictions = find_run(phantom_run, "run-001").predictions()
    expected = {(split.part, split.image.path) for split in tiny_data.splits if split.part in ("validation", "test")}
    for _, rows in predictions.groupby("model"):
        assert len(rows) == len(expected)
        assert set(zip(rows["split"], rows["path"], strict=True)) == expected
    assert np.stack(list(predictions["logits"])).dtype == np.float32


def test_the_evaluation_follows_from_the_predictions(phantom_run: Path, tiny_data: FederationData) -> None:
    run = find_run(phantom_run, "run-001")
    predictions, classes = run.predictions(), tiny_data.federation.classes
    rows = predictions.query("model == 'central' and split == 'test' and hospital == 'hospital-b'")
    labels = np.array([classes.index(label) for label in rows["label"]])
    again = score(np.stack(list(rows["logits"])), labels, classes)
    written = run.read_json("evaluation.json")["splits"]["test"]["central"]["hospital-b"]
    assert {key: written[key] for key in again} == again


def test_the_best_rounds_weights_are_the_ones_that_were_scored(phantom_run: Path, tiny_data: FederationData) -> None:
    run = find_run(phantom_run, "run-001")
    lines = run.rounds()
    best = next(line for line in summaries(lines, "global") if line.round == best_round(lines, "global"))
    scored = run.read_json("evaluation.json")["splits"]["validation"]["global"][ALL]
    assert best.validation is not None
    assert scored["macro_f1"] == pytest.approx(best.validation.macro_f1, abs=1e-9)
    assert scored["n_images"] == best.validation.n_images


def test_communication_counts_the_tensors_that_travelled(phantom_run: Path) -> None:
    run = find_run(phantom_run, "run-001")
    n_bytes = sum(tensor.nbytes for tensor in load_file(run.weights("global")).values())
    hospitals = run.read_json("communication.json")["hospitals"]
    assert hospitals == {
        f"hospital-{letter}": {"bytes_down": 3 * n_bytes, "bytes_up": 3 * n_bytes, "rounds": 3} for letter in "abc"
    }


def test_the_history_has_the_reference_systems_keys(phantom_run: Path) -> None:
    history = find_run(phantom_run, "run-001").read_json("training_history.json")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(set(row) == {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"} for row in history)
    table = pd.read_csv(phantom_run / "run-001" / "metrics" / "fit_client_metrics.csv")
    assert list(table.columns[:4]) == ["round", "client_id", "num_examples", "loss"]
    assert len(table) == 9


def test_the_same_federation_trains_to_the_same_weights(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    first, second = weights_of(find_run(phantom_run, "run-001")), weights_of(run_again(tiny_data, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first | second)


class Killed(BaseException):
    """Stands for a kill: no handler in the engine may catch it."""


@pytest.mark.parametrize("batches", [1, 40, 75])
def test_a_stopped_run_resumes_to_the_same_end(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path, batches: int
) -> None:
    left = batches

    def stop_later(progress: Progress) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    run = start_run(tiny_data, "federations/phantoms.toml", tmp_path)
    with pytest.raises(Killed):
        train_run(run, tiny_data, stop_later)
    with (run.folder / "rounds.jsonl").open("a") as stream:
        stream.write('{"torn')
    (run.folder / "weights").mkdir(exist_ok=True)
    for left_over in (".evaluation.json.99.partial", "weights/.central.safetensors.99.partial"):
        (run.folder / left_over).write_text("half a file")
    assert not Run(run.folder).is_finished
    resumed = train_run(reopen_run(tmp_path, "run-001"), tiny_data)
    whole = find_run(phantom_run, "run-001")
    expected, got = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected | got)
    assert resumed.read_json("evaluation.json") == whole.read_json("evaluation.json")
    assert [(line.model, line.round, line.hospital) for line in resumed.rounds()] == [
        (line.model, line.round, line.hospital) for line in whole.rounds()
    ]
    assert not list(resumed.folder.glob("checkpoint*"))
    assert not list(resumed.folder.rglob(".*"))
    assert not list(tmp_path.glob(".*")), "the lock goes with the training"
    assert set(resumed.manifest.files) == set(whole.manifest.files)


def test_a_run_stopped_before_its_manifest_only_lacks_the_manifest(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    shutil.copytree(phantom_run / "run-001", tmp_path / "run-001")
    (tmp_path / "run-001" / "manifest.json").unlink()
    (tmp_path / "run-001" / "checkpoint.done").mkdir()
    run = train_run(reopen_run(tmp_path, "run-001"), tiny_data, lambda progress: pytest.fail("trained again"))
    run.verify(with_weights=True)
    assert not (run.folder / "checkpoint.done").exists()


def test_progress_names_the_hospitals_that_a_round_asked_and_ends_at_its_total(
    tiny_data: FederationData, tmp_path: Path
) -> None:
    training = tiny_data.federation.training.model_copy(update={"hospital_fraction": 0.6})
    some = tiny_data.federation.model_copy(update={"training": training, "arms": ("federated",)})
    heard: list[Progress] = []
    data = dataclasses.replace(tiny_data, federation=some)
    run = train_run(start_run(data, "federations/phantoms.toml", tmp_path), data, heard.append)
    assert heard[-1].images_done == heard[-1].images_total
    for progress in heard:
        answered = [line.hospital for line in run.rounds() if line.round == progress.round and line.fit][:-1]
        assert list(progress.hospitals) == answered
        here = answered.index(progress.hospital)
        states = ["trained"] * here + ["training"] + ["waiting"] * (len(answered) - here - 1)
        assert list(progress.hospitals.values()) == states


def test_rounds_of_less_than_a_second_are_seen_at_work_too(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 100.0
    monkeypatch.setattr("engine.federation.progress.time.monotonic", lambda: clock)
    file = tmp_path / "progress.json"
    plan = plan_models(tiny_data)[0]
    training = tiny_data.federation.training
    report = ProgressReport(
        file, {"global": plan.sizes}, training, rounds_done={"global": 0}, on_training=lambda progress: None
    )
    report.begin("global")
    seen = set()
    for number in range(1, 13):
        report.asked(list(plan.training_sets))
        for hospital in plan.training_sets:
            clock += 0.1
            report.on_images(number, hospital, 4)
            if number > 1:  # the very first image is always told
                seen.update(json.loads(file.read_text())["hospitals"].values())
            report.answered(hospital, usable=True)
        assert set(json.loads(file.read_text())["hospitals"].values()) == {"trained"}
    assert seen == {"waiting", "training", "trained"}


def test_two_trainings_never_share_a_run_folder(tiny_data: FederationData, tmp_path: Path) -> None:
    run = start_run(tiny_data, "federations/phantoms.toml", tmp_path)

    def train_beside(progress: Progress) -> None:
        with pytest.raises(RunError, match="is being trained by another process"):
            train_run(Run(run.folder), tiny_data)
        raise Killed

    with pytest.raises(Killed):
        train_run(run, tiny_data, train_beside)


def test_a_finished_run_is_not_resumed(phantom_run: Path) -> None:
    with pytest.raises(RunError, match="is finished; there is nothing to resume"):
        reopen_run(phantom_run, "run-001")


def test_changed_images_are_noticed_before_a_resume(
    phantom_root: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    run = start_run(tiny_data, "federations/phantoms.toml", tmp_path / "artifacts")
    root = tmp_path / "phantoms"
    shutil.copytree(phantom_root, root)
    next(root.glob("hospital-a/glioma/*.png")).unlink()
    with pytest.raises(RunError, match="no longer those it began with"):
        train_run(run, read_federation_data(tiny_data.federation, root))


def test_a_hospital_without_training_images_is_named(tiny_data: FederationData, tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    shutil.copytree(tiny_data.root, root)
    shutil.rmtree(root / "hospital-b")
    with pytest.raises(DataError, match=r"Phantom Coast.*folder 'hospital-b' is missing"):
        start_run(read_federation_data(tiny_data.federation, root), "x.toml", tmp_path / "artifacts")
    assert not (tmp_path / "artifacts").exists()


def test_keep_rounds_keeps_the_global_weights_of_every_round(tiny_data: FederationData, tmp_path: Path) -> None:
    federation = tiny_data.federation
    training = federation.training.model_copy(update={"rounds": 2, "keep_rounds": True})
    changed = federation.model_copy(update={"training": training, "arms": ("federated",)})
    data = read_federation_data(changed, tiny_data.root)
    run = run_again(data, tmp_path)
    kept = sorted(path.name for path in (run.folder / "weights" / "rounds").iterdir())
    assert kept == ["global-001.safetensors", "global-002.safetensors"]
    last = load_file(run.folder / "weights" / "global-last.safetensors")
    assert all(
        torch.equal(last[name], tensor)
        for name, tensor in load_file(run.folder / "weights" / "rounds" / "global-002.safetensors").items()
    )


def test_rounds_jsonl_is_valid_json_line_by_line(phantom_run: Path) -> None:
    path = phantom_run / "run-001" / "rounds.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert len(rows) == len(read_rounds(path))
    assert all(row["schema_version"] == 1 for row in rows)


@pytest.mark.slow
def test_golden_federation_learns_what_hospitals_alone_do_not(tmp_path: Path) -> None:
    """Tolerant golden figures of the phantom federation at a small size; they move only if the algorithm does."""
    settings = ("model.image_size_px=48", "training.rounds=14")
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", settings)
    write_phantoms(tmp_path / "phantoms", seed=7, size_px=64)
    run = run_again(read_federation_data(federation, tmp_path / "phantoms"), tmp_path / "artifacts")
    scores = run.read_json("evaluation.json")["splits"]
    f1 = {
        model: (scores["validation"][model][ALL]["macro_f1"] + scores["test"][model][ALL]["macro_f1"]) / 2
        for model in MODELS
    }
    assert f1["global"] == pytest.approx(0.92, abs=0.1)
    assert f1["central"] == pytest.approx(0.96, abs=0.08)
    assert f1["global"] > 0.05 + np.mean([f1[model] for model in MODELS if model.startswith("local/")])


@pytest.mark.parametrize("damage", ["{", "{}", "[]", '{"round": 1, "best_round": 9}'])
def test_a_damaged_checkpoint_is_one_clear_line(tiny_data: FederationData, tmp_path: Path, damage: str) -> None:
    run = start_run(tiny_data, "federations/phantoms.toml", tmp_path)
    (run.folder / "checkpoint").mkdir()
    (run.folder / "checkpoint" / "global.json").write_text(damage, encoding="utf-8")
    with pytest.raises(
        RunError, match=r"global\.json: is damaged .*train anew|global@0001\.safetensors: cannot be read"
    ):
        train_run(run, tiny_data)


def test_a_device_or_weights_that_are_not_here_leave_no_run_folder(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    absent = {
        "training": tiny_data.federation.training.model_copy(update={"device": "cuda"}),
        "model": tiny_data.federation.model.model_copy(update={"weights": str(tmp_path / "absent.pth")}),
    }
    for key, value in absent.items():
        federation = tiny_data.federation.model_copy(update={key: value})
        with pytest.raises(ConfigError):
            start_run(dataclasses.replace(tiny_data, federation=federation), "x.toml", tmp_path / "artifacts")
    assert not list((tmp_path / "artifacts").glob("*"))


def test_a_training_that_diverges_says_what_to_lower(tiny_data: FederationData, tmp_path: Path) -> None:
    training = tiny_data.federation.training.model_copy(update={"learning_rate": 1e30, "optimizer": "sgd"})
    federation = tiny_data.federation.model_copy(update={"training": training})
    data = dataclasses.replace(tiny_data, federation=federation)
    with pytest.raises(RunError, match=r"lower training\.learning_rate"):
        train_run(start_run(data, "federations/phantoms.toml", tmp_path), data)
