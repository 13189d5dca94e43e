"""Publishing: the served graphs say what the networks said, and no version is ever half there."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from engine.config import Federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ModelError, RunError
from engine.federation.training_run import start_run, train_run
from engine.inference.panel import open_model, open_panel
from engine.publishing import publish as publishing
from engine.publishing.export import convert_fp16, export_onnx
from engine.publishing.publish import publish_run
from engine.publishing.run_panel import load_network, open_run_panel
from engine.results.published import current_version, list_versions, set_current
from engine.results.run_folder import Run, find_run
from engine.training.build import build_network


@pytest.fixture(scope="module")
def small(tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FederationData]:
    """A run of the federated arm alone, for tests that publish again and again."""
    training = tiny_data.federation.training.model_copy(update={"rounds": 2})
    federation = tiny_data.federation.model_copy(update={"arms": ("federated",), "training": training})
    data = read_federation_data(federation, tiny_data.root)
    return train_run(start_run(data, "federations/phantoms.toml", tmp_path_factory.mktemp("artifacts")), data), data


MODELS = ("global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central")


def test_a_version_holds_every_model_and_its_papers(phantom_version: Path) -> None:
    version = current_version(phantom_version, "phantoms")
    version.verify()
    assert tuple(version.manifest.models) == MODELS
    assert version.manifest.run == "run-001"
    names = {path.name for path in version.folder.iterdir()}
    assert names == {f"{model.replace('/', '-')}.onnx" for model in MODELS} | {
        "calibration.json",
        "card.md",
        "label_map.json",
        "model_meta.json",
        "manifest.json",
    }
    assert version.read_json("label_map.json") == {"glioma": 0, "meningioma": 1, "notumor": 2, "pituitary": 3}


def test_the_exported_graph_computes_what_the_network_computes(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    run = find_run(phantom_run, "run-001")
    export_onnx(load_network(run, "global"), run.federation, "global", tmp_path / "g.onnx")
    images = np.array(tiny_data.holdings[0].pixels[:5])
    expected = open_run_panel(run).logits("global", list(images))
    np.testing.assert_allclose(open_model(tmp_path / "g.onnx")(images)[0], expected, rtol=1e-4, atol=1e-4)
    convert_fp16(tmp_path / "g.onnx", tmp_path / "h.onnx")
    np.testing.assert_allclose(open_model(tmp_path / "h.onnx")(images)[0], expected, atol=0.05)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet-lite0", "patch-cnn"])
def test_a_network_exports_with_its_feature_map_and_head(
    architecture: str, norm: str, tiny_data: FederationData, tmp_path: Path
) -> None:
    model = tiny_data.federation.model.model_copy(update={"architecture": architecture, "norm": norm, "colour": True})
    federation = tiny_data.federation.model_copy(update={"model": model})
    network = build_network(model, 4, seed=0).eval()
    export_onnx(network, federation, "global", tmp_path / "r.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx")
    logits, feature_map = session.run(["logits", "feature_map"], {"image": images})
    with torch.inference_mode():
        floats = network.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        np.testing.assert_allclose(logits, network(floats).numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(feature_map, network.feature_map(floats).numpy(), rtol=1e-3, atol=1e-4)
    head = json.loads(session.get_modelmeta().custom_metadata_map["head"])
    weight, bias = (np.frombuffer(base64.b64decode(head[name]), "<f4") for name in ("weight", "bias"))
    pooled = feature_map.mean((2, 3))
    np.testing.assert_allclose(pooled @ weight.reshape(4, -1).T + bias, logits, rtol=1e-3, atol=1e-4)


def test_the_graph_carries_labels_size_and_normalisation(phantom_version: Path) -> None:
    graph = onnx.load(current_version(phantom_version, "phantoms").folder / "global.onnx")
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["labels"]) == ["glioma", "meningioma", "notumor", "pituitary"]
    assert metadata["image_size_px"] == "32"
    assert json.loads(metadata["normalisation"])["inside_graph"] is True


def test_the_served_panel_agrees_with_the_run_on_most_images(
    phantom_version: Path, phantom_run: Path, phantom_root: Path
) -> None:
    served, own = (
        open_panel(current_version(phantom_version, "phantoms")),
        open_run_panel(find_run(phantom_run, "run-001")),
    )
    files = sorted(phantom_root.glob("hospital-*/*/*.png"))[::8]
    same = [
        served.read(file, insist=True).opinions[model].label == own.read(file).opinions[model].label
        for file in files
        for model in MODELS
    ]
    assert np.mean(same) > 0.9


def test_an_opinion_is_a_distribution_and_its_set_begins_with_the_top_class(
    phantom_version: Path, phantom_root: Path
) -> None:
    reading = open_panel(current_version(phantom_version, "phantoms")).read(
        next(phantom_root.rglob("*.png")), insist=True
    )
    for opinion in reading.opinions.values():
        assert sum(opinion.probabilities.values()) == pytest.approx(1)
        assert opinion.label == max(opinion.probabilities, key=opinion.probabilities.__getitem__)
        assert opinion.prediction_set[0] == opinion.label


def test_the_accuracy_after_is_measured_on_the_served_file(phantom_version: Path, tiny_data: FederationData) -> None:
    version = current_version(phantom_version, "phantoms")
    panel = open_panel(version)
    hits = total = 0
    row_of = {
        (image.hospital, image.path): pixels
        for holding in tiny_data.holdings
        for image, pixels in zip(holding.images, holding.pixels, strict=True)
    }
    for split in tiny_data.splits:
        if split.part == "validation":
            logits = panel.logits("central", [row_of[split.image.hospital, split.image.path]])
            hits += tiny_data.federation.classes[int(logits.argmax())] == split.image.label
            total += 1
    entry = version.manifest.models["central"]
    assert entry.validation_images == total
    assert entry.accuracy_after == pytest.approx(hits / total)


def test_int8_that_loses_too_much_is_not_served(
    small: tuple[Run, FederationData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant calibration images give the quantiser ranges under which it cannot tell anything apart."""
    monkeypatch.setattr(publishing, "_calibration_images", lambda data, hospitals: np.zeros((16, 32, 32, 1), np.uint8))
    monkeypatch.setattr(publishing, "MAX_LOSS_IMAGES", -100)
    monkeypatch.setattr(publishing, "MAX_LOSS_POINTS", -100.0)
    version = publish_run(small[0], "rough", small[1], tmp_path)
    for entry in version.manifest.models.values():
        assert entry.precision == "fp16"
        assert "half precision is served" in entry.note
        assert entry.accuracy_after == pytest.approx(entry.accuracy_before, abs=0.05)


def test_the_card_says_what_is_simulated_and_how_good_it_is(phantom_version: Path, phantom_run: Path) -> None:
    card = (current_version(phantom_version, "phantoms").folder / "card.md").read_text()
    score = find_run(phantom_run, "run-001").read_json("evaluation.json")["splits"]["test"]["global"]["all"]
    assert "Research demonstration, not for diagnosis" in card
    assert "Phantom North (simulated)" in card
    assert "Synthetic: Every image is drawn by a program" in card
    low, high = score["intervals"]["accuracy"]
    assert f"| Federated | {score['accuracy']:.3f} ({low:.3f}-{high:.3f}) |" in card


def test_the_meta_has_the_reference_systems_keys(phantom_version: Path, tiny_data: FederationData) -> None:
    meta = current_version(phantom_version, "phantoms").read_json("model_meta.json")
    wanted = "trained_at num_classes num_epochs best_epoch device datasets total_samples train_samples val_samples"
    assert {*wanted.split(), "test_samples", "metrics"} <= set(meta)
    assert meta["total_samples"] == len(tiny_data.splits)
    assert meta["train_samples"] + meta["val_samples"] + meta["test_samples"] == meta["total_samples"]
    assert meta["class_counts_by_hospital"]["hospital-c"]["notumor"] == 0


def test_publishing_again_makes_a_new_version_and_rollback_serves_the_old(
    small: tuple[Run, FederationData], tmp_path: Path
) -> None:
    run, data = small
    first = publish_run(run, "phantoms", data, tmp_path)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    second = publish_run(run, "phantoms", data, tmp_path)
    assert [version.version for version in list_versions(tmp_path, "phantoms")] == ["v1", "v2"]
    assert current_version(tmp_path, "phantoms").version == second.version == "v2"
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    set_current(tmp_path, first)
    assert current_version(tmp_path, "phantoms").version == "v1"


def test_a_publish_that_dies_leaves_no_version_behind(
    small: tuple[Run, FederationData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    run, data = small
    monkeypatch.setattr(publishing, "write_card", die)
    with pytest.raises(KeyboardInterrupt):
        publish_run(run, "phantoms", data, tmp_path)
    assert list_versions(tmp_path, "phantoms") == []
    with pytest.raises(ModelError, match="no published model 'phantoms'"):
        current_version(tmp_path, "phantoms")


def test_publishing_without_weights_or_with_other_images_says_so(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    shutil.copytree(phantom_run, tmp_path / "artifacts")
    weights = tmp_path / "artifacts" / "run-001" / "weights" / "central.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    run = find_run(tmp_path / "artifacts", "run-001")
    with pytest.raises(RunError, match=r"central\.safetensors: these weights are not on this machine"):
        publish_run(run, "phantoms", tiny_data, tmp_path / "models")
    weights.write_bytes(content)
    shutil.copytree(tiny_data.root, tmp_path / "phantoms")
    next((tmp_path / "phantoms").glob("hospital-a/glioma/*.png")).unlink()
    with pytest.raises(RunError, match="images are not those it was trained on"):
        publish_run(
            run, "phantoms", read_federation_data(tiny_data.federation, tmp_path / "phantoms"), tmp_path / "models"
        )


@pytest.mark.parametrize("name", ["Brain", "a/b", "..", "", "a b"])
def test_bad_names_are_refused(phantom_run: Path, tiny_data: FederationData, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no model name"):
        publish_run(find_run(phantom_run, "run-001"), name, tiny_data, tmp_path)


def test_weights_that_were_changed_are_never_published(
    phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    shutil.copytree(phantom_run, tmp_path / "artifacts")
    weights = tmp_path / "artifacts" / "run-001" / "weights" / "global-best.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100:] = bytes(100)
    weights.write_bytes(content)
    with pytest.raises(RunError, match=r"global-best\.safetensors: is not as it was written"):
        publish_run(find_run(tmp_path / "artifacts", "run-001"), "phantoms", tiny_data, tmp_path / "models")


def test_a_manifest_with_swapped_labels_does_not_fit_its_graphs(phantom_version: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_version, tmp_path / "models")
    path = tmp_path / "models" / "phantoms" / "v1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["federation"]["classes"].reverse()
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"global\.onnx: its labels is"):
        open_panel(current_version(tmp_path / "models", "phantoms"))


def test_two_graphs_that_changed_places_are_noticed(phantom_version: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_version, tmp_path / "models")
    path = tmp_path / "models" / "phantoms" / "v1" / "manifest.json"
    manifest = json.loads(path.read_text())
    models = manifest["models"]
    models["global"]["file"], models["central"]["file"] = models["central"]["file"], models["global"]["file"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"central\.onnx: its model is 'central'"):
        open_panel(current_version(tmp_path / "models", "phantoms"))


def test_a_file_that_is_no_part_of_a_version_is_refused(phantom_version: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_version, tmp_path / "models")
    (tmp_path / "models" / "phantoms" / "v1" / "evil.onnx").touch()
    with pytest.raises(ModelError, match=r"evil\.onnx: is no part of this version"):
        current_version(tmp_path / "models", "phantoms").verify()


def test_the_next_publish_sweeps_what_a_killed_one_left(small: tuple[Run, FederationData], tmp_path: Path) -> None:
    left_over = tmp_path / "phantoms" / ".publishing-killed" / "version"
    left_over.mkdir(parents=True)
    (left_over / "global.onnx").touch()
    publish_run(small[0], "phantoms", small[1], tmp_path)
    assert sorted(path.name for path in (tmp_path / "phantoms").iterdir()) == ["current.json", "v1"]


def test_a_pipe_in_a_hospitals_name_leaves_the_cards_tables_whole(
    small: tuple[Run, FederationData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Federation, "display_name", lambda self, hospital_id: "North | Clinic")
    publish_run(small[0], "phantoms", small[1], tmp_path)
    rows = [row for row in (tmp_path / "phantoms" / "v1" / "card.md").read_text().splitlines() if "North" in row]
    assert rows
    assert all("North \\| Clinic" in row for row in rows)
