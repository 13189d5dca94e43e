"""What an encoder is worth: nested labels by group, a frozen encoder that stays frozen, and a random one beside it."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from engine.config import load_federation
from engine.data.federation_data import FederationData
from engine.data.labelled import labelled_part
from engine.errors import ConfigError, RunError
from engine.federation.arms import image_sets, plan_models
from engine.federation.finetune import fine_tuning
from engine.federation.probe import _principal_axes, _standardised, network_with, probe_run, read_encoders
from engine.federation.training_run import start_run, train_run
from engine.publishing.card import _recipe
from engine.publishing.meta import reference_meta, training_counts
from engine.results.files import write_json
from engine.results.probes import Probe
from engine.results.run_folder import Run, find_run
from engine.training.linear_probe import fit_linear, nearest_neighbours
from tests.conftest import PROJECT, TINY, Command
from ui.loaders import split_counts

PHANTOMS = PROJECT / "federations" / "phantoms.toml"
SETTINGS = (
    "model.architecture='patch-cnn'",  # it has BatchNorm
    "model.image_size_px=32",
    "training.rounds=1",
    "training.batch_size=32",
    "pretext.objective='rotation'",
)


@pytest.fixture(scope="module")
def data(tiny_data: FederationData) -> FederationData:
    return dataclasses.replace(tiny_data, federation=load_federation(PHANTOMS, SETTINGS))


@pytest.fixture(scope="module")
def run(data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(start_run(data, "federations/phantoms.toml", tmp_path_factory.mktemp("probed")), data)


def test_labels_are_whole_groups_nested_and_of_every_class(data: FederationData) -> None:
    train = [split for split in data.splits if split.part == "train"]
    parts = {fraction: labelled_part(train, fraction, seed=0) for fraction in (0.01, 0.1, 0.5, 1)}
    taken = [{(one.image.hospital, one.image.path) for one in part} for part in parts.values()]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(taken))
    assert len(taken[0]) < len(taken[1]) < len(taken[2]) < len(taken[3]) == len(train)
    for fraction, part in parts.items():
        groups = {one.group for one in part}
        assert len(part) == sum(one.group in groups for one in train), "whole groups"
        for label in data.federation.classes:
            held, n_taken = (sum(one.image.label == label for one in images) for images in (train, part))
            assert n_taken >= fraction * held * 0.9, "a group may hold several classes"
    other = labelled_part(train, 0.1, seed=1)
    assert {one.group for one in other} != {one.group for one in parts[0.1]}


def test_a_supervised_federation_learns_from_the_labelled_share_alone(tiny_data: FederationData) -> None:
    def sizes(*settings: str) -> dict[str, int]:
        federation = load_federation(PHANTOMS, ["model.image_size_px=32", *settings])
        data = dataclasses.replace(tiny_data, federation=federation)
        assert {h: len(s) for h, s in image_sets(data, "test").items()} == {
            h: len(s) for h, s in image_sets(tiny_data, "test").items()
        }
        (plan,) = (plan for plan in plan_models(data) if plan.model == "global")
        return {hospital: len(images) for hospital, images in plan.training_sets.items()}

    everything, tenth, half = sizes(), sizes("training.labelled_fraction=0.1"), sizes("training.labelled_fraction=0.5")
    for hospital, n_images in everything.items():
        assert 0 < tenth[hospital] < 0.4 * n_images, "whole groups, and one of each class"
        assert 0.5 * n_images <= half[hospital] < 0.8 * n_images


def test_a_run_counts_the_images_whose_labels_it_used(tiny_data: FederationData, tmp_path: Path) -> None:
    settings = ("training.rounds=1", "arms=['federated']", "training.labelled_fraction=0.1")
    data = dataclasses.replace(tiny_data, federation=load_federation(PHANTOMS, [*TINY, *settings]))
    run = train_run(start_run(data, "federations/phantoms.toml", tmp_path), data)
    train = [split for split in data.splits if split.part == "train"]
    used = [
        one
        for hospital in data.federation.hospital
        for one in labelled_part([one for one in train if one.image.hospital == hospital.id], 0.1, seed=0)
    ]
    assert 0 < len(used) < 0.4 * len(train)
    told = run.read_json("communication.json")["pooling_once_bytes"]
    assert told == sum((data.root / one.image.path).stat().st_size for one in used)
    assert sum(n for counts in training_counts(run).values() for n in counts.values()) == len(used)
    assert reference_meta(run)["train_samples"] == len(used)
    assert "Only a share of the training images' labels was used, 10% at Phantom North" in _recipe(run)
    hospitals = split_counts(run.read_json("dataset_splits.json")["images"])
    assert hospitals["train"].sum() - hospitals["unlabelled"].sum() == len(used)


def test_the_linear_probe_is_where_its_own_gradient_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 5, generator=generator, dtype=torch.float64) + functional.one_hot(labels, 5)
    probe = fit_linear(features[:60], labels[:60], features[60:], labels[60:], 3)
    weights = probe.weights.clone().requires_grad_(True)
    logits = features[:60] @ weights[:-1] + weights[-1]
    (functional.cross_entropy(logits, labels[:60]) + probe.l2 / 2 * weights[:-1].square().sum()).backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4
    assert float((probe.logits(features[60:]).argmax(1) == labels[60:]).double().mean()) > 0.6


def test_neighbours_vote_by_cosine_as_a_loop_would() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    asked = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(30) % 3
    votes = nearest_neighbours(known, labels, asked, 3)
    for place, one in enumerate(asked):
        cosines = [float(one @ other / one.norm() / other.norm()) for other in known]
        expected = np.zeros(3)
        for other in np.argsort(cosines)[::-1][:20]:
            expected[labels[other]] += np.exp(cosines[other] / 0.07)
        np.testing.assert_allclose(votes[place].numpy(), expected, rtol=1e-9)


def test_the_embedding_is_the_singular_value_decompositions() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[3.0, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    train, test = (torch.randn(n, 4, generator=generator).double() @ scales.double() for n in (50, 7))
    scaled = _standardised({"train": train, "validation": train, "test": test})
    axes = _principal_axes(scaled, [0, 3, 6])
    mean, deviation = train.mean(0), train.std(0)
    _, singular, components = np.linalg.svd(((train - mean) / deviation).numpy(), full_matrices=False)
    expected = ((test - mean) / deviation).numpy()[[0, 3, 6]] @ components[:2].T
    np.testing.assert_allclose(np.abs([axes["x"], axes["y"]]), np.abs(expected.T), atol=6e-4)
    np.testing.assert_allclose(axes["explained"], singular[:2] ** 2 / (singular**2).sum(), rtol=1e-9)
    same = torch.ones(5, 4, dtype=torch.float64)
    collapsed = _principal_axes(_standardised({"train": same, "validation": same, "test": same}), [0, 1])
    assert collapsed == {"x": [0.0, 0.0], "y": [0.0, 0.0], "explained": [0.0, 0.0]}


def test_the_probe_stands_beside_a_random_encoder_and_moves_nothing(
    run: Run, data: FederationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def remember(run: Run, encoder: dict[str, torch.Tensor]) -> torch.nn.Module:
        network = network_with(run, encoder)
        built.append((network, {name: tensor.clone() for name, tensor in network.state_dict().items()}))
        return network

    monkeypatch.setattr("engine.federation.probe.network_with", remember)
    small, large = probe_run(run, data, [0.1, 1.0], finetune=False)
    locals_ = [f"local/hospital-{letter}" for letter in "abc"]
    for result in (small, large):
        assert list(dict.fromkeys(row["encoder"] for row in result["rows"])) == [
            "random",
            "global",
            *locals_,
            "central",
        ]
        assert {row["method"] for row in result["rows"] if row["encoder"] != "random"} == {"linear", "neighbours"}
        (scratch,) = [row for row in result["rows"] if row["method"] == "finetuned"]
        assert scratch["encoder"] == "random"
        assert scratch["epochs"] * math.ceil(result["n_labels"] / 32) >= 400, "steps enough to be no straw man"
        for row in result["rows"]:
            for score in row["scores"].values():
                assert score["low"] <= score["value"] <= score["high"]
        assert result["n_test"] == sum(split.part == "test" for split in data.splits)
        test = [split.image for split in data.splits if split.part == "test"]
        probe = Probe.model_validate(result)
        assert probe.embedding is not None
        assert sorted(zip(probe.embedding.labels, probe.embedding.hospitals, strict=True)) == sorted(
            (image.label, image.hospital) for image in test
        )
        assert not any(image.path in json.dumps(result) for image in test), "no path travels"
        assert set(probe.embedding.encoders) == {row.encoder for row in probe.rows}
    assert small["n_labels"] < large["n_labels"] == sum(split.part == "train" for split in data.splits)
    assert len(built) == 6 + 2
    for network, before in (*built[:1], *built[3:]):  # without the two that were trained from scratch
        assert any(name.endswith("running_mean") for name in before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    random, trained = (read_encoders(run)[name] for name in ("random", "global"))
    assert random.keys() == trained.keys()
    assert not all(torch.equal(random[name], trained[name]) for name in random)


def test_kept_rounds_are_probed_and_the_chosen_one_as_the_model_that_stands(
    ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    totals = {line.round: line for line in ssl_run.rounds() if (line.model, line.hospital) == ("global", "all")}
    chosen = max(number for number, line in totals.items() if line.is_best_so_far)
    for probe in ssl_probes:
        asked = [(row["round"], row["method"]) for row in probe["rounds"]]
        assert asked == [(number, method) for number in (1, 2, 3) for method in ("linear", "neighbours")]
        stands = [row for row in probe["rows"] if row["encoder"] == "global"]
        assert [row for row in probe["rounds"] if row["round"] == chosen] == [
            {**row, "round": chosen} for row in stands
        ]


def test_a_run_that_kept_no_rounds_has_none_probed(run: Run, data: FederationData) -> None:
    (probe,) = probe_run(run, data, [1.0], finetune=False)
    assert probe["rounds"] == []


def test_the_command_writes_beside_the_runs_and_prints_both_ways(engine: Command, run: Run, phantom_root: Path) -> None:
    artifacts = run.folder.parent
    done = engine("probe", "run-001", "--labels", "0.5", "--finetune", "--json", "--artifacts", artifacts,
                  "--data", phantom_root)  # fmt: skip
    (told,) = json.loads(done.success)
    assert told == json.loads((artifacts / "probes" / "run-001-labels-0.5-finetuned.json").read_text())
    assert {"random", "global", "central"} <= {row["encoder"] for row in told["rows"] if row["method"] == "finetuned"}
    run.verify(with_weights=True)
    refused = engine("probe", "run-001", "--labels", "half", "--artifacts", artifacts, "--data", phantom_root)
    assert "--labels half" in refused.error


def test_fine_tuning_has_a_budget_of_its_own_where_labels_are_few() -> None:
    federation = load_federation(PHANTOMS, ["training.rounds=10", "training.batch_size=32", "training.local_epochs=2"])
    assert fine_tuning(federation, 30).local_epochs == 40  # one batch an epoch: 400 steps
    assert fine_tuning(federation, 640).local_epochs == 2  # 20 batches an epoch
    assert fine_tuning(federation, 10_000).local_epochs == 2


def test_two_shares_of_one_file_are_refused(engine: Command, run: Run, phantom_root: Path) -> None:
    told = engine("probe", "run-001", "--labels", "0.1,0.10000001", "--artifacts", run.folder.parent,
                  "--data", phantom_root).error  # fmt: skip
    assert "the same to six digits" in told


def test_an_encoder_whose_origin_learned_the_labels_is_refused(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    """Labels, then none: a probe with few labels would flatter what saw them all."""
    artifacts = tmp_path / "artifacts"
    shutil.copytree(phantom_run, artifacts)
    settings = (*TINY, "pretext.objective='rotation'", "training.rounds=1", "arms=['federated']")
    federation = load_federation(PHANTOMS, [*settings, "model.weights='run-001'"])
    data = dataclasses.replace(tiny_data, federation=federation)
    descendant = train_run(start_run(data, "federations/phantoms.toml", artifacts), data)
    with pytest.raises(RunError, match="began from run-001, which learned labels of these images"):
        probe_run(descendant, data, [1.0], finetune=False)


def test_a_start_that_changed_since_is_not_probed_as_where_the_run_began(
    ssl_run: Run, tiny_data: FederationData, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(ssl_run.folder.parent / "run-001", artifacts / "run-001")
    settings = (*TINY, "pretext.objective='rotation'", "training.rounds=1", "arms=['federated']")
    federation = load_federation(PHANTOMS, [*settings, "model.weights='run-001'"])
    data = dataclasses.replace(tiny_data, federation=federation)
    descendant = train_run(start_run(data, "federations/phantoms.toml", artifacts), data)
    assert "start" in read_encoders(descendant)
    config = json.loads((descendant.folder / "config.json").read_text())
    write_json(descendant.folder / "config.json", {**config, "starting_weights_sha256": "0" * 64})
    with pytest.raises(RunError, match="is not as it was when this run began from it"):
        read_encoders(Run(descendant.folder))


def test_a_share_that_is_none_is_refused(run: Run, data: FederationData) -> None:
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            probe_run(run, data, [fraction], finetune=False)


def test_a_run_that_learned_its_labels_is_refused(phantom_run: Path, tiny_data: FederationData) -> None:
    with pytest.raises(RunError, match="learned its labels"):
        probe_run(find_run(phantom_run, "run-001"), tiny_data, [0.1], finetune=False)
