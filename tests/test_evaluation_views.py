"""Evaluation's views beyond Scores on a real run: calibration, errors, curves, a threshold, subgroups."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.errors import RunError
from engine.results.answers import read_answers
from engine.results.files import sha256_of
from engine.results.mistakes import mistakes
from engine.results.reliability import calibration_error
from engine.results.run_folder import Run
from engine.results.subgroups import read_subgroups
from engine.results.thresholds import at_threshold
from engine.results.words import percent
from ui.evaluation_views import VIEWS
from ui.mistakes import image_files

PROJECT = Path(__file__).resolve().parent.parent
Open = Callable[..., AppTest]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def said(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.info, app.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def test_calibration_by_hospital(phantom_run: Path, open_evaluation: Open) -> None:
    app = open_evaluation("Calibration", phantom_run)
    error = calibration_error(read_answers(Run(phantom_run / "run-001"), "test"), "global")
    assert f"its calibration error is **{percent(error.value)} (" in said(app)
    before = app.table[0].value
    app.selectbox(key="calibration_hospital").select("hospital-b").run()
    assert not app.exception
    assert len(app.table[0].value) < len(before) or not app.table[0].value.equals(before)


def test_errors_are_listed_and_shown_where_the_very_images_lie(
    phantom_run: Path, phantom_root: Path, open_evaluation: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(phantom_run / "run-001")
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    wrong = mistakes(read_answers(run, "test"), "global")
    assert len(wrong)
    app = open_evaluation("Errors", phantom_run)
    assert f"calls **{len(wrong):,} of " in said(app)
    assert list(app.table[0].value["Image"]) == list(wrong["path"][:12])
    monkeypatch.chdir(tmp_path)  # neither there nor in data/ here
    assert image_files(run, wrong) == {}
    shutil.copytree(phantom_root, tmp_path / "phantoms")
    assert set(image_files(run, wrong)) == set(wrong["path"])
    (tmp_path / "phantoms" / wrong["path"][0]).write_bytes(b"another")
    assert set(image_files(run, wrong)) == set(wrong["path"][1:])
    app = open_evaluation("Errors", phantom_run)
    app.toggle(key="mistakes_images").set_value(True).run()
    assert not app.exception
    assert len(app.get("image")) == len(wrong[:12]) - 1
    assert "not the one that the run read" in said(app)


def test_curves_of_every_model(phantom_run: Path, open_evaluation: Open) -> None:
    app = open_evaluation("ROC and PR", phantom_run)
    cells = json.loads((phantom_run / "run-001" / "evaluation.json").read_text())["splits"]["test"]
    assert [row.split(" ")[0] for row in app.table[0].value["Area under ROC"]] == [
        f"{cells[model]['all']['auc']['glioma']:.3f}"
        for model in ("global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central")
    ]
    app.selectbox(key="roc_class").select("notumor")
    app.selectbox(key="roc_hospital").select("hospital-c").run()
    assert not app.exception
    assert "so there is no curve" in said(app)


def test_a_threshold_is_explored_on_validation_images_and_judged_on_others(
    phantom_run: Path, open_evaluation: Open
) -> None:
    app = open_evaluation("Threshold", phantom_run)
    assert "Choose a threshold here, then judge it on test images" in said(app)
    app.slider(key="threshold").set_value(0.2).run()
    assert not app.exception
    found = at_threshold(read_answers(Run(phantom_run / "run-001"), "validation"), "global", "glioma", 0.2)
    assert f"From 20% on, **{found.found} of {found.found + found.missed}** glioma images are found" in said(app)
    app.segmented_control(key="threshold_split").set_value("test").run()
    assert "choose it on validation images, and look here once" in said(app)


def test_a_run_without_subgroups_says_so(phantom_run: Path, open_evaluation: Open) -> None:
    assert "there are no subgroups" in said(open_evaluation("Subgroups", phantom_run))


def test_subgroups_of_a_run_that_recorded_them(
    copy_run: Callable[[Path], Path], open_evaluation: Open, tmp_path: Path
) -> None:
    folder = copy_run(tmp_path / "artifacts" / "run-001")
    images = [
        one for one in json.loads((folder / "dataset_splits.json").read_text())["images"] if one["split"] != "train"
    ]
    content = {
        "schema_version": 1,
        "paths": [one["path"] for one in images],
        "columns": {"sex": [("female", "male")[number % 2] for number in range(len(images))]},
    }
    file = folder / "subgroups.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["subgroups.json"] = {"sha256": sha256_of(file), "bytes": file.stat().st_size, "detached": False}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    app = open_evaluation("Subgroups", tmp_path / "artifacts")
    assert list(app.table[0].value["Sex"]) == ["female", "male"]
    n_test = sum(one["split"] == "test" for one in images)
    assert sum(int(n) for n in app.table[0].value["n"]) == n_test
    file.write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(RunError, match="is not as a run writes it"):
        read_subgroups(Run(folder))


@pytest.mark.parametrize("view", [view for view in VIEWS if view not in ("Privacy", "Subgroups")])
def test_a_run_over_a_network_says_where_its_predictions_are(
    view: str, copy_run: Callable[[Path], Path], open_evaluation: Open, tmp_path: Path
) -> None:
    folder = copy_run(tmp_path / "artifacts" / "run-001")
    config = json.loads((folder / "config.json").read_text()) | {"transport": "flower"}
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"] |= {
        "sha256": sha256_of(folder / "config.json"),
        "bytes": (folder / "config.json").stat().st_size,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    app = open_evaluation(view, tmp_path / "artifacts")
    assert "stays with the hospitals" in app.error[0].value
