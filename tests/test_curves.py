"""Curves, thresholds, reliability, errors and subgroups: against scikit-learn, against a naive resample, by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score, roc_curve

from engine.results import bootstrap
from engine.results.answers import Answers
from engine.results.bootstrap import Estimate
from engine.results.curves import GRID, one_versus_rest
from engine.results.metrics import expected_calibration_error, wilson_interval
from engine.results.mistakes import mistakes
from engine.results.reliability import calibration_error, reliability_bins
from engine.results.subgroups import FEWEST_GROUPS, in_order, score_subgroups
from engine.results.thresholds import at_threshold, over_thresholds
from ui.subgroups import subgroups_table

CLASSES = ("a", "b", "c")


def some_answers(n_images: int = 120, seed: int = 0, group_of: int = 2, decimals: int = 8) -> Answers:
    """Rounded logits tie; every `group_of` images are one group."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n_images)
    images = pd.DataFrame(
        {
            "hospital": ["north", "south"] * (n_images // 2),
            "path": [f"{number:03d}.png" for number in range(n_images)],
            "label": [CLASSES[label] for label in labels],
            "group": [f"g{number // group_of:03d}" for number in range(n_images)],
        }
    )
    logits = generator.normal(0, 1, (n_images, 3)) + 1.2 * np.eye(3)[labels]
    return Answers(CLASSES, images, {"global": logits.round(decimals)})


def drawn_rows(answers: Answers, seed: int = 0) -> np.ndarray:
    """The images of the first replicate, written out one by one."""
    names, group_of = np.unique(answers.groups, return_inverse=True)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), 1)[0]
    return np.repeat(np.arange(len(answers)), times[group_of])


@pytest.mark.parametrize(("seed", "decimals"), [(0, 8), (1, 8), (2, 0)])
def test_curves_are_scikit_learns_ties_included(seed: int, decimals: int) -> None:
    answers = some_answers(seed=seed, decimals=decimals)
    found = one_versus_rest(answers, "global", "b")
    assert found is not None
    truth, scores = answers.labels == 1, answers.probabilities("global")[:, 1]
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.roc.x, false)
    np.testing.assert_allclose(found.roc.y, true)
    precision, recall, _ = precision_recall_curve(truth, scores)
    np.testing.assert_allclose(found.pr.x, recall[:-1][::-1])  # theirs ends in an invented point (0, 1)
    np.testing.assert_allclose(found.pr.y, precision[:-1][::-1])
    assert found.auc.value == pytest.approx(roc_auc_score(truth, scores))
    assert found.average_precision.value == pytest.approx(average_precision_score(truth, scores))
    assert (found.n_images, found.n_others) == (int(truth.sum()), int((~truth).sum()))


def test_a_replicate_of_curves_is_what_the_naive_resample_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one replicate the band is that replicate: drawn groups written out, then scikit-learn and a plain search."""
    monkeypatch.setattr(bootstrap, "REPLICATES", 1)
    answers = some_answers()
    found = one_versus_rest(answers, "global", "a")
    assert found is not None
    rows = drawn_rows(answers)
    truth, scores = (answers.labels == 0)[rows], answers.probabilities("global")[rows, 0]
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.roc.low, [true[false <= at + 1e-12].max() for at in GRID])
    np.testing.assert_allclose(found.roc.high, found.roc.low)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    strictest = [thresholds[recall[:-1] >= max(at - 1e-12, 1e-12)].max() for at in GRID]
    np.testing.assert_allclose(found.pr.low, [precision[:-1][thresholds == at][0] for at in strictest])
    assert found.auc[1:] == pytest.approx([roc_auc_score(truth, scores)] * 2)
    assert found.average_precision[1:] == pytest.approx([average_precision_score(truth, scores)] * 2)


def test_a_band_holds_its_curve_and_is_wider_by_patient() -> None:
    answers = some_answers(40, group_of=1)
    images = answers.images.loc[answers.images.index.repeat(6)].reset_index(drop=True)
    by_patient = Answers(CLASSES, images, {"global": answers.logits["global"].repeat(6, axis=0)})
    by_image = Answers(CLASSES, images.assign(group=[str(number) for number in range(240)]), by_patient.logits)
    widths = []
    for one in (by_image, by_patient):
        found = one_versus_rest(one, "global", "a")
        assert found is not None
        steps = np.array([found.roc.y[found.roc.x <= at + 1e-12].max() for at in GRID])
        assert (found.roc.low <= steps + 1e-9).all()
        assert (found.roc.high >= steps - 1e-9).all()
        widths.append(np.mean(found.roc.high - found.roc.low))
    assert widths[1] > 1.5 * widths[0]


def test_without_both_kinds_of_images_there_is_no_curve() -> None:
    answers = some_answers()
    assert one_versus_rest(answers.chosen(answers.labels == 0), "global", "a") is None
    assert one_versus_rest(answers.chosen(answers.labels == 0), "global", "b") is None


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_thresholds_figures_are_the_confusion_matrixs(threshold: float) -> None:
    answers = some_answers()
    found = at_threshold(answers, "global", "c", threshold)
    truth, called = answers.labels == 2, answers.probabilities("global")[:, 2] >= threshold
    (cleared, false), (missed, hit) = confusion_matrix(truth, called, labels=[False, True])
    assert (found.found, found.missed, found.false_alarms, found.cleared) == (hit, missed, false, cleared)
    assert found.sensitivity.value == hit / (hit + missed)
    assert found.specificity.value == cleared / (cleared + false)
    assert found.false_alarms_per_image.value == false / 120
    for estimate, part, whole in ((found.ppv, hit, hit + false), (found.npv, cleared, cleared + missed)):
        assert estimate.value == pytest.approx(part / whole if whole else np.nan, nan_ok=True)
    sensitivity, specificity = over_thresholds(answers, "global", "c", np.array([threshold]))
    assert (sensitivity[0], specificity[0]) == (found.sensitivity.value, found.specificity.value)


def test_a_thresholds_interval_is_by_group_and_wilsons_where_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = some_answers()
    everything = at_threshold(answers, "global", "c", 0.0)
    of_class = answers.images["label"] == "c"
    n_groups, n_others = (answers.images[mask]["group"].nunique() for mask in (of_class, ~of_class))
    assert everything.sensitivity == Estimate(1.0, *wilson_interval(n_groups, n_groups))
    assert everything.specificity == Estimate(0.0, *wilson_interval(0, n_others))
    monkeypatch.setattr(bootstrap, "REPLICATES", 1)
    found = at_threshold(answers, "global", "c", 0.3)
    rows = drawn_rows(answers)
    truth, called = (answers.labels == 2)[rows], answers.probabilities("global")[rows, 2] >= 0.3
    assert found.sensitivity[1:] == pytest.approx([called[truth].mean()] * 2)
    assert found.ppv[1:] == pytest.approx([truth[called].mean()] * 2)
    assert found.false_alarms_per_image[1:] == pytest.approx([(called & ~truth).mean()] * 2)


def test_bins_add_up_to_the_calibration_error() -> None:
    answers = some_answers()
    bins = reliability_bins(answers, "global")
    assert sum(one.n_images for one in bins) == 120
    gaps = sum(one.n_images * abs(one.confidence - one.right.value) for one in bins) / 120
    error = calibration_error(answers, "global")
    assert error.value == pytest.approx(gaps)
    assert error.value == expected_calibration_error(answers.probabilities("global"), answers.labels)
    assert error.low < error.high
    assert all(one.right.low <= one.right.value <= one.right.high for one in bins)
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)


def test_a_replicate_of_a_bin_is_what_the_naive_resample_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "REPLICATES", 1)
    answers = some_answers()
    probabilities = answers.probabilities("global")
    fullest = max(reliability_bins(answers, "global"), key=lambda one: one.n_images)
    rows = drawn_rows(answers)
    inside = (probabilities[rows].max(axis=1) * 15).astype(int) == int(fullest.confidence * 15)
    right = (probabilities.argmax(axis=1) == answers.labels)[rows]
    assert fullest.right[1:] == pytest.approx([right[inside].mean()] * 2)


def test_the_surest_error_comes_first() -> None:
    logits = np.log([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    images = pd.DataFrame(
        {"hospital": list("nnssn"), "path": list("edcba"), "label": list("aacca"), "group": list("12345")}
    )
    found = mistakes(Answers(CLASSES, images, {"global": logits}), "global")
    assert list(found["path"]) == ["a", "d", "b"]  # right ones are none, equal ones by path
    assert list(found["called"]) == ["b", "b", "b"]
    assert list(found["confidence"]) == pytest.approx([0.8, 0.8, 0.7])
    assert list(found["p_label"]) == pytest.approx([0.1, 0.1, 0.1])


def test_subgroups_are_scored_apart_and_small_ones_not_at_all() -> None:
    answers = some_answers()
    words = dict(zip(answers.images["path"], ["f"] * 60 + ["m"] * 50 + ["x"] * 10, strict=True))
    del words["000.png"]
    found = {one.word: one for one in score_subgroups(answers, "global", words, "accuracy")}
    assert list(found) == ["f", "m", "x", "unknown"]
    right = answers.probabilities("global").argmax(axis=1) == answers.labels
    assert found["m"].score is not None
    assert found["m"].score.value == pytest.approx(right[60:110].mean())
    assert (found["m"].n_images, found["m"].n_groups) == (50, 25)
    assert found["x"].n_groups < FEWEST_GROUPS
    assert found["x"].score is None
    shown = subgroups_table(list(found.values()), "sex", "accuracy").set_index("Sex")
    assert list(shown.loc["m", ["n", "Groups"]]) == ["50", "25"]
    assert list(shown.loc["x", ["n", "Groups"]]) == ["\u2013", "<10"]  # ten images, of five groups
    assert list(shown.loc["unknown", ["n", "Groups"]]) == ["<10", "<10"]


def test_bands_stand_in_the_order_of_their_numbers() -> None:
    words = ["unknown", "80 and above", "back", "20 to below 40", "below 20", "100 and above", "arm"]
    assert in_order(words) == [
        "below 20", "20 to below 40", "80 and above", "100 and above", "arm", "back", "unknown",
    ]  # fmt: skip
