"""Evaluation's privacy view: nothing measured, measured, stale, damaged; with a budget, and what it cost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from engine.data.federation_data import FederationData
from engine.federation.leakage import measure_leakage
from engine.results.bootstrap import Estimate
from engine.results.files import sha256_of, write_json
from engine.results.leakage import Leakage, leakage_file, pictures_file
from engine.results.run_folder import Run
from tests.test_pages import artifacts, open_page, words
from ui.leakage_figures import inversion_figure, membership_figure
from ui.leaked import inversion_sentence, inversion_table, membership_sentence, membership_table
from ui.privacy import cost_sentence, find_twin

__all__ = ["artifacts"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def leakage(phantom_run: Path, tiny_data: FederationData) -> dict[str, Any]:
    """Of run-001, with an attack too short to draw anything."""
    result, _ = measure_leakage(Run(phantom_run / "run-001"), tiny_data, 1, 32)
    return result


def lay_out(artifacts: Path, phantom_run: Path, content: dict[str, Any] | None = None) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    if content is not None:
        write_json(leakage_file(artifacts, "run-001"), content)


def open_privacy() -> AppTest:
    app = open_page("3_Evaluation", run="run-001")
    app.segmented_control(key="evaluation_view").set_value("Privacy").run()
    assert not app.exception
    assert not app.error
    assert "nan" not in words(app)
    return app


def test_unmeasured_says_so_and_how_to_measure(artifacts: Path, phantom_run: Path) -> None:
    lay_out(artifacts, phantom_run)
    app = open_privacy()
    assert not app.get("plotly_chart")
    assert "No noise was added in this training" in words(app)
    assert "No secure aggregation is recorded" in words(app)
    assert "Not measured yet for run-001" in app.info[0].value
    assert app.code[0].value.startswith("python -m engine leakage run-001 --artifacts ")
    assert "What it cost" not in words(app), "nothing was on that could cost"
    assert "epsilon" not in words(app)


def test_scores_are_where_they_were(artifacts: Path, phantom_run: Path) -> None:
    lay_out(artifacts, phantom_run)
    app = open_page("3_Evaluation")
    assert not app.exception
    assert len(app.get("plotly_chart")) == 2
    assert "One model, one hospital" in words(app)


def test_what_was_measured_is_shown(artifacts: Path, phantom_run: Path, leakage: dict[str, Any]) -> None:
    lay_out(artifacts, phantom_run, leakage)
    app = open_privacy()
    assert not app.warning
    assert len(app.get("plotly_chart")) == 2
    (federated,) = (row for row in leakage["membership"] if (row["model"], row["hospital"]) == ("global", "all"))
    auc = federated["auc"]
    assert f"AUC **{auc['value']:.2f} ({auc['low']:.2f}-{auc['high']:.2f})**" in words(app)
    assert all(note in words(app) for note in leakage["notes"])
    assert "An attack that fails on the update as it is says nothing about noise or masks" in words(app)
    assert "Phantom North (simulated)" in words(app)
    assert len(app.dataframe[0].value) == len(leakage["membership"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file, content: file.write_text(file.read_text()[:200]), "cannot be read"),
        (lambda file, content: write_json(file, {**content, "schema_version": 2}), "unknown to this program"),
        (lambda file, content: write_json(file, {**content, "membership": 3}), "is damaged, measure the leakage again"),
        (lambda file, content: write_json(file, [1]), "is no JSON object"),
        (
            lambda file, content: write_json(file, {**content, "run_manifest_sha256": "0" * 64}),
            "is of another run that was called run-001; measure this run anew",
        ),
    ],
)
def test_a_file_that_is_none_is_one_line(
    damage: Callable[[Path, Any], None], sentence: str, artifacts: Path, phantom_run: Path, leakage: dict[str, Any]
) -> None:
    lay_out(artifacts, phantom_run, leakage)
    damage(leakage_file(artifacts, "run-001"), leakage)
    app = open_privacy()
    (warning,) = app.warning
    assert sentence in warning.value
    assert not app.get("plotly_chart")
    assert "leakage run-001" in app.code[0].value


def test_pictures_are_shown_where_they_belong_to_the_figures(
    artifacts: Path, phantom_run: Path, leakage: dict[str, Any]
) -> None:
    lay_out(artifacts, phantom_run, leakage)
    sheet = pictures_file(artifacts, "run-001")
    Image.new("L", (4 * 32, 7 * 32)).save(sheet)
    inversion = {**leakage["inversion"], "pictures_sha256": sha256_of(sheet)}
    write_json(leakage_file(artifacts, "run-001"), {**leakage, "inversion": inversion})
    app = open_privacy()
    assert not app.warning
    assert "no patient's image that came back is ever written" in words(app)
    Image.new("L", (4 * 32, 7 * 32), 9).save(sheet)
    app = open_privacy()
    assert "is not as it was written" in app.warning[0].value


def make_private(folder: Path) -> None:
    """As it would stand, had it been trained with a budget."""
    config = json.loads((folder / "config.json").read_text())
    config["federation"]["privacy"] = {"epsilon": 6.0, "delta": 1e-3, "max_grad_norm": 1.0}
    write_json(folder / "config.json", config)
    done = {"noise_multiplier": 1.25, "sample_rate": 0.2, "steps": 15}
    spent = {"n_images": 40, "epsilon": 5.99, "history": [done]}
    told = {
        "schema_version": 1, "mechanism": "DP-SGD", "accountant": "Opacus RDP", "delta": 1e-3, "max_grad_norm": 1.0,
        "norm": "batch", "models": {"global": {"hospital-a": spent}, "central": {"pooled": spent}},
    }  # fmt: skip
    write_json(folder / "privacy.json", told)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("config.json", "privacy.json"):
        path = folder / name
        manifest["files"][name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size, "detached": False}
    write_json(folder / "manifest.json", {**manifest, "audit_log": None})
    (folder / "audit-log.jsonl").unlink(missing_ok=True)


def test_a_budget_is_shown_and_what_it_cost_where_a_twin_is(
    artifacts: Path, phantom_run: Path, copy_run: Callable[[Path], Path], leakage: dict[str, Any]
) -> None:
    lay_out(artifacts, phantom_run)
    make_private(artifacts / "run-001")
    app = open_privacy()
    assert "**epsilon at most 5.99**" in words(app)
    table = app.dataframe[0].value
    assert list(table["Images of"]) == ["Phantom North (simulated)", "all hospitals, pooled"]
    assert list(table["Noise multiplier"]) == ["1.25", "1.25"]
    assert "Not measured: no finished run beside this one" in app.info[0].value
    copy_run(artifacts / "run-002")
    app = open_privacy()
    assert "beside that of run-002, which differs in `[privacy]` alone: **+0.0 points (+0.0 to +0.0)**" in words(app)
    twin = find_twin(Run(artifacts / "run-001"))
    assert twin is not None
    assert twin.name == "run-002"
    assert find_twin(Run(artifacts / "run-002")) is None
    (twin.folder / "evaluation.json").write_text("{}")
    assert find_twin(Run(artifacts / "run-001")) is None, "a damaged run is no witness"
    said = cost_sentence(Run(artifacts / "run-001"), twin, Estimate(-0.031, -0.05, -0.01), 40)
    assert "**-3.1 points (-5.0 to -1.0)** on the same 40 test images" in said
    assert "tell the two apart" not in said


def test_what_the_figures_hold(phantom_run: Path, leakage: dict[str, Any]) -> None:
    federation, found = Run(phantom_run / "run-001").federation, Leakage.model_validate(leakage)
    drawn = membership_figure(found.membership, federation)
    assert sum(len(trace.x) for trace in drawn.data) == len(found.membership)
    assert [trace.name for trace in drawn.data] == ["Federated", "Hospital alone", "Pooled", "Control: saw neither"]
    assert len(membership_table(federation, found.membership)) == len(found.membership)
    assert "Each hospital's own model, on its images: " in membership_sentence(federation, found.membership)
    assert found.inversion is not None
    dots, means, guesses = inversion_figure(found.inversion).data
    assert len(dots.x) == 3 * (4 + 8)
    assert len(means.x) == len(guesses.x) == 6
    assert list(inversion_table(found.inversion)["Images in it"]) == [1, 1, 1, 8, 8, 8]
    best = {"ssim": 0.9, "psnr": 30.0}
    attacks = [
        {
            **attack,
            "images": [{**image, **(best if attack["variant"] == "plain" else {})} for image in attack["images"]],
        }
        for attack in leakage["inversion"]["attacks"]
    ]
    leaking = Leakage.model_validate({**leakage, "inversion": {**leakage["inversion"], "attacks": attacks}}).inversion
    assert leaking is not None
    said = inversion_sentence(federation, leaking)
    assert (
        "drew 4 of 4 from updates of one image each and 8 of 8 from one update of 8 images closer than a guess" in said
    )
    assert said.endswith("With noise 0 of all 12; from the sum of 3 hospitals' updates, 0.")
