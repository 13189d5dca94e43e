"""Whole runs with a strategy, a compression or a frozen backbone: stopped and resumed, and what they write."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.aggregation_config import CommunicationConfig, FedAdamConfig, FedBNConfig, FedPerConfig, ScaffoldConfig
from engine.data.federation_data import FederationData
from engine.errors import ModelError
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.publishing.publish import publish_run
from engine.publishing.run_panel import open_run_panel, run_models
from engine.results.rounds import ALL, summaries
from engine.results.run_folder import Progress, Run, find_run
from engine.sections import ModelConfig
from tests.test_training_run import Killed, weights_of

RESNET = ModelConfig(image_size_px=32)
CASES = {
    "scaffold": {"aggregation": ScaffoldConfig()},
    "fedadam": {"aggregation": FedAdamConfig()},
    "fedbn": {"aggregation": FedBNConfig(), "model": RESNET, "training": {"rounds": 2, "batch_size": 64}},
    "topk": {"communication": CommunicationConfig(compression="topk", fraction=0.05)},
    "scaffold-int8": {"aggregation": ScaffoldConfig(), "communication": CommunicationConfig(compression="int8")},
}


def changed(data: FederationData, *, arms: tuple[str, ...] = ("federated",), **sections: object) -> FederationData:
    training = data.federation.training.model_copy(
        update={"rounds": 3, "batch_size": 16, **sections.pop("training", {})}
    )  # type: ignore[dict-item]
    federation = data.federation.model_copy(update={"training": training, "arms": arms, **sections})
    return dataclasses.replace(data, federation=federation)


def run_of(data: FederationData, artifacts: Path) -> Run:
    return train_run(start_run(data, "federations/phantoms.toml", artifacts), data)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_with_state_resumes_to_the_same_end(case: str, tiny_data: FederationData, tmp_path: Path) -> None:
    data = changed(tiny_data, **CASES[case])  # type: ignore[arg-type]
    whole = run_of(data, tmp_path / "whole")

    def stop_in_the_last_round(progress: Progress) -> None:
        if progress.round == progress.rounds and progress.hospital == "hospital-b":
            raise Killed

    run = start_run(data, "federations/phantoms.toml", tmp_path / "stopped")
    with pytest.raises(Killed):
        train_run(run, data, stop_in_the_last_round)
    resumed = train_run(reopen_run(tmp_path / "stopped", "run-001"), data)
    expected, got = weights_of(whole), weights_of(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert resumed.read_json("evaluation.json") == whole.read_json("evaluation.json")
    assert resumed.read_json("communication.json") == whole.read_json("communication.json")


def test_private_parts_make_personal_models_and_no_federated_one(tiny_data: FederationData, tmp_path: Path) -> None:
    data = changed(tiny_data, aggregation=FedPerConfig(), training={"rounds": 2})
    run = run_of(data, tmp_path)
    run.verify(with_weights=True)
    shared = load_file(run.weights("global"))
    assert not {"head.weight", "head.bias"} & shared.keys()
    personal = {h.id: load_file(run.weights(f"personal/{h.id}")) for h in data.federation.hospital}
    for tensors in personal.values():
        assert tensors.keys() == shared.keys() | {"head.weight", "head.bias"}
        assert all(torch.equal(tensors[name], tensor) for name, tensor in shared.items())
    assert not torch.equal(personal["hospital-a"]["head.weight"], personal["hospital-b"]["head.weight"])
    scores = run.read_json("evaluation.json")["splits"]["validation"]
    assert scores.keys() == {"global", *(f"personal/{hospital}" for hospital in personal)}
    for hospital in personal:
        own = scores[f"personal/{hospital}"][hospital]
        assert scores["global"][hospital] == own, "a hospital's images are read by its own model"
    best = next(line for line in summaries(run.rounds(), "global")[::-1] if line.is_best_so_far)
    assert best.validation is not None
    assert scores["global"][ALL]["macro_f1"] == pytest.approx(best.validation.macro_f1, abs=1e-9)
    assert run_models(run) == [f"personal/{hospital}" for hospital in personal]
    assert open_run_panel(run).models == tuple(run_models(run))
    down = sum(tensor.nbytes for tensor in shared.values())
    assert run.read_json("communication.json")["hospitals"]["hospital-a"]["bytes_up"] == 2 * down
    with pytest.raises(ModelError, match=r"fedper.*leaves each hospital its own head, so no one federated model"):
        publish_run(run, "phantoms", data, tmp_path / "models")


def test_only_the_federated_arm_has_the_strategy_and_the_compression(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    """hospital-a alone trains to the same weights whatever the federation does."""
    data = changed(
        tiny_data,
        arms=("local",),
        training={"batch_size": tiny_data.federation.training.batch_size},
        aggregation=FedAdamConfig(),
        communication=CommunicationConfig(compression="int8"),
    )
    run, plain = run_of(data, tmp_path), find_run(phantom_run, "run-001")
    first, second = (load_file(one.weights("local/hospital-a")) for one in (run, plain))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_compression_is_named_and_counted(tiny_data: FederationData, tmp_path: Path) -> None:
    data = changed(tiny_data, communication=CommunicationConfig(compression="int8"), training={"rounds": 1})
    traffic = run_of(data, tmp_path).read_json("communication.json")
    assert traffic["compression"] == "int8"
    for counted in traffic["hospitals"].values():
        assert 0.2 < counted["bytes_up"] / counted["bytes_down"] < 0.27
