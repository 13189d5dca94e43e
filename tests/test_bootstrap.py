"""Intervals: right in size, by group, and equal to the naive computation replicate by replicate."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, roc_auc_score

from engine.results import bootstrap
from engine.results.bootstrap import bootstrap_intervals, weighted_auc
from engine.results.evaluation import evaluate_predictions, score_rows
from engine.results.metrics import expected_calibration_error, softmax

CLASSES = ("a", "b", "c")


def some_predictions(n_images: int, seed: int = 0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n_images)
    logits = generator.normal(0, 1, (n_images, 3)).astype(np.float32)
    logits[np.arange(n_images), labels] += skill
    return logits, labels


def test_every_replicate_is_what_the_naive_resample_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one replicate the interval is that replicate: drawn groups written out image by image, then scikit-learn."""
    monkeypatch.setattr(bootstrap, "REPLICATES", 1)
    logits, labels = some_predictions(60)
    groups = [f"g{number // 3}" for number in range(60)]
    got = bootstrap_intervals(logits, labels, groups, CLASSES, seed=4)
    names = sorted(set(groups))
    weights = np.random.default_rng(4).multinomial(len(names), np.full(len(names), 1 / len(names)), 1)[0]
    rows = np.array(
        [
            i
            for name, weight in zip(names, weights, strict=True)
            for i in range(60)
            for _ in range(weight)
            if groups[i] == name
        ]
    )
    probabilities, truth = softmax(logits)[rows], labels[rows]
    called = probabilities.argmax(1)
    expected = {
        "accuracy": (called == truth).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, called),
        "macro_precision": precision_score(truth, called, average="macro"),
        "macro_f1": f1_score(truth, called, average="macro"),
        "ece": expected_calibration_error(probabilities, truth),
        "auc/b": roc_auc_score(truth == 1, probabilities[:, 1]),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx((value, value)), name


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """The population's accuracy, estimated once from many images, lies in most intervals of small samples."""
    big = some_predictions(200_000, seed=99)
    truth = float((big[0].argmax(1) == big[1]).mean())
    covered = 0
    for seed in range(60):
        logits, labels = some_predictions(150, seed=seed)
        low, high = bootstrap_intervals(logits, labels, [str(i) for i in range(150)], CLASSES)["accuracy"]
        covered += low <= truth <= high
    assert covered >= 51


def test_images_of_one_patient_widen_the_interval() -> None:
    logits, labels = some_predictions(40)
    logits, labels = np.repeat(logits, 6, axis=0), np.repeat(labels, 6)
    by_image = bootstrap_intervals(logits, labels, [str(i) for i in range(240)], CLASSES)["accuracy"]
    by_patient = bootstrap_intervals(logits, labels, [str(i // 6) for i in range(240)], CLASSES)["accuracy"]
    assert by_patient[1] - by_patient[0] > 1.8 * (by_image[1] - by_image[0])


def test_the_same_predictions_give_the_same_interval() -> None:
    logits, labels = some_predictions(30)
    groups = [str(i) for i in range(30)]
    assert bootstrap_intervals(logits, labels, groups, CLASSES) == bootstrap_intervals(logits, labels, groups, CLASSES)


def test_a_class_without_images_has_no_auc_interval() -> None:
    logits, labels = some_predictions(30)
    labels[labels == 2] = 0
    got = bootstrap_intervals(logits, labels, [str(i) for i in range(30)], CLASSES)
    assert "auc/c" not in got
    assert "auc/a" in got


@pytest.mark.parametrize("seed", range(5))
def test_auc_agrees_with_scikit_learn_ties_and_weights_included(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, 50) / 5
    positive = generator.random(50) < 0.4
    weights = generator.integers(0, 4, (3, 50)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auc(scores, positive, weights), expected)


def rows_of(labels: str, called: str, classes: str = "hd") -> pd.DataFrame:
    logits = [np.array([3.0 if letter == c else 0.0 for c in classes], np.float32) for letter in called]
    groups = [str(i) for i in range(len(labels))]
    return pd.DataFrame(
        {"split": "test", "model": "global", "hospital": "h", "group": groups, "label": list(labels), "logits": logits}
    )


def test_two_classes_tell_missed_cases_and_false_alarms() -> None:
    cell = score_rows(rows_of("ddddhhh", "dddhhhd"), ("h", "d"), shared_classes=["h", "d"], positive="d")
    assert (cell["missed"], cell["false_alarms"]) == (1, 1)
    assert cell["sensitivity"] == pytest.approx(3 / 4)
    assert cell["specificity"] == pytest.approx(2 / 3)


def test_without_a_case_there_is_no_sensitivity() -> None:
    cell = score_rows(rows_of("hhh", "hhd"), ("h", "d"), shared_classes=["h"], positive="d")
    assert cell["sensitivity"] is None
    assert cell["auc"] == {"h": None, "d": None}


def test_macro_f1_over_shared_classes_leaves_the_confounded_class_out() -> None:
    rows = rows_of("aabbcc", "aabccc", "abc")
    whole = evaluate_predictions(rows, CLASSES, shared_classes=["a", "b"], positive=None)
    cell = whole["splits"]["test"]["global"]["all"]
    f1 = {label: scores["f1"] for label, scores in cell["per_class"].items()}
    assert cell["macro_f1_shared"] == pytest.approx((f1["a"] + f1["b"]) / 2)
    assert cell["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert whole["splits"]["test"]["global"]["h"]["n_groups"] == 6
    assert "sensitivity" not in cell
