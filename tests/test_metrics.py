"""Our scores against scikit-learn's, and against what is known by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as reference

from engine.results.metrics import (
    confusion,
    expected_calibration_error,
    macro_f1,
    per_class_scores,
    score,
    softmax,
    wilson_interval,
)

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 4) and labels of which some classes may be absent."""
    n_images = draw(st.integers(1, 60))
    present = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.3, 2.0, 20.0]))
    return rng.normal(0, spread, (n_images, 4)).astype(np.float32), rng.choice(present, n_images)


@given(answers())
@settings(max_examples=60, deadline=None)
def test_scores_equal_scikit_learns_whichever_classes_are_absent(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    predicted = logits.argmax(axis=1)
    ours = score(logits, labels, CLASSES)
    present = sorted(set(labels.tolist()))
    assert ours["n_images"] == len(labels)
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    by_class = reference.recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert ours["balanced_accuracy"] == pytest.approx(by_class.mean())
    macro = reference.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert ours["macro_f1"] == pytest.approx(macro)
    assert ours["confusion_matrix"] == reference.confusion_matrix(labels, predicted, labels=range(4)).tolist()
    table = reference.precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    for index, label in enumerate(CLASSES):
        cells = ours["per_class"][label]
        assert list(cells) == ["precision", "recall", "f1", "support"]
        assert [*cells.values()] == pytest.approx([column[index] for column in table])


def naive_ece(probabilities: np.ndarray, labels: np.ndarray, n_bins: int) -> float:
    total = 0.0
    for number in range(n_bins):
        confidences, hits = [], []
        for row, label in zip(probabilities, labels, strict=True):
            top = max(row)
            if number <= top * n_bins < number + 1 or (number == n_bins - 1 and top == 1.0):
                confidences.append(top)
                hits.append(float(list(row).index(top) == label))
        if hits:
            gap = abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
            total += gap * len(hits) / len(labels)
    return total


@given(answers(), st.sampled_from([1, 5, 15]))
@settings(max_examples=40, deadline=None)
def test_calibration_error_equals_a_naive_loop(case: tuple[np.ndarray, np.ndarray], n_bins: int) -> None:
    logits, labels = case
    probabilities = softmax(logits)
    assert expected_calibration_error(probabilities, labels, n_bins) == pytest.approx(
        naive_ece(probabilities, labels, n_bins)
    )


def test_the_score_uses_fifteen_bins() -> None:
    logits, labels = np.random.default_rng(0).normal(0, 1, (200, 4)), np.arange(200) % 4
    assert score(logits, labels, CLASSES)["ece"] == pytest.approx(naive_ece(softmax(logits), labels, 15))


def test_sure_and_right_has_no_calibration_error() -> None:
    assert expected_calibration_error(np.eye(4), np.arange(4)) == 0.0


def test_sure_and_wrong_has_a_calibration_error_of_one() -> None:
    assert expected_calibration_error(np.eye(4), np.array([1, 2, 3, 0])) == 1.0


def test_half_right_at_four_fifths_sure_is_off_by_three_tenths() -> None:
    probabilities = np.array([[0.8, 0.2]] * 4)
    assert expected_calibration_error(probabilities, np.array([0, 0, 1, 1])) == pytest.approx(0.3)


def test_the_confusion_matrix_has_truth_in_rows() -> None:
    matrix = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 2, 2]), 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_scores_known_by_hand() -> None:
    matrix = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    values = per_class_scores(matrix)
    assert values["precision"].tolist() == pytest.approx([3 / 5, 2 / 3, 0])
    assert values["recall"].tolist() == pytest.approx([3 / 4, 1 / 2, 0])
    assert values["f1"].tolist() == pytest.approx([2 / 3, 4 / 7, 0])
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 4 / 7) / 2)


def test_a_class_without_images_stays_out_of_the_macro_means_even_when_predicted() -> None:
    logits = np.eye(4)[[0, 0, 1, 2]]  # the last image, a meningioma, is called notumor
    result = score(logits, np.array([0, 0, 1, 1]), CLASSES)
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["per_class"]["notumor"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_no_images_score_zero_and_nothing_fails() -> None:
    result = score(np.zeros((0, 2)), np.zeros(0, np.int64), ("a", "b"))
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result == {
        "accuracy": 0.0,
        "balanced_accuracy": 0.0,
        "macro_f1": 0.0,
        "ece": 0.0,
        "n_images": 0,
        "per_class": {"a": nothing, "b": nothing},
        "confusion_matrix": [[0, 0], [0, 0]],
    }


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax(np.array([[1e4, 0.0, -1e4]], np.float32)).tolist() == [[1.0, 0.0, 0.0]]


def test_softmax_known_by_hand() -> None:
    assert softmax(np.log(np.array([[1.0, 3.0, 4.0]])))[0].tolist() == pytest.approx([0.125, 0.375, 0.5])


def test_scores_are_plain_numbers_that_json_takes() -> None:
    result = score(np.eye(4, dtype=np.float32), np.arange(4), CLASSES)
    assert {type(result[key]) for key in ("accuracy", "balanced_accuracy", "macro_f1", "ece")} == {float}
    assert type(result["n_images"]) is int
    assert type(result["confusion_matrix"][0][0]) is int


@pytest.mark.parametrize(("hits", "n_images"), [(0, 1), (1, 1), (0, 40), (40, 40), (513, 526), (7, 23)])
def test_wilsons_interval_equals_scipys(hits: int, n_images: int) -> None:
    theirs = binomtest(hits, n_images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, n_images) == pytest.approx((theirs.low, theirs.high), abs=1e-7)
