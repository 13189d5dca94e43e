"""Temperatures, prediction sets and the gate: fitted as their papers say, and honest on images they never saw."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data.federation_data import FederationData
from engine.data.statistics import STATISTICS, measure_statistics
from engine.errors import ModelError, RunError
from engine.inference.calibration import Calibration, ModelCalibration, prediction_set
from engine.inference.gate import GATED, WORDS, Gate
from engine.inference.panel import open_panel
from engine.inference.quality import quality_remarks
from engine.publishing.calibrate import COVERAGE
from engine.publishing.fitting import Sums, fit_gaussian, fit_temperature, fit_threshold
from engine.publishing.publish import calibrate_version
from engine.results.files import sha256_of
from engine.results.metrics import expected_calibration_error, softmax
from engine.results.published import current_version
from engine.results.run_folder import find_run


def overconfident(n_images: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax at `temperature` is the very chance of each label."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(0, 2, (n_images, 4))
    chances = softmax(true_logits)
    labels = np.array([rng.choice(4, p=row) for row in chances])
    return true_logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_logits_is_found(temperature: float) -> None:
    logits, labels = overconfident(20_000, temperature, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


def test_a_fitted_temperature_lowers_the_error_on_other_images() -> None:
    logits, labels = overconfident(2_000, 3.0, seed=2)
    fitted = fit_temperature(*overconfident(500, 3.0, seed=3))
    before = expected_calibration_error(softmax(logits), labels)
    assert expected_calibration_error(softmax(logits / fitted), labels) < 0.3 * before


def test_no_images_and_flawless_ones_have_a_temperature_all_the_same() -> None:
    """Without one error among n images a model is as sure as n images allow, however sure it was."""
    assert fit_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1
    for n_images, loudness in ((8, 10.0), (100, 10.0), (100, 2.0)):
        logits = loudness * np.eye(4)[np.arange(n_images) % 4]
        sure = softmax(logits / fit_temperature(logits, np.arange(n_images) % 4)).max(axis=1)
        assert sure == pytest.approx(1 - 0.75 / (n_images + 2), abs=1e-3)


def test_sets_cover_as_promised_on_images_that_did_not_fit_them() -> None:
    covered = []
    for seed in range(20):
        logits, labels = overconfident(1_400, 1.0, seed=100 + seed)
        threshold = fit_threshold(softmax(logits[:400]), labels[:400], 0.9)
        sets = [prediction_set(row, threshold) for row in softmax(logits[400:])]
        covered.append(np.mean([label in kept for label, kept in zip(labels[400:], sets, strict=True)]))
    assert np.mean(covered) >= 0.9


def test_too_few_images_promise_nothing_but_all_classes() -> None:
    threshold = fit_threshold(softmax(np.eye(4)[:3]), np.arange(3), 0.9)
    assert threshold == 1
    assert sorted(prediction_set(np.array([0.4, 0.3, 0.2, 0.1]), threshold)) == [0, 1, 2, 3]


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda values: sum(values) > 0),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_a_set_holds_the_top_class_and_grows_with_its_threshold(values: list[float], a: float, b: float) -> None:
    probabilities = np.array(values) / sum(values)
    small, large = (prediction_set(probabilities, threshold) for threshold in sorted((a, b)))
    assert small[0] == int(np.argmax(probabilities))
    assert set(small) <= set(large)
    chosen = probabilities[large]
    assert (np.diff(chosen) <= 0).all()


def test_a_bluff_of_one_label_becomes_two() -> None:
    assert prediction_set(np.array([0.05, 0.35, 0.6, 0.0]), 0.9) == [2, 1]
    assert prediction_set(np.array([0.01, 0.04, 0.95, 0.0]), 0.9) == [2]


# --- the gate ------------------------------------------------------------------------------------------------------


def test_sums_of_hospitals_make_the_gaussian_of_their_pooled_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, [3, 2, 1], (300, 3)) + [5, 0, 0]
    apart = fit_gaussian([Sums.of(vectors[:50]) + Sums.of(vectors[50:180]) + Sums.of(vectors[180:])])
    pooled = fit_gaussian([Sums.of(vectors)])
    np.testing.assert_allclose(apart.distance(vectors), pooled.distance(vectors), rtol=1e-9)
    expected = np.einsum(
        "ij,jk,ik->i", vectors - vectors.mean(0), np.linalg.inv(np.cov(vectors.T)), vectors - vectors.mean(0)
    )
    np.testing.assert_allclose(pooled.distance(vectors), expected / 3, rtol=1e-6)


def test_classes_have_centres_of_their_own() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(0, 1, (200, 2)) - [20, 0], rng.normal(0, 1, (200, 2)) + [20, 0]
    gaussian = fit_gaussian([Sums.of(left), Sums.of(right)])
    between, inside = gaussian.distance(np.array([[0.0, 0.0], [20.0, 0.0]]))
    assert between > 50
    assert inside < 1


def test_beyond_the_kept_directions_one_variance_serves_all() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(0, [9] * 2 + [1] * 30, (500, 32))
    gaussian = fit_gaussian([Sums.of(vectors)], directions=2)
    assert gaussian.rest == pytest.approx(1, rel=0.1)
    assert np.sqrt(gaussian.variances) == pytest.approx([9, 9], rel=0.15)
    assert gaussian.distance(vectors).mean() == pytest.approx(1, rel=0.05)


def test_every_gated_statistic_has_its_words() -> None:
    assert set(WORDS) == set(GATED)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 3), (64, 64), (3000, 40)])
def test_statistics_of_any_shape_are_finite(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for pixels in (np.zeros((*size, 3), np.uint8), rng.integers(0, 256, (*size, 3), dtype=np.uint8)):
        assert np.isfinite(measure_statistics(pixels)).all()


def test_statistics_say_what_their_names_say() -> None:
    def value(name: str, pixels: np.ndarray) -> float:
        return float(measure_statistics(pixels)[STATISTICS.index(name)])

    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (64, 96, 1), dtype=np.uint8), 3, axis=2)
    assert value("saturation", grey) == 0
    assert value("saturation", grey * np.array([1, 0, 0], np.uint8)) > 0.3
    assert 2 ** value("resolution", grey) == pytest.approx(64)
    assert value("aspect", grey) == pytest.approx(np.log2(1.5))
    framed = np.zeros((64, 64, 3), np.uint8)
    framed[8:-8, 8:-8] = 200
    assert value("border", framed) < 0.01 < value("centre", framed)
    assert value("border", 255 - framed) > 0.9
    assert value("symmetry", framed) == pytest.approx(1)
    assert value("flat", framed) > 0.9 > 0.1 > value("flat", grey)
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[::4] = 255
    assert value("direction", lines) > 1 > -1 > value("direction", lines.transpose(1, 0, 2))
    blurred = np.asarray(Image.fromarray(grey).resize((12, 8)).resize((96, 64)))
    assert value("sharpness", blurred) < value("sharpness", grey)
    assert value("detail", blurred) < value("detail", grey)


# --- a version's own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration(phantom_version: Path) -> Calibration:
    found = open_panel(current_version(phantom_version, "phantoms")).calibration
    assert found is not None
    return found


def test_a_version_is_calibrated_for_every_model(calibration: Calibration, tiny_data: FederationData) -> None:
    assert set(calibration.models) == {"global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central"}
    n_validation = sum(split.part == "validation" for split in tiny_data.splits)
    assert calibration.coverage == COVERAGE
    assert calibration.models["global"].n_images == calibration.models["central"].n_images == n_validation
    assert calibration.models["local/hospital-a"].hospitals == ("hospital-a",)
    assert sum(calibration.models[f"local/hospital-{x}"].n_images for x in "abc") == n_validation
    assert 0.9 <= calibration.gate.passed <= 1


def test_what_was_measured_has_images_and_intervals(calibration: Calibration, tiny_data: FederationData) -> None:
    n_test = sum(split.part == "test" for split in tiny_data.splits)
    measured = calibration.measured
    for model in calibration.models:
        assert measured["sets"][model]["all"]["n_images"] == n_test
        assert sum(cell["n_images"] for name, cell in measured["sets"][model].items() if name != "all") == n_test
        assert sum(cell["n_images"] for cell in measured["sets_by_class"][model].values()) == n_test
        cell = measured["calibration"][model]["all"]["after"]
        assert sum(row[0] for row in cell["bins"]) == n_test
        gap = sum(n * abs(confidence - accuracy) for n, confidence, accuracy in cell["bins"]) / n_test
        assert cell["ece"] == pytest.approx(gap)
        assert cell["interval"][0] <= cell["interval"][1]
        low, high = measured["sets"][model]["all"]["interval"]
        assert low <= measured["sets"][model]["all"]["coverage"] <= high
    assert measured["refused"]["all"]["n_images"] == n_test


def test_a_photograph_and_a_page_of_text_are_refused_with_reasons(phantom_version: Path) -> None:
    panel = open_panel(current_version(phantom_version, "phantoms"))
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    page = np.full((400, 300, 3), 255, np.uint8)
    page[20:380:12, 20:280] = 0
    for name, picture in (("photo", photo), ("page", Image.fromarray(page))):
        reading = panel.read(_png(picture))
        assert reading.refused, name
        assert reading.reasons, name
        assert all(reason.endswith(".") for reason in reading.reasons), name
        assert not reading.opinions, name
        assert not reading.maps, name
        insisted = panel.read(_png(picture), insist=True)
        assert insisted.refused, name
        assert set(insisted.opinions) == set(panel.models), name


def test_most_images_of_the_federations_own_kind_pass(phantom_version: Path, phantom_root: Path) -> None:
    panel = open_panel(current_version(phantom_version, "phantoms"))
    readings = [panel.read(file) for file in sorted(phantom_root.glob("hospital-*/*/*.png"))[::6]]
    assert np.mean([reading.refused for reading in readings]) <= 0.2  # limits from some 25 images
    passed = next(reading for reading in readings if not reading.refused)
    for model, opinion in passed.opinions.items():
        assert opinion.label == opinion.prediction_set[0]
        assert passed.maps[model].shape[0] == 4


def test_quality_is_remarked_in_sentences(calibration: Calibration) -> None:
    usual = calibration.gate.mean.copy()
    assert quality_remarks(calibration.gate, usual, model_side_px=32) == ()
    dark = usual.copy()
    dark[STATISTICS.index("brightness")] -= 10 * calibration.gate.deviation[STATISTICS.index("brightness")]
    dark[STATISTICS.index("resolution")] = np.log2(20)
    remarks = quality_remarks(calibration.gate, dark, model_side_px=32)
    assert remarks[0] == "It is darker than the training images."
    assert "20 px, less than the 32 px" in remarks[1]


def test_a_calibration_survives_its_file(calibration: Calibration) -> None:
    again = Calibration.model_validate(json.loads(json.dumps(calibration.model_dump(mode="json"))))
    np.testing.assert_allclose(again.gate.features.centres, calibration.gate.features.centres)
    assert again.models == calibration.models


def test_a_damaged_array_is_refused_in_one_line(calibration: Calibration) -> None:
    content = calibration.gate.model_dump(mode="json")
    for broken in ({"shape": [2]}, {"shape": [3], "float32": "AAAA"}, {"shape": [1], "float32": "?"}, "text"):
        with pytest.raises(ValueError, match="mean"):
            Gate.model_validate({**content, "mean": broken})


def test_calibrating_anew_leaves_the_graphs_and_mends_a_kill(
    phantom_version: Path, phantom_run: Path, tiny_data: FederationData, tmp_path: Path
) -> None:
    shutil.copytree(phantom_version, tmp_path / "models")
    version = current_version(tmp_path / "models", "phantoms")
    before = {path.name: sha256_of(path) for path in version.folder.glob("*.onnx")}
    (version.folder / "calibration.json").write_text("{}")  # as a kill between two writes leaves it
    (version.folder / ".card.md.1.partial").write_text("half")
    with pytest.raises(ModelError):
        version.verify()
    calibrate_version(version, find_run(phantom_run, "run-001"), tiny_data)
    renewed = current_version(tmp_path / "models", "phantoms")
    renewed.verify()
    assert {path.name: sha256_of(path) for path in version.folder.glob("*.onnx")} == before
    assert open_panel(renewed).calibration is not None


def test_another_run_cannot_calibrate_a_version(
    phantom_version: Path, copy_run: object, tiny_data: FederationData, tmp_path: Path
) -> None:
    other = find_run(copy_run(tmp_path / "artifacts" / "run-002").parent, "run-002")  # type: ignore[operator]
    with pytest.raises(RunError, match="is not the run that phantoms@v1 was made from"):
        calibrate_version(current_version(phantom_version, "phantoms"), other, tiny_data)


def test_probabilities_are_the_softmax_at_the_temperature() -> None:
    fitted = ModelCalibration(temperature=2.0, threshold=0.9, hospitals=("a",), n_images=3)
    np.testing.assert_allclose(fitted.probabilities(np.array([[2.0, 0.0]])), softmax(np.array([[1.0, 0.0]])))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
