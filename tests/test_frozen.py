"""Frozen backbones: features computed once, the head alone trained and sent, full networks written."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError
from engine.federation.arms import image_sets
from engine.federation.frozen import cache_features
from engine.federation.training_run import start_run, train_run
from engine.publishing.run_panel import load_network
from engine.results.files import sha256_of, write_json
from engine.results.run_folder import Run, find_run, list_runs
from engine.sections import AugmentConfig, ModelConfig, TrainingConfig
from engine.training.build import build_network
from engine.training.features import HeadNetwork, compute_features
from engine.training.images import ImageSet
from engine.training.local import predict_logits, train_locally
from tests.conftest import PROJECT, TINY
from tests.test_training import CPU, squares

STILL = AugmentConfig(flip=False, rotation_degrees=0, shift=0, scale=0, intensity=0)


class Plain(ImageSet):
    """Images that training sees as they are, as `training.views = 0` means it; nothing is drawn for augmentation."""

    def training_batch(self, positions: torch.Tensor, device: torch.device, *_: object) -> tuple:  # type: ignore[override, type-arg]
        return self.batch(positions, device)


def frozen_config(folder: Path, architecture: str = "resnet18", **settings: object) -> ModelConfig:
    path = folder / f"{architecture}.safetensors"
    start = ModelConfig(architecture=architecture, image_size_px=32)  # type: ignore[arg-type]
    save_file({n: t.contiguous() for n, t in build_network(start, 2, seed=5).state_dict().items()}, path)
    return start.model_copy(update={"weights": str(path), "freeze_backbone": True, **settings})


@pytest.mark.parametrize("architecture", ["resnet18", "compact-cnn", "efficientnet-lite0"])
def test_training_on_features_is_training_on_images(architecture: str, tmp_path: Path) -> None:
    """Without augmentation and dropout the two are the same computation."""
    config = frozen_config(tmp_path, architecture)
    training = TrainingConfig(rounds=1, local_epochs=3, batch_size=8, augment=STILL, precision="float32")
    images = Plain(squares(20)._portions)
    whole, half = (build_network(config, 2, seed=0) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    train_locally(whole, images, config, training, round_number=1, seed=4, device=CPU)
    features = compute_features(half, images, CPU, augment=STILL, views=0, seed=1)
    head = HeadNetwork(half)
    train_locally(head, features, config, training, round_number=1, seed=4, device=CPU)
    assert head.state_dict().keys() == {f"{whole.head_name}.weight", f"{whole.head_name}.bias"}
    for name, tensor in whole.state_dict().items():
        if name in head.state_dict():
            assert not torch.equal(tensor, start[name]), "the head learns"
            torch.testing.assert_close(head.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(tensor, start[name]), "the backbone and its BatchNorm stand still"
    np.testing.assert_allclose(
        predict_logits(head, features, CPU), predict_logits(whole, images, CPU), rtol=1e-3, atol=1e-4
    )


def test_each_local_epoch_takes_the_next_view(tmp_path: Path) -> None:
    network = build_network(frozen_config(tmp_path, "compact-cnn"), 2, seed=0)
    images, augment = squares(6), AugmentConfig()
    cached = compute_features(network, images, CPU, augment=augment, views=3, seed=1)
    again = compute_features(network, images, CPU, augment=augment, views=3, seed=1)
    positions, generator = torch.tensor([4, 1]), torch.Generator()

    def view(epoch: int) -> torch.Tensor:
        return cached.training_batch(positions, CPU, augment, generator, epoch)[0]

    assert view(0).shape == (2, 128)
    assert not torch.equal(view(0), view(1))
    assert not torch.equal(view(1), view(2))
    assert torch.equal(view(3), view(0))
    assert torch.equal(again.training_batch(positions, CPU, augment, generator, 1)[0], view(1)), "seeded"
    assert cached.training_batch(positions, CPU, augment, generator, 0)[1].tolist() == images.labels[positions].tolist()


def test_joined_features_are_those_of_each_in_order(tmp_path: Path) -> None:
    network = build_network(frozen_config(tmp_path, "compact-cnn"), 2, seed=0)
    one, two = (compute_features(network, squares(n, seed=n), CPU, augment=STILL, views=0, seed=1) for n in (3, 5))
    both = one.join([two])
    assert len(both) == 8
    assert torch.equal(both.batch(torch.tensor([3]), CPU)[0], two.batch(torch.tensor([0]), CPU)[0])
    assert both.labels.tolist() == [*one.labels.tolist(), *two.labels.tolist()]


def frozen_run(tiny_data: FederationData, artifacts: Path, **settings: object) -> Run:
    federation = tiny_data.federation
    model = federation.model.model_copy(update={"weights": "run-001", "freeze_backbone": True})
    training = federation.training.model_copy(update={"rounds": 2, "keep_rounds": True, **settings})
    data = dataclasses.replace(
        tiny_data, federation=federation.model_copy(update={"model": model, "training": training})
    )
    return train_run(start_run(data, "federations/phantoms.toml", artifacts), data)


def test_a_frozen_run_sends_the_head_and_writes_the_network(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    (tmp_path / "run-001").symlink_to(phantom_run / "run-001")
    run = frozen_run(tiny_data, tmp_path, views=2)
    first, second = (load_file(one.weights("global")) for one in (find_run(phantom_run, "run-001"), run))
    assert first.keys() == second.keys(), "the full network"
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) != name.startswith("head."), name
    assert load_file(run.round_weights("global", 2)).keys() == first.keys()
    n_bytes = second["head.weight"].nbytes + second["head.bias"].nbytes
    for counted in run.read_json("communication.json")["hospitals"].values():
        assert counted == {"bytes_down": 2 * n_bytes, "bytes_up": 2 * n_bytes, "rounds": 2}
    predictions = run.predictions()
    assert set(predictions["model"]) == {"global", "central", *(f"local/hospital-{letter}" for letter in "abc")}
    rows = predictions.query("model == 'central' and split == 'test' and hospital == 'hospital-a'")
    again = predict_logits(load_network(run, "central"), image_sets(tiny_data, "test")["hospital-a"], CPU)
    np.testing.assert_allclose(np.stack(list(rows["logits"])), again, rtol=1e-3, atol=1e-4)


def test_only_training_images_have_views(tiny_data: FederationData, tmp_path: Path) -> None:
    network = build_network(frozen_config(tmp_path, "compact-cnn"), 2, seed=0)
    training = tiny_data.federation.training.model_copy(update={"views": 2})
    federation = tiny_data.federation.model_copy(update={"training": training})
    sets = {part: image_sets(tiny_data, part) for part in ("train", "validation")}  # type: ignore[arg-type]
    cached = cache_features(network, sets, federation, CPU)  # type: ignore[arg-type]
    plain = compute_features(network, sets["validation"]["hospital-a"], CPU, augment=STILL, views=0, seed=9)
    positions = torch.arange(3)
    assert torch.equal(cached["validation"]["hospital-a"].batch(positions, CPU)[0], plain.batch(positions, CPU)[0])
    views = [
        cached["train"]["hospital-a"].training_batch(positions, CPU, STILL, torch.Generator(), e)[0] for e in (0, 1)
    ]
    assert not torch.equal(*views)


def test_a_runs_encoder_comes_without_its_head(phantom_run: Path) -> None:
    config = ModelConfig(architecture="compact-cnn", image_size_px=32, weights="run-001")
    network = build_network(config, 4, seed=0, artifacts=phantom_run).state_dict()
    trained = load_file(find_run(phantom_run, "run-001").weights("global"))
    fresh = build_network(config.model_copy(update={"weights": "none"}), 4, seed=0).state_dict()
    for name, tensor in network.items():
        assert torch.equal(tensor, fresh[name] if name.startswith("head.") else trained[name]), name


@pytest.mark.parametrize(
    ("architecture", "weights", "says"),
    [
        ("compact-cnn", "run-099", r"model\.weights = 'run-099': .*run-099: no such run"),
        ("resnet18", "run-001", r"model\.weights = 'run-001': is a run of compact-cnn, not of resnet18"),
    ],
)
def test_a_run_that_cannot_give_its_encoder_is_one_clear_line(
    phantom_run: Path, architecture: str, weights: str, says: str
) -> None:
    config = ModelConfig(architecture=architecture, image_size_px=32, weights=weights)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says):
        build_network(config, 4, seed=0, artifacts=phantom_run)


def test_an_encoder_of_grey_images_is_none_for_colour(phantom_run: Path) -> None:
    config = ModelConfig(architecture="compact-cnn", image_size_px=32, weights="run-001", colour=True)
    with pytest.raises(ConfigError, match="is a run of grey images, not of colour images"):
        build_network(config, 4, seed=0, artifacts=phantom_run)


def test_an_encoder_with_batch_norm_is_none_for_group_norm(ssl_run: Run, tmp_path: Path) -> None:
    """Their weights have the same names and shapes, so nothing else would notice."""
    run = tmp_path / "run-001"
    shutil.copytree(ssl_run.folder, run)
    kinds = ModelConfig(architecture="patch-cnn", image_size_px=32)
    config = json.loads((run / "config.json").read_text())
    config["federation"]["model"] = kinds.model_dump(mode="json")
    write_json(run / "config.json", config)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"]["config.json"] |= {
        "sha256": sha256_of(run / "config.json"), "bytes": (run / "config.json").stat().st_size
    }  # fmt: skip
    (run / "audit-log.jsonl").unlink()
    write_json(run / "manifest.json", {**manifest, "audit_log": None})
    wanted = kinds.model_copy(update={"weights": "run-001", "norm": "group"})
    with pytest.raises(ConfigError, match="is a run of norm = 'batch', not of norm = 'group'"):
        build_network(wanted, 4, seed=0, artifacts=tmp_path)


def test_a_run_whose_weights_changed_gives_no_encoder(phantom_run: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_run / "run-001", tmp_path / "run-001")
    file = find_run(tmp_path, "run-001").weights("global")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="is not as it was written"):
        build_network(ModelConfig(architecture="compact-cnn", image_size_px=32, weights="run-001"), 4, 0, tmp_path)


def test_a_run_that_learned_from_the_images_held_out_here_gives_no_encoder(
    phantom_run: Path, phantom_root: Path
) -> None:
    changed = [*TINY, "model.weights='run-001'", "split.seed=3"]
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", changed)
    data = read_federation_data(federation, phantom_root)
    before = [run.name for run in list_runs(phantom_run)]
    with pytest.raises(ConfigError, match=r"learned from \d+ of the \d+ images that are held out here"):
        start_run(data, "federations/phantoms.toml", phantom_run)
    assert [run.name for run in list_runs(phantom_run)] == before
