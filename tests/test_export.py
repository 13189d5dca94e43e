"""Exports for readers of the reference systems: read back as their own notebooks would read them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from engine.cli import main
from engine.config import Federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError, RunError
from engine.federation.training_run import start_run, train_run
from engine.publishing import reference_layouts
from engine.publishing.layouts import export_run
from engine.publishing.run_panel import open_run_panel
from engine.results.run_folder import Run, find_run
from engine.sections import ModelConfig
from engine.training.build import build_network
from engine.training.torchvision_import import torchvision_models

NORMALISE = build_network(ModelConfig(image_size_px=32), 4, seed=0).normalise  # the one of torchvision's ResNets too
META_KEYS = (
    "trained_at num_classes num_epochs best_epoch device datasets total_samples train_samples val_samples "
    "test_samples metrics"
)
METRICS_KEYS = "test_accuracy avg_f1 avg_precision avg_recall best_val_accuracy per_class confusion_matrix"
STATS_KEYS = "total_samples class_distribution location specialty dataset_id unmatched_folders"
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")


@pytest.fixture(scope="module")
def run(phantom_run: Path) -> Run:
    return find_run(phantom_run, "run-001")


@pytest.fixture(scope="module")
def resnet_run(tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A ResNet18 of the federated arm alone that kept its rounds. Read only."""
    federation = tiny_data.federation
    training = federation.training.model_copy(update={"rounds": 2, "keep_rounds": True, "batch_size": 32})
    model = federation.model.model_copy(update={"architecture": "resnet18"})
    changed = federation.model_copy(update={"training": training, "model": model, "arms": ("federated",)})
    data = read_federation_data(changed, tiny_data.root)
    return train_run(start_run(data, "federations/phantoms.toml", tmp_path_factory.mktemp("artifacts")), data)


@pytest.fixture(scope="module")
def images(tiny_data: FederationData) -> np.ndarray:
    return np.array(tiny_data.holdings[0].pixels[:6])


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def logits(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        answer: torch.Tensor = network.eval()(NORMALISE(pixels))
    return answer.numpy()


def own_network(federation: Federation, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = build_network(federation.model, len(federation.classes), seed=7)
    assert list(tensors) == list(network.state_dict())
    network.load_state_dict(tensors)
    return network


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_nothing_left(folder: Path) -> None:
    """Neither an export nor half of one."""
    assert not list(folder.glob("*exporting*"))
    assert not (folder / "out").exists()


def test_medisync_holds_the_global_model_and_its_papers(run: Run, images: np.ndarray, tmp_path: Path) -> None:
    export_run(run, "medisync", tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    papers = {"model_meta.json", "label_map.json", "training_history.json", "dataset_stats.json"}
    assert names_in(out) == papers | {"global_model.pth"}
    assert names_in(out.parent) == {"out"}
    network = own_network(run.federation, state_dict(out / "global_model.pth"))
    np.testing.assert_allclose(
        logits(network, images), open_run_panel(run).logits("global", list(images)), rtol=1e-4, atol=1e-5
    )


def test_a_resnet_goes_into_torchvisions_own(resnet_run: Run, images: np.ndarray, tmp_path: Path) -> None:
    export_run(resnet_run, "medisync", tmp_path / "out")
    network = torchvision_models().resnet18(num_classes=4)
    tensors = state_dict(tmp_path / "out" / "global_model.pth")
    assert list(tensors) == list(network.state_dict())
    network.load_state_dict(tensors, strict=True)
    np.testing.assert_allclose(
        logits(network, images), open_run_panel(resnet_run).logits("global", list(images)), rtol=1e-4, atol=1e-5
    )
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert (tmp_path / "out" / "global_model.pth").stat().st_size < 1.01 * n_bytes


def test_medisyncs_json_has_exactly_the_reference_keys(run: Run, tmp_path: Path) -> None:
    export_run(run, "medisync", tmp_path / "out")
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out").glob("*.json")}
    meta = read["model_meta"]
    assert " ".join(meta) == META_KEYS
    assert " ".join(meta["metrics"]) == METRICS_KEYS
    test = run.read_json("evaluation.json")["splits"]["test"]["global"]["all"]
    assert meta["metrics"]["test_accuracy"] == test["accuracy"]
    assert np.sum(meta["metrics"]["confusion_matrix"]) == meta["test_samples"]
    assert meta["train_samples"] + meta["val_samples"] + meta["test_samples"] == meta["total_samples"]
    assert read["label_map"] == {"glioma": 0, "meningioma": 1, "notumor": 2, "pituitary": 3}
    assert [row["epoch"] for row in read["training_history"]] == [1, 2, 3]
    for row in read["training_history"]:
        assert list(row) == ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert list(read["dataset_stats"]) == [hospital.name for hospital in run.federation.hospital]
    for stats in read["dataset_stats"].values():
        assert " ".join(stats) == STATS_KEYS
    assert sum(stats["total_samples"] for stats in read["dataset_stats"].values()) == meta["total_samples"]


def test_saved_models_numbers_the_hospitals_in_the_federations_order(
    run: Run, images: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    export_run(run, "saved-models", out)
    models = {"central": "central_model.pth"} | {
        f"local/{h}": f"client_{n}_model.pth" for n, h in enumerate(HOSPITALS, 1)
    }
    assert names_in(out) == {*models.values(), "clients.json"}
    panel = open_run_panel(run)
    for model, file in models.items():
        network = own_network(run.federation, state_dict(out / file))
        np.testing.assert_allclose(
            logits(network, images), panel.logits(model, list(images)), rtol=1e-4, atol=1e-5, err_msg=model
        )
    clients = json.loads((out / "clients.json").read_text(encoding="utf-8"))["clients"]
    assert [client["id"] for client in clients] == list(HOSPITALS)
    assert clients[0] == {
        "client": 1, "file": "client_1_model.pth", "id": "hospital-a", "name": "Phantom North (simulated)"
    }  # fmt: skip


def test_poweranger_holds_every_rounds_arrays_and_the_tables(resnet_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(resnet_run, "poweranger", out)
    tables = {f"{what}_{of}.csv" for what in ("fit", "eval") for of in ("metrics", "client_metrics")}
    assert names_in(out) == tables | {"round_001.npz", "round_002.npz", "parameter_names.json"}
    names = json.loads((out / "parameter_names.json").read_text(encoding="utf-8"))
    assert names == list(torchvision_models().resnet18(num_classes=4).state_dict())
    for number in (1, 2):
        kept = load_file(resnet_run.folder / "weights" / "rounds" / f"global-{number:03d}.safetensors")
        assert set(kept) == set(names)
        with np.load(out / f"round_{number:03d}.npz", allow_pickle=False) as arrays:
            assert arrays.files == [f"arr_{index}" for index in range(len(names))]
            for index, name in enumerate(names):
                read = arrays[f"arr_{index}"]
                assert read.dtype == kept[name].numpy().dtype
                np.testing.assert_array_equal(read, kept[name].numpy(), err_msg=name)
    for table in sorted(tables):
        rows = pd.read_csv(out / table)
        start = ["round", "client_id"] if "client" in table else ["round"]
        assert list(rows.columns[: len(start) + 2]) == [*start, "num_examples", "loss"], table
        assert len(rows) == 2 * (3 if "client" in table else 1), table


def test_an_export_is_the_same_bytes_again(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_run(run, "saved-models", tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_without_kept_rounds_the_setting_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"kept no weights by round.*--set training\.keep_rounds=true"):
        export_run(run, "poweranger", tmp_path / "out")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("layout", "file"), [("medisync", "global-best"), ("saved-models", "local-hospital-c"), ("saved-models", "central")]
)
def test_missing_weights_are_named(copy_run: Callable[[Path], Path], tmp_path: Path, layout: str, file: str) -> None:
    copy = copy_run(tmp_path / "artifacts" / "run-002")
    (copy / "weights" / f"{file}.safetensors").unlink()
    with pytest.raises(RunError, match=rf"{file}\.safetensors: these weights are not on this machine"):
        export_run(Run(copy), layout, tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_a_missing_round_is_named(resnet_run: Run, tmp_path: Path) -> None:
    shutil.copytree(resnet_run.folder, tmp_path / "run-001")
    (tmp_path / "run-001" / "weights" / "rounds" / "global-002.safetensors").unlink()
    with pytest.raises(RunError, match=r"global-002\.safetensors: these weights are not on this machine"):
        export_run(Run(tmp_path / "run-001"), "poweranger", tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_missing_arms_are_named(resnet_run: Run, tmp_path: Path) -> None:
    words = r"trained no central, local/hospital-a, .*\(its arms: federated\), which the saved-models layout needs"
    with pytest.raises(RunError, match=words):
        export_run(resnet_run, "saved-models", tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_a_damaged_run_is_never_exported(copy_run: Callable[[Path], Path], tmp_path: Path) -> None:
    copy = copy_run(tmp_path / "run-002")
    weights = copy / "weights" / "global-best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] + bytes(100))
    with pytest.raises(RunError, match=r"global-best\.safetensors: is not as it was written"):
        export_run(Run(copy), "medisync", tmp_path / "out")
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_already_stays_as_it_was(run: Run, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    mine = out / "mine.txt" if kind == "folder" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="out: is there already and not an empty folder; give a new one"):
        export_run(run, "medisync", out)
    assert mine.read_text(encoding="utf-8") == "mine"
    assert names_in(tmp_path) == {"out"}


def test_the_folder_one_stands_in_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is the folder you are in"):
        export_run(run, "medisync", Path())


def test_a_folder_that_cannot_be_made_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write: .*; give another folder to --to"):
        export_run(run, "medisync", tmp_path / "file" / "out")


def test_an_export_that_dies_leaves_nothing_and_the_next_sweeps_a_kills_leftover(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reference_layouts, "reference_meta", die)
        export_run(run, "medisync", tmp_path / "out")
    assert_nothing_left(tmp_path)
    (tmp_path / ".out.exporting-killed" / "export").mkdir(parents=True)
    export_run(run, "medisync", tmp_path / "out")
    assert names_in(tmp_path) == {"out"}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], run: Run
) -> Callable[..., tuple[int, list[str]]]:
    """Runs `export` on run-001; gives its exit status and what it says."""

    def export(*arguments: object) -> tuple[int, list[str]]:
        words = ["export", "run-001", "--artifacts", run.folder.parent, *arguments]
        monkeypatch.setattr(sys, "argv", ["python -m engine", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        assert captured.out == ""
        return int(ended.value.code or 0), captured.err.splitlines()

    return export


def test_the_command_exports(command: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("--layout", "medisync", "--to", out) == (0, [f"Exported run-001 to {out}"])
    assert (out / "global_model.pth").is_file()


def test_an_unknown_layout_is_one_line(command: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    words = (
        "error: --layout 'keras': no such layout; of a run there is onnx, mlflow, medisync, saved-models, poweranger"
    )
    assert command("--layout", "keras", "--to", tmp_path / "out") == (2, [words])
    code, said = command("--layout", "poweranger", "--to", tmp_path / "out")
    assert code == 2
    assert len(said) == 1
    assert said[0].endswith("train with --set training.keep_rounds=true")
    assert_nothing_left(tmp_path)
