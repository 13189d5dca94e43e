"""The commands: exit 0 or 2, one clear line for what a person can mend, the fixed JSON, and no torch for serving."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.cli import ENGINE_ONLY
from engine.results.files import read_json
from tests.conftest import Command, Outcome

PROJECT = Path(__file__).resolve().parent.parent
PHANTOMS = str(PROJECT / "federations" / "phantoms.toml")
CLASSES = ["glioma", "meningioma", "notumor", "pituitary"]
MODELS = {"global", "central", "local/hospital-a", "local/hospital-b", "local/hospital-c"}
FEDERATION = """\
name = "Test"
classes = ["glioma", "notumor"]
intended_input = "slices"

[training]
rounds = 2

[[hospital]]
id = "north"
name = "North"
folder = "north"
"""
NO_ENGINE = f"""\
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ENGINE_ONLY!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run one command in a process of its own where torch and its kin cannot be imported."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(NO_ENGINE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PROJECT}", "COLUMNS": "300"}

    def run(*arguments: object) -> Outcome:
        command = [sys.executable, "-m", "engine", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, timeout=120)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def federation_file(tmp_path: Path) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(FEDERATION, encoding="utf-8")
    return path


@pytest.fixture
def models(phantom_version: Path, tmp_path: Path) -> Path:
    return shutil.copytree(phantom_version, tmp_path / "models")


@pytest.fixture
def artifacts(phantom_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(phantom_run, tmp_path / "artifacts")


@pytest.fixture
def images(phantom_root: Path, tmp_path: Path) -> Path:
    """Three gliomas in GLIOMA, two healthy heads in No_Tumor."""
    folder = tmp_path / "images"
    for label, name, count in (("glioma", "GLIOMA", 3), ("notumor", "No_Tumor", 2)):
        (folder / name).mkdir(parents=True)
        for file in sorted((phantom_root / "hospital-a" / label).iterdir())[:count]:
            shutil.copy(file, folder / name)
    return folder


def one_image(images: Path) -> Path:
    return min((images / "GLIOMA").iterdir())


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["audit", "train"])
def test_an_unknown_key_is_named_with_file_and_line(engine: Command, federation_file: Path, command: str) -> None:
    federation_file.write_text(FEDERATION.replace("rounds", "ronds"), encoding="utf-8")
    error = engine(command, federation_file).error
    assert error == f"{federation_file}:6: unknown key 'training.ronds'; did you mean 'rounds'?"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.rounds", "--set training.rounds: write it as section.key=value, e.g. training.rounds=5"),
        ("training.roundz=5", "unknown key 'training.roundz'; did you mean 'rounds'?"),
        ("training.rounds=many", "training.rounds: Input should be a valid integer"),
        ("name.first=x", "--set name.first=x: 'name' is no section"),
    ],
)
def test_a_bad_set_is_one_clear_line(engine: Command, federation_file: Path, change: str, words: str) -> None:
    assert words in engine("train", federation_file, "--set", change).error


def test_an_unknown_arm_is_named(engine: Command, federation_file: Path) -> None:
    error = engine("train", federation_file, "--arms", "local,centrall").error
    assert "arms.1" in error
    assert "'centrall'" in error


def test_a_federation_file_that_is_not_there_is_named(engine: Command, tmp_path: Path) -> None:
    assert engine("audit", tmp_path / "absent.toml").error.startswith(f"{tmp_path / 'absent.toml'}: No such file")


@pytest.mark.parametrize("command", ["audit", "train"])
def test_a_missing_data_folder_is_named(engine: Command, federation_file: Path, tmp_path: Path, command: str) -> None:
    error = engine(command, federation_file, "--data", tmp_path / "absent").error
    assert error.startswith(f"{tmp_path / 'absent'}: no such data folder; ")
    assert not (tmp_path / "here" / "artifacts").exists()


def test_a_missing_hospital_folder_stops_a_training_before_a_run_is_made(
    engine: Command, federation_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    error = engine("train", federation_file, "--data", tmp_path / "data").error
    assert "North: its folder 'north' is missing" in error
    assert not (tmp_path / "here" / "artifacts").exists()


@pytest.mark.parametrize(
    "arguments",
    [("evaluate", "run-042", "--images", "."), ("predict", "run-042", "x.png"), ("publish", "run-042", "brain")],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_run_says_which_command_lists_them(
    engine: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    error = engine(*arguments, "--artifacts", tmp_path).error
    assert error == f"{tmp_path / 'run-042'}: no such run; `python -m engine runs` lists them"


@pytest.mark.parametrize(
    "arguments",
    [("evaluate", "absent", "--images", "."), ("predict", "absent", "x.png")],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_model_says_which_there_are(engine: Command, models: Path, arguments: tuple[str, ...]) -> None:
    error = engine(*arguments, "--models", models).error
    assert error.startswith(f"no published model 'absent' in {models} (there: phantoms)")


@pytest.mark.parametrize(
    "arguments",
    [("predict",), ("nonsense",), ("train", "x.toml", "--wrong"), ("evaluate", "phantoms")],
    ids=lambda arguments: arguments[0],
)
def test_a_command_line_that_cannot_be_meant_is_one_line_too(engine: Command, arguments: tuple[str, ...]) -> None:
    assert engine(*arguments).error


def test_a_tampered_model_is_refused(engine: Command, models: Path, images: Path) -> None:
    path = models / "phantoms" / "v1" / "central.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    error = engine("predict", "phantoms", one_image(images), "--models", models).error
    assert error.startswith(f"{path}: is not as it was published")


def test_resuming_with_other_settings_is_refused(engine: Command, artifacts: Path) -> None:
    options = ("--resume", "run-001", "--set", "training.rounds=9", "--artifacts", artifacts)
    assert "--resume goes on with the run's own settings" in engine("train", PHANTOMS, *options).error


def test_resuming_a_finished_run_is_refused(engine: Command, artifacts: Path) -> None:
    error = engine("train", PHANTOMS, "--resume", "run-001", "--artifacts", artifacts).error
    assert error == f"{artifacts / 'run-001'}: is finished; there is nothing to resume"


def test_publishing_a_damaged_run_is_refused(engine: Command, artifacts: Path, tmp_path: Path) -> None:
    (artifacts / "run-001" / "evaluation.json").write_text("{}", encoding="utf-8")
    error = engine("publish", "run-001", "brain", "--artifacts", artifacts, "--models", tmp_path / "m").error
    assert error.startswith(f"{artifacts / 'run-001' / 'evaluation.json'}: is not as it was written")
    assert not (tmp_path / "m").exists()


# --- evaluate ------------------------------------------------------------------------------------------------------


def evaluated(engine: Command, models: Path, images: Path, *more: object) -> tuple[dict[str, object], Outcome]:
    file = images.parent / "scores.json"
    outcome = engine("evaluate", "phantoms", "--images", images, "--json", file, "--models", models, *more)
    assert outcome.success
    return read_json(file), outcome


def test_evaluate_writes_exactly_the_fixed_shape(engine: Command, models: Path, images: Path) -> None:
    written, _ = evaluated(engine, models, images)
    assert list(written) == ["source", "images", "models"]
    assert written["source"] == "phantoms"
    assert written["images"] == 5
    assert set(written["models"]) == MODELS
    keys = {"accuracy", "balanced_accuracy", "macro_f1", "ece", "n_images", "per_class", "confusion_matrix"}
    for scores in written["models"].values():
        assert set(scores) == keys
        assert scores["n_images"] == 5
        assert list(scores["per_class"]) == CLASSES
        assert {frozenset(cells) for cells in scores["per_class"].values()} == {
            frozenset({"precision", "recall", "f1", "support"})
        }
        assert [cells["support"] for cells in scores["per_class"].values()] == [3, 0, 2, 0]
        matrix = scores["confusion_matrix"]
        assert [sum(row) for row in matrix] == [3, 0, 2, 0]
        assert scores["accuracy"] == pytest.approx((matrix[0][0] + matrix[2][2]) / 5)
        assert scores["balanced_accuracy"] == pytest.approx((matrix[0][0] / 3 + matrix[2][2] / 2) / 2)


def test_evaluate_counts_what_predict_says(engine: Command, models: Path, images: Path) -> None:
    written, _ = evaluated(engine, models, images)
    files = sorted(images.rglob("*.png"))
    answers = json.loads(engine("predict", "phantoms", *files, "--json", "--insist", "--models", models).success)
    for model, scores in written["models"].items():
        matrix = [[0] * 4 for _ in CLASSES]
        for file, answer in zip(files, answers, strict=True):
            truth = {"GLIOMA": 0, "No_Tumor": 2}[file.parent.name]
            matrix[truth][CLASSES.index(answer["opinions"][model]["label"])] += 1
        assert scores["confusion_matrix"] == matrix


def test_a_run_is_evaluated_with_the_same_keys(engine: Command, artifacts: Path, images: Path) -> None:
    file = images.parent / "scores.json"
    options = ("--images", images, "--json", file, "--artifacts", artifacts)
    assert engine("evaluate", "run-001", *options).success
    written = read_json(file)
    assert (written["source"], written["images"], set(written["models"])) == ("run-001", 5, MODELS)


def test_an_unknown_folder_is_named_and_left_out(engine: Command, models: Path, images: Path) -> None:
    shutil.copytree(images / "GLIOMA", images / "gliomas")
    shutil.copytree(images / "GLIOMA", images / "scans")
    written, outcome = evaluated(engine, models, images)
    assert written["images"] == 5
    assert "left out: folder 'gliomas' names no class (did it mean glioma?)\n" in outcome.err
    assert "left out: folder 'scans' names no class\n" in outcome.err


def test_an_unreadable_image_is_named_whole_and_left_out(
    engine: Command, models: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # what a pipe gets
    bad = images / "GLIOMA" / ("a-long-name-such-as-scanners-give-" * 3 + ".png")
    bad.write_text("a letter", encoding="utf-8")
    written, outcome = evaluated(engine, models, images)
    assert written["images"] == 5
    assert f"left out: {bad}: is no PNG, JPEG or DICOM image\n" in outcome.err


def test_a_folder_under_the_federations_own_alias_counts(engine: Command, models: Path, images: Path) -> None:
    path = models / "phantoms" / "v1" / "manifest.json"
    manifest = read_json(path)
    manifest["federation"]["hospital"][1]["aliases"] = {"pit tumour": "pituitary"}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copytree(images / "GLIOMA", images / "Pit_Tumour")
    written, _ = evaluated(engine, models, images)
    supports = [cells["support"] for cells in written["models"]["global"]["per_class"].values()]
    assert supports == [3, 0, 2, 3]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_a_usable_image_is_an_error(engine: Command, models: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty" / "glioma").mkdir(parents=True)
    error = engine("evaluate", "phantoms", "--images", tmp_path / name, "--models", models).error
    assert error.startswith(f"{tmp_path / name}: no ")


# --- predict -------------------------------------------------------------------------------------------------------


def test_predict_prints_one_entry_per_image_in_the_order_given(engine: Command, models: Path, images: Path) -> None:
    files = sorted(images.rglob("*.png"), reverse=True)
    files = [*files, files[0]]
    answers = json.loads(engine("predict", "phantoms@v1", *files, "--json", "--models", models).success)
    assert [answer["image"] for answer in answers] == [str(file) for file in files]
    assert answers[0]["opinions"] == answers[-1]["opinions"]
    for answer in answers:
        assert list(answer) == ["image", "refused", "reasons", "opinions"]
        assert (answer["refused"], answer["reasons"], set(answer["opinions"])) == (False, [], MODELS)
        for opinion in answer["opinions"].values():
            assert list(opinion) == ["label", "probabilities", "prediction_set"]
            assert list(opinion["probabilities"]) == CLASSES
            assert sum(opinion["probabilities"].values()) == pytest.approx(1)
            assert opinion["label"] == max(CLASSES, key=opinion["probabilities"].__getitem__)
            assert opinion["prediction_set"][0] == opinion["label"]
            assert set(opinion["prediction_set"]) <= set(CLASSES)


def test_predict_in_words_names_simulated_hospitals_and_the_disclaimer(
    engine: Command, models: Path, images: Path
) -> None:
    out = engine("predict", "phantoms", one_image(images), "--models", models).success
    assert "research demonstration, not for diagnosis" in out
    assert "Phantom North (simulated)" in out
    assert re.search(r"Phantom \w+(?! \(simulated\))\b(?! \()", out) is None


@pytest.mark.parametrize("content", [b"", b"a letter", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_one_error_line(engine: Command, models: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    assert engine("predict", "phantoms", path, "--models", models).error.startswith(f"{path}: ")


def test_an_image_that_is_not_there_is_one_error_line(engine: Command, models: Path, tmp_path: Path) -> None:
    error = engine("predict", "phantoms", tmp_path / "absent.png", "--models", models).error
    assert error == f"{tmp_path / 'absent.png'}: No such file or directory"


def test_an_unreadable_image_does_not_silence_the_others(engine: Command, models: Path, images: Path) -> None:
    bad = images / "bad.png"
    bad.touch()
    outcome = engine("predict", "phantoms", bad, one_image(images), "--json", "--models", models)
    assert outcome.error == f"{bad}: the file is empty"
    first, second = json.loads(outcome.out)
    assert first == {"image": str(bad), "refused": True, "reasons": ["the file is empty"], "opinions": {}}
    assert set(second["opinions"]) == MODELS


def test_an_image_of_another_kind_is_refused_and_answered_only_if_insisted(
    engine: Command, models: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (40, 90), (90, 20, 20)).save(path)
    arguments = ("predict", "phantoms", path, "--models", models)
    (answer,) = json.loads(engine(*arguments, "--json").success)
    assert answer["refused"]
    assert answer["reasons"]
    assert answer["opinions"] == {}
    told = engine(*arguments).success
    assert "refused" in told
    assert not any(label in told for label in CLASSES)
    (insisted,) = json.loads(engine(*arguments, "--json", "--insist").success)
    assert insisted["refused"]
    assert set(insisted["opinions"]) == MODELS


def test_a_report_is_written_without_the_images_name(
    engine: Command, models: Path, images: Path, tmp_path: Path
) -> None:
    named = shutil.copy(one_image(images), tmp_path / "jane-doe.png")
    folder = tmp_path / "reports"
    assert engine("predict", "phantoms", named, "--models", models, "--report", folder, "--insist").success
    assert {path.name for path in folder.iterdir()} == {"image-1.pdf", "image-1.json"}
    for path in folder.iterdir():
        assert b"jane" not in path.read_bytes()
    report = read_json(folder / "image-1.json")
    assert set(report["opinions"]) == MODELS
    again = engine("predict", "phantoms", named, "--models", models, "--report", folder)
    assert "image-1.pdf: is there already" in again.error


def test_a_report_of_a_run_is_refused(engine: Command, artifacts: Path, images: Path, tmp_path: Path) -> None:
    arguments = ("predict", "run-001", one_image(images), "--artifacts", artifacts, "--report", tmp_path / "r")
    assert "publish the run first" in engine(*arguments).error


def test_calibrating_anew_says_where_it_stands(
    engine: Command, models: Path, artifacts: Path, phantom_root: Path
) -> None:
    options = ("--artifacts", artifacts, "--models", models, "--data", phantom_root)
    assert engine("calibrate", "phantoms", *options).code == 0
    assert engine("calibrate", "phantoms", "--artifacts", models, "--models", models).error.startswith(str(models))


# --- lists and rollback --------------------------------------------------------------------------------------------


def add_version(models: Path, version: str) -> None:
    shutil.copytree(models / "phantoms" / "v1", models / "phantoms" / version)
    path = models / "phantoms" / version / "manifest.json"
    path.write_text(json.dumps(read_json(path) | {"version": version}), encoding="utf-8")


def test_models_lists_every_version_and_marks_the_served_one(engine: Command, models: Path) -> None:
    add_version(models, "v2")
    out = engine("models", "--models", models).success
    assert re.search(r"phantoms\s+│\s+v1 \*\s+│\s+run-001", out)
    assert re.search(r"phantoms\s+│\s+v2\s+│\s+run-001", out)


def test_no_models_says_how_to_make_one(engine: Command, tmp_path: Path) -> None:
    outcome = engine("models", "--models", tmp_path)
    assert outcome.success == ""
    assert "python -m engine publish run-001 NAME" in outcome.err


def test_rollback_serves_another_version(engine: Command, models: Path) -> None:
    add_version(models, "v2")
    outcome = engine("rollback", "phantoms", "v2", "--models", models)
    assert outcome.success == ""
    assert outcome.err == "phantoms serves v2 now\n"
    assert read_json(models / "phantoms" / "current.json") == {"schema_version": 1, "version": "v2"}


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("phantoms", "v9", "phantoms/v9: no such published version"),
        ("phantoms", "9", "'phantoms@9' is no published version"),
        ("absent", "v1", "absent/v1: no such published version"),
        ("../models/phantoms", "v1", "is no published version"),
    ],
)
def test_a_rollback_to_nothing_is_refused_and_changes_nothing(
    engine: Command, models: Path, name: str, version: str, words: str
) -> None:
    before = (models / "phantoms" / "current.json").read_bytes()
    assert words in engine("rollback", name, version, "--models", models).error
    assert (models / "phantoms" / "current.json").read_bytes() == before


def test_runs_lists_finished_unfinished_and_damaged_ones(engine: Command, artifacts: Path) -> None:
    for name in ("run-002", "run-003", "run-004"):
        shutil.copytree(artifacts / "run-001", artifacts / name)
    (artifacts / "run-002" / "manifest.json").unlink()
    (artifacts / "run-003" / "manifest.json").write_text("{", encoding="utf-8")
    (artifacts / "run-004" / "config.json").unlink()
    out = engine("runs", "--artifacts", artifacts).success
    rows = {match[1]: line for line in out.splitlines() if (match := re.match(r"│ (run-\d{3}) ", line))}
    assert list(rows) == ["run-001", "run-002", "run-003", "run-004"]
    assert "│ finished" in rows["run-001"]
    assert "│ unfinished" in rows["run-002"]
    assert "│ damaged: " in rows["run-003"]
    assert "│ damaged: " in rows["run-004"]


def test_no_runs_says_how_to_make_one(engine: Command, tmp_path: Path) -> None:
    outcome = engine("runs", "--artifacts", tmp_path)
    assert outcome.success == ""
    assert "python -m engine train" in outcome.err


def test_audit_prints_every_hospitals_counts_and_findings(engine: Command, phantom_root: Path) -> None:
    out = engine("audit", PHANTOMS, "--data", phantom_root).success
    assert re.search(r"Phantom Coast \(simulated\)\s+│\s+12 │\s+18 │\s+12 │\s+12 │\s+54 │\s+0 │", out)
    assert re.search(r"Phantom Valley \(simulated\)\s+│\s+14 │\s+12 │\s+0 │\s+16 │\s+42 │\s+0 │", out)


def test_audit_of_a_damaged_hospital_still_reports(engine: Command, federation_file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    out = engine("audit", federation_file, "--data", tmp_path / "data").success
    assert "error: North: its folder 'north' is missing; mend 'folder' in the TOML" in out


# --- without torch -------------------------------------------------------------------------------------------------


def test_the_bare_process_really_has_no_torch(bare: Command, artifacts: Path, images: Path) -> None:
    error = bare("evaluate", "run-001", "--images", images, "--artifacts", artifacts).error
    assert "requirements-engine.txt" in error


def test_predict_needs_no_torch(bare: Command, models: Path, images: Path) -> None:
    command = ("predict", "phantoms", one_image(images), "--json", "--insist", "--models", models)
    answers = json.loads(bare(*command).success)
    assert set(answers[0]["opinions"]) == MODELS


def test_evaluate_needs_no_torch(bare: Command, models: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    assert bare("evaluate", "phantoms", "--images", images, "--json", file, "--models", models).success
    assert set(read_json(file)["models"]) == MODELS


def test_models_needs_no_torch(bare: Command, models: Path) -> None:
    assert "v1 *" in bare("models", "--models", models).success


def test_runs_needs_no_torch(bare: Command, artifacts: Path) -> None:
    assert "run-001" in bare("runs", "--artifacts", artifacts).success


def test_auditing_without_the_engine_says_what_to_install(bare: Command, phantom_root: Path) -> None:
    error = bare("audit", PHANTOMS, "--data", phantom_root).error
    assert "imagehash is not installed" in error
    assert "pip install -r requirements-engine.txt" in error


def test_training_without_torch_says_what_to_install(bare: Command, phantom_root: Path, tmp_path: Path) -> None:
    error = bare("train", PHANTOMS, "--data", phantom_root, "--artifacts", tmp_path / "a").error
    assert "torch is not installed" in error
    assert "pip install -r requirements-engine.txt" in error
    assert not (tmp_path / "a").exists()


def test_publishing_without_torch_says_what_to_install(bare: Command, artifacts: Path, tmp_path: Path) -> None:
    error = bare("publish", "run-001", "brain", "--artifacts", artifacts, "--models", tmp_path / "m").error
    assert "pip install -r requirements-engine.txt" in error
    assert not (tmp_path / "m").exists()


def test_square_brackets_are_no_markup(engine: Command, models: Path, images: Path) -> None:
    """A file's name stands beside a diagnosis, so it must be printed as it is."""
    odd = images / "scan [old].png"
    odd.write_bytes(one_image(images).read_bytes())
    worse = images / "x[" / "b].png"
    worse.parent.mkdir()
    shutil.copy(odd, worse)
    out = engine("predict", "phantoms", odd, worse, "--insist", "--models", models).success
    assert "scan [old].png" in out
    assert "x[/b].png" in out


def test_a_name_of_another_federation_is_not_taken_over(
    engine: Command, models: Path, artifacts: Path, phantom_root: Path
) -> None:
    path = models / "phantoms" / "v1" / "manifest.json"
    manifest = read_json(path)
    manifest["federation"]["name"] = "Chest"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    options = ("--artifacts", artifacts, "--models", models, "--data", phantom_root)
    assert "'phantoms' is 'Chest'" in engine("publish", "run-001", "phantoms", *options).error
