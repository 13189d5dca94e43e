"""Exports to ONNX, MLflow and the Hugging Face Hub, read back as their readers would."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engine.config import load_federation
from engine.data.federation_data import FederationData
from engine.errors import ConfigError, RunError
from engine.publishing.hugging_face import front_matter
from engine.publishing.layouts import LAYOUTS, export_run, export_version
from engine.publishing.mlflow_export import export_mlflow, run_metrics, settings
from engine.publishing.run_panel import open_run_panel
from engine.results.published import PublishedVersion, current_version
from engine.results.run_folder import Run, find_run
from tests.conftest import PROJECT, Command

MODELS = {"global", "central", "local/hospital-a", "local/hospital-b", "local/hospital-c"}


@pytest.fixture(scope="module")
def run(phantom_run: Path) -> Run:
    return find_run(phantom_run, "run-001")


@pytest.fixture(scope="module")
def version(phantom_version: Path) -> PublishedVersion:
    return current_version(phantom_version, "phantoms")


def test_a_runs_onnx_files_answer_as_its_own_weights(run: Run, tiny_data: FederationData, tmp_path: Path) -> None:
    export_run(run, "onnx", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "models.json").read_text(encoding="utf-8"))
    assert set(index["models"]) == MODELS
    assert index["calibration"] is None
    assert index["source"] == "run-001"
    assert index["classes"] == list(run.federation.classes)
    assert index["simulated"] == run.federation.simulated != ""
    images = np.array(tiny_data.holdings[0].pixels[:5])
    assert index["input"]["shape"][1:] == list(images.shape[1:])
    panel = open_run_panel(run)
    for model, file in index["models"].items():
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / file["file"]))
        logits, _ = session.run(None, {index["input"]["name"]: images})
        np.testing.assert_allclose(logits, panel.logits(model, list(images)), rtol=1e-4, atol=1e-4, err_msg=model)
        assert file["precision"] == "fp32"


def test_a_versions_onnx_files_are_the_served_bytes(version: PublishedVersion, tmp_path: Path) -> None:
    export_version(version, "onnx", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "models.json").read_text(encoding="utf-8"))
    assert set(index["models"]) == MODELS
    assert index["source"] == "phantoms@v1"
    files = {file["file"] for file in index["models"].values()} | {"label_map.json", index["calibration"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {"models.json"}
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (version.folder / name).read_bytes(), name


def read_front_matter(text: str) -> dict[str, Any]:
    """Key and JSON value a line, which is YAML too; where PyYAML is installed, it must read the same."""
    block = text.split("---\n")[1]
    plain = {key: json.loads(value) for key, value in (row.split(": ", 1) for row in block.splitlines())}
    if find_spec("yaml"):
        import yaml

        assert yaml.safe_load(block) == plain
    return plain


def test_the_hubs_card_says_what_was_measured(version: PublishedVersion, run: Run, tmp_path: Path) -> None:
    export_version(version, "hugging-face", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    card = read_front_matter(text)
    assert text.startswith("---\n")
    assert (version.folder / "card.md").read_text(encoding="utf-8") in text
    assert card["license"] == "unknown"  # the phantoms' file states none
    assert {"simulated-hospitals", "synthetic-images", "research-only"} <= set(card["tags"])
    assert "non-commercial" not in card["tags"]
    result = card["model-index"][0]["results"][0]
    assert set(result) == {"task", "dataset", "metrics"}  # what the specification asks for
    assert result["task"]["type"] == "image-classification"
    assert "(simulated)" in result["dataset"]["name"]
    measured = run.read_json("evaluation.json")["splits"]["test"]["global"]["all"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values.pop("expected_calibration_error") >= 0
    scores = {"accuracy": "accuracy", "f1": "macro_f1", "balanced_accuracy": "balanced_accuracy"}
    assert values == {kind: measured[key] for kind, key in scores.items()}
    assert all("interval" in metric["name"] for metric in result["metrics"][:3])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"global.onnx", "models.json", "calibration.json", "README.md"} <= files


def test_non_commercial_images_make_a_non_commercial_card() -> None:
    card = front_matter(current_version(PROJECT / "models", "skin"))
    assert card["license"] == "cc-by-nc-4.0"
    assert "non-commercial" in card["tags"]
    card = front_matter(current_version(PROJECT / "models", "chest-xray"))
    assert card["license"] == "cc-by-4.0"
    assert "non-commercial" not in card["tags"]


class RefusedError(Exception):
    """Stands for MlflowException."""


class Store:
    """A tracking store in memory that refuses what MLflow 3.17 does (mlflow/utils/validation.py)."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.full_after = 10**9

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        return name

    def search_runs(self, ids: list[str], known: str, max_results: int) -> list[Any]:
        found = re.fullmatch(r"tags\.`([\w.]+)` = '(\w+)' AND attributes.status = 'FINISHED'", known)
        assert found is not None
        done = [key for key, run in self.runs.items() if run["tags"][found[1]] == found[2] and run.get("end")]
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key in done]

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str], run_name: str) -> Any:
        self.runs["1"] = {"start": start_time, "tags": tags, "params": {}, "metrics": {}, "artifacts": []}
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def log_batch(self, key: str, metrics: tuple[Any, ...] = (), params: tuple[Any, ...] = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for name, value in params:
            self._check(name)
            assert len(value) <= 6000
            assert name not in self.runs[key]["params"]
            self.runs[key]["params"][name] = value
        for name, value, time, step in metrics:
            self._check(name)
            assert isinstance(value, int | float)
            assert time > 1_600_000_000_000
            self.runs[key]["metrics"].setdefault(name, {})[step] = value
        self.full_after -= 1
        if not self.full_after:
            raise RefusedError("the disk\nis full")

    def log_artifact(self, key: str, path: str, folder: str | None) -> None:
        assert Path(path).is_file()
        self.runs[key]["artifacts"].append((folder, Path(path).name))

    def set_terminated(self, key: str, end_time: int) -> None:
        self.runs[key]["end"] = end_time

    def delete_run(self, key: str) -> None:
        del self.runs[key]

    def _check(self, name: str) -> None:
        assert re.fullmatch(r"[/\w.\- :]{1,250}", name)
        assert str(Path(name)) == name
        assert not name.startswith((".", "/"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """MLflow's client, without MLflow."""
    kept = Store()
    module, errors = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    entities = SimpleNamespace(Param=lambda *given: given, Metric=lambda *given: given)
    vars(module).update(MlflowClient=lambda uri: kept, entities=entities, exceptions=errors)
    vars(errors).update(MlflowException=RefusedError)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", errors)
    return kept


def test_mlflow_gets_settings_curves_and_scores_and_no_single_image(run: Run, store: Store, tmp_path: Path) -> None:
    assert export_mlflow(run, str(tmp_path / "tracking")) == "1"
    kept = store.runs["1"]
    assert kept["end"] >= kept["start"]
    assert kept["params"]["training.rounds"] == "3"
    assert kept["params"]["hospital.hospital-a.name"] == "Phantom North"
    for line in run.rounds():
        if line.validation is not None:
            logged = kept["metrics"][f"validation/{line.model}/{line.hospital}/macro_f1"][line.round]
            assert logged == line.validation.macro_f1
    cell = run.read_json("evaluation.json")["splits"]["test"]["local/hospital-a"]["hospital-b"]
    assert kept["metrics"]["final/test/local/hospital-a/hospital-b/accuracy"] == {0: cell["accuracy"]}
    low = kept["metrics"]["final/test/local/hospital-a/hospital-b/macro_f1.low"][0]
    assert low == cell["intervals"]["macro_f1"][0]
    names = {name for _, name in kept["artifacts"]}
    assert {"config.json", "evaluation.json", "rounds.jsonl", "fit_metrics.csv"} <= names
    assert not names & {"dataset_splits.json", "audit.json", "predictions.parquet", "training.log", "audit-log.jsonl"}
    assert not any(name.endswith(".safetensors") for name in names)
    assert "not for diagnosis" in kept["tags"]["mlflow.note.content"]
    assert "Simulated: " in kept["tags"]["mlflow.note.content"]
    with pytest.raises(RunError, match="holds run-001 already, as 1; delete it there first"):
        export_mlflow(run, str(tmp_path / "tracking"))


def test_what_mlflow_does_not_take_is_one_line_and_taken_back(run: Run, store: Store, tmp_path: Path) -> None:
    store.full_after = 2
    with pytest.raises(RunError, match=r"MLflow does not take the run: the disk is full; give another folder or URI"):
        export_mlflow(run, str(tmp_path / "tracking"))
    assert store.runs == {}
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="MLflow does not take the run"):
        export_mlflow(run, str(tmp_path / "file"))


@pytest.mark.parametrize("file", sorted((PROJECT / "federations").glob("*.toml")), ids=lambda path: path.stem)
def test_every_federations_settings_have_names_that_mlflow_takes(file: Path) -> None:
    for name in settings(load_federation(file)):
        Store()._check(name)


def test_mlflow_itself_reads_it(run: Run, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow; see requirements-mlflow.txt")
    key = export_mlflow(run, str(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    read = client.get_run(key)
    assert read.info.status == "FINISHED"
    assert read.data.params == settings(run.federation)
    figures = list(run_metrics(run))
    assert set(read.data.metrics) == {figure.key for figure in figures}
    history = client.get_metric_history(key, "validation/global/all/loss")
    assert [(one.step, one.value) for one in history] == [
        (one.step, one.value) for one in figures if one.key == "validation/global/all/loss"
    ]


def test_without_mlflow_the_command_says_what_to_install(engine: Command, run: Run, tmp_path: Path) -> None:
    if find_spec("mlflow"):
        pytest.skip("mlflow is installed here")
    arguments = ("--layout", "mlflow", "--to", tmp_path / "out", "--artifacts", run.folder.parent)
    assert "pip install -r requirements-mlflow.txt" in engine("export", "run-001", *arguments).error
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_version(engine: Command, version: PublishedVersion, tmp_path: Path) -> None:
    where = ("--to", tmp_path / "out", "--models", version.folder.parent.parent)
    assert engine("export", "phantoms@v1", "--layout", "hugging-face", *where).code == 0
    assert (tmp_path / "out" / "README.md").is_file()
    words = engine("export", "phantoms", "--layout", "medisync", *where).error
    assert words == "--layout 'medisync': is of a run, run-NNN; of a published version there is onnx, hugging-face"


def test_a_layout_of_versions_is_none_of_runs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'hugging-face': is of a published version, NAME; of a run there is onnx"):
        export_run(run, "hugging-face", tmp_path / "out")


def test_a_damaged_version_is_never_exported(phantom_version: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_version / "phantoms", tmp_path / "phantoms")
    (tmp_path / "phantoms" / "v1" / "global.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match=r"global\.onnx: is not as it was published"):
        export_version(PublishedVersion(tmp_path / "phantoms" / "v1"), "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_docs_lines_ask_an_exported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = current_version(PROJECT / "models", "brain-mri")
    monkeypatch.chdir(tmp_path)
    export_version(version, "onnx", Path("onnx-brain-mri"))
    text = (PROJECT / "docs" / "bridges.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(import json, numpy, onnxruntime\n(?:.*\n)*?)```", text)
    assert lines is not None
    exec(lines[1], {})
    assert capsys.readouterr().out.strip() in version.federation.classes


def test_the_docs_list_every_layout() -> None:
    text = (PROJECT / "docs" / "bridges.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", text, re.MULTILINE)
    made_of = {name: (one.of_run, one.of_version) for name, one in LAYOUTS.items()}
    assert {name: ("run" in of, "version" in of) for name, of in rows} == made_of
