"""What a training will cost: the bytes are those that a run then counts, the time is what earlier runs measured."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import load_federation
from engine.data.federation_data import FederationData
from engine.errors import ConfigError
from engine.federation.estimate import estimate_training
from engine.federation.training_run import start_run, train_run
from engine.results.estimate import Estimate
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from tests.conftest import TINY, Command

PROJECT = Path(__file__).resolve().parent.parent
MODELS = ("global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central")


def with_settings(data: FederationData, *settings: str) -> FederationData:
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", [*TINY, *settings])
    return dataclasses.replace(data, federation=federation)


def counted(run: Run) -> object:
    return run.read_json("communication.json")["hospitals"]


def foretold(estimate: Estimate) -> object:
    return estimate.model_dump()["hospitals"]


def test_bytes_are_those_that_the_run_counted(phantom_run: Path, tiny_data: FederationData) -> None:
    assert foretold(estimate_training(tiny_data, phantom_run)) == counted(Run(phantom_run / "run-001"))


@pytest.mark.parametrize(
    "settings",
    [
        ("communication.compression='int8'", "training.hospital_fraction=0.6"),
        ("communication.compression='topk'", "aggregation.strategy='fedper'"),
        ("communication.compression='fp16'", "aggregation.strategy='scaffold'", "model.architecture='patch-cnn'"),
    ],
)
def test_so_they_are_compressed_beside_a_strategys_own_and_without_private_tensors(
    settings: tuple[str, ...], tiny_data: FederationData, tmp_path: Path
) -> None:
    data = with_settings(tiny_data, *settings, "training.rounds=2", "arms=['federated']")
    estimate = estimate_training(data, tmp_path)
    run = train_run(start_run(data, "federations/phantoms.toml", tmp_path), data)
    assert foretold(estimate) == counted(run)


def test_and_where_hospitals_learn_without_labels(ssl_run: Run, ssl_data: FederationData) -> None:
    assert foretold(estimate_training(ssl_data, ssl_run.folder.parent)) == counted(ssl_run)


def test_without_a_federated_arm_nothing_travels(tiny_data: FederationData, tmp_path: Path) -> None:
    estimate = estimate_training(with_settings(tiny_data, "arms=['central']"), tmp_path)
    assert estimate.hospitals == {}
    assert estimate.not_timed == ("central",)


@pytest.fixture
def timed(copy_run: Callable[[Path], Path], tmp_path: Path) -> Path:
    """An artifacts folder whose run trained 100 images in a second and took another second beside it every round."""
    run = copy_run(tmp_path / "artifacts" / "run-001")
    rows = [json.loads(row) for row in (run / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        if row["fit"]:
            row["fit"]["seconds"] = row["fit"]["n_images"] / 100
        if row["hospital"] == ALL:
            row["seconds"] = row["fit"]["seconds"] + 1
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.parent


@pytest.mark.parametrize(("rounds", "epochs"), [(3, 1), (6, 1), (3, 4)])
def test_time_is_measured_seconds_by_images_epochs_and_rounds(
    rounds: int, epochs: int, timed: Path, tiny_data: FederationData
) -> None:
    data = with_settings(tiny_data, f"training.rounds={rounds}", f"training.local_epochs={epochs}")
    estimate = estimate_training(data, timed)
    n_images = estimate.n_training_images
    # Federated and pooled train on all images, the hospitals alone on all of them together.
    assert estimate.seconds == pytest.approx(rounds * (3 * epochs * n_images / 100 + len(MODELS)))
    assert estimate.timed_by == dict.fromkeys(MODELS, "run-001")


def test_fewer_hospitals_in_a_round_take_less(timed: Path, tiny_data: FederationData) -> None:
    whole, part = (
        estimate_training(with_settings(tiny_data, "arms=['federated']", *more), timed)
        for more in ((), ("training.hospital_fraction=0.34",))
    )
    assert part.seconds is not None
    assert whole.seconds is not None
    assert 3 < part.seconds < whole.seconds  # three rounds, each a second beside training


@pytest.mark.parametrize(
    "setting", ["training.batch_size=4", "model.image_size_px=64", "model.architecture='resnet18'"]
)
def test_other_work_is_not_timed(setting: str, timed: Path, tiny_data: FederationData) -> None:
    estimate = estimate_training(with_settings(tiny_data, setting), timed)
    assert estimate.seconds is None
    assert estimate.not_timed == MODELS


def test_a_private_training_is_not_timed_by_one_without_noise(timed: Path, tiny_data: FederationData) -> None:
    data = with_settings(tiny_data, "privacy.epsilon=8", "privacy.delta=0.001")
    estimate = estimate_training(data, timed)
    assert estimate.seconds is None
    assert data.federation.training.batch_size == 8
    assert estimate.memory_bytes["gradients of single images"] == 8 * estimate.memory_bytes["gradients"]


def test_what_a_training_is_refused_for_is_refused_here(timed: Path, tiny_data: FederationData) -> None:
    with pytest.raises(ConfigError, match="promises nothing to one of"):
        estimate_training(with_settings(tiny_data, "privacy.epsilon=8", "privacy.delta=0.09"), timed)


def test_another_machine_is_not_timed_and_one_arm_alone_is_not_all(timed: Path, tiny_data: FederationData) -> None:
    lines = (timed / "run-001" / "rounds.jsonl").read_text().splitlines(keepends=True)
    (timed / "run-001" / "rounds.jsonl").write_text("".join(line for line in lines if '"model": "global"' in line))
    estimate = estimate_training(tiny_data, timed)
    assert estimate.seconds is None
    assert estimate.not_timed == MODELS[1:]
    file = timed / "run-001" / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cpu_cores": 1000}))
    assert estimate_training(tiny_data, timed).not_timed == MODELS


def test_memory_says_what_it_counts(tiny_data: FederationData, tmp_path: Path) -> None:
    plain = estimate_training(tiny_data, tmp_path).memory_bytes
    assert plain["decoded images"] == sum(len(one.images) for one in tiny_data.holdings) * 32 * 32
    assert plain["optimiser state"] == 2 * plain["gradients"]
    sgd = with_settings(tiny_data, "training.optimizer='sgd'", "training.momentum=0", "aggregation.strategy='median'")
    memory = estimate_training(sgd, tmp_path).memory_bytes
    assert memory["optimiser state"] == 0
    assert memory["a round's updates"] == 3 * memory["weights"]


def test_the_command_answers_as_json_and_refuses_in_one_line(engine: Command, phantom_root: Path) -> None:
    file = PROJECT / "federations" / "phantoms.toml"
    tiny = [f"--set={setting}" for setting in TINY]
    answer = engine("estimate", file, *tiny, "--data", phantom_root, "--json").success
    assert Estimate.model_validate_json(answer).not_timed == MODELS
    assert "not known" in engine("estimate", file, *tiny, "--data", phantom_root).success
    assert "needs at least 5 hospitals" in engine("estimate", file, "--set", "aggregation.strategy=krum").error
    assert "no such data folder" in engine("estimate", file, "--data", "nowhere").error
