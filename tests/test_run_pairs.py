"""Two runs on the same test images: numbers by hand, and what cannot be paired; one run as a zip."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from engine.errors import ModelError, RunError
from engine.results.bootstrap import Estimate, mean_score, paired_difference
from engine.results.metrics import expected_calibration_error, softmax
from engine.results.publishable import require_publishable
from engine.results.rounds import ALL
from engine.results.run_archive import archive_run, weights_bytes, why_no_archive
from engine.results.run_folder import Run
from engine.results.run_pairs import metric_names, pair_scores, shared_test_images, why_no_pair
from engine.results.table_formats import latex_tabular
from ui.roc import _plain
from ui.run_comparison import pair_sentence, pairs_table

CopyRun = Callable[[Path], Path]


@pytest.fixture
def two(tmp_path: Path, copy_run: CopyRun) -> tuple[Run, Run]:
    """The same run twice, but the second's federated model says glioma of half of the images."""
    first, second = (Run(copy_run(tmp_path / name)) for name in ("run-001", "run-002"))
    table = second.predictions()
    said = np.array([5, 0, 0, 0], np.float32)
    table["logits"] = [
        said if model == "global" and number % 2 else logits
        for number, (model, logits) in enumerate(zip(table["model"], table["logits"], strict=True))
    ]
    table.to_parquet(second.folder / "predictions.parquet")
    return first, second


def change(run: Run, file: str, edit: Callable[[dict], object]) -> Run:
    content = json.loads((run.folder / file).read_text())
    edit(content)
    (run.folder / file).write_text(json.dumps(content))
    return Run(run.folder)


def change_test_images(run: Run, hospitals: set[str]) -> Run:
    def edit(content: dict) -> None:
        for image in content["images"]:
            if image["split"] == "test" and image["hospital"] in hospitals:
                image["sha256"] = "0" * 64

    return change(run, "dataset_splits.json", edit)


def macro_f1(run: Run, hospital: str) -> float:
    table = run.predictions()
    mine = table[(table["model"] == "global") & (table["split"] == "test")]
    mine = mine if hospital == ALL else mine[mine["hospital"] == hospital]
    predicted = [run.federation.classes[int(np.argmax(logits))] for logits in mine["logits"]]
    return float(f1_score(mine["label"], predicted, labels=sorted(set(mine["label"])), average="macro"))


def test_differences_are_those_of_the_scores_by_hand(two: tuple[Run, Run]) -> None:
    first, second = two
    paired = pair_scores(first, second, "global", "macro_f1")
    assert [score.hospital for score in paired.scores] == [ALL, "hospital-a", "hospital-b", "hospital-c"]
    assert paired.different == ()
    for score in paired.scores:
        assert score.first == pytest.approx(macro_f1(first, score.hospital))
        assert score.second == pytest.approx(macro_f1(second, score.hospital))
        assert score.difference.value == pytest.approx(score.second - score.first)
        assert score.difference.low <= score.difference.value <= score.difference.high
    assert sum(score.n_images for score in paired.scores[1:]) == paired.scores[0].n_images
    assert any(score.difference.value != 0 for score in paired.scores)


def test_the_same_model_differs_by_nothing_in_every_metric(two: tuple[Run, Run]) -> None:
    for metric in metric_names(two[0].federation):
        whole = pair_scores(*two, "central", metric).scores[0]
        assert whole.difference == (0, 0, 0), metric
        assert whole.first == whole.second


def test_one_group_makes_no_certain_difference(two: tuple[Run, Run]) -> None:
    pair = pair_scores(*two, "global", "accuracy")
    sure = Estimate(-0.05, -0.05, -0.05)
    whole = replace(pair.scores[0], n_groups=1, difference=sure)
    sentence = pair_sentence(
        replace(pair, scores=(whole,)), "run-001", "run-002", two[0].federation, "global", "Accuracy"
    )
    assert "**-5.0 points**." in sentence
    assert sentence.endswith("They are of fewer than 10 groups, which do not tell the two apart.")
    many = replace(whole, n_groups=10)
    assert "tell" not in pair_sentence(
        replace(pair, scores=(many,)), "run-001", "run-002", two[0].federation, "global", "Accuracy"
    )
    table = pairs_table({"run-002": replace(pair, scores=(whole,))}, "run-001", two[0].federation)
    assert list(table.loc[0, ["Groups", "Difference (95%)"]]) == ["1", "-5.0 points"]
    assert _plain(Estimate(1.0, 1.0, 1.0)) == "1.000"
    assert _plain(Estimate(0.9, 0.8, 1.0)) == "0.900 (0.800-1.000)"


def test_only_hospitals_with_the_same_images_are_paired(two: tuple[Run, Run]) -> None:
    first, second = two
    second = change_test_images(second, {"hospital-b"})
    assert shared_test_images(first, second) == (["hospital-a", "hospital-c"], ["hospital-b"])
    paired = pair_scores(first, second, "global", "accuracy")
    assert [score.hospital for score in paired.scores] == ["hospital-a", "hospital-c"], "nothing is said of all images"
    assert paired.different == ("hospital-b",)
    second = change_test_images(second, {"hospital-a", "hospital-c"})
    with pytest.raises(RunError, match="share no hospital's test images"):
        pair_scores(first, second, "global", "accuracy")


def test_what_cannot_be_paired_says_why(two: tuple[Run, Run]) -> None:
    first, second = two
    with pytest.raises(RunError, match="nobody says nothing about test images"):
        pair_scores(first, second, "nobody", "accuracy")
    networked = change(second, "config.json", lambda content: content.update(transport="flower"))
    assert "trained over a network" in why_no_pair(first, networked)
    with pytest.raises(RunError, match="stays with them"):
        pair_scores(first, networked, "global", "accuracy")
    with pytest.raises(ModelError, match="over a network, and what publishing fits"):
        require_publishable(networked, "phantoms", first.folder)
    (second.folder / "manifest.json").unlink()
    assert why_no_pair(first, Run(second.folder)) == "run-002 is not finished, so it has no test scores yet."
    with pytest.raises(RunError, match=r"is not finished .* --resume run-002"):
        require_publishable(Run(second.folder), "phantoms", first.folder)


def test_calibration_error_and_auc_have_paired_differences() -> None:
    rng = np.random.default_rng(0)
    classes, labels = ("a", "b", "c"), rng.integers(0, 3, 90)
    ours, theirs = (rng.normal(size=(90, 3)) + strength * np.eye(3)[labels] for strength in (2, 1))
    groups = [str(number // 2) for number in range(90)]
    for metric, expected in {
        "ece": expected_calibration_error(softmax(ours), labels),
        "auc/b": roc_auc_score(labels == 1, softmax(ours)[:, 1]),
    }.items():
        score = mean_score(ours, labels, groups, classes, metric)
        assert score.value == pytest.approx(expected)
        gap = paired_difference(ours, theirs, labels, groups, classes, metric)
        assert gap.value == pytest.approx(score.value - mean_score(theirs, labels, groups, classes, metric).value)
        assert gap.low < gap.value < gap.high
    assert paired_difference(ours, theirs, labels, groups, classes, "auc/b").low > 0


def test_any_table_as_latex() -> None:
    text = latex_tabular(["Run", "n_images"], [["run-001", "5%"]], n_left=1, said=["two\nlines"])
    assert text.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\hline",
        r"Run & n\_images \\",
        r"\hline",
        r"run-001 & 5\% \\",
        r"\hline",
        r"\end{tabular}",
        "% two lines",
    ]


def test_a_zip_holds_the_run_as_it_was_written(phantom_run: Path, tmp_path: Path, copy_run: CopyRun) -> None:
    run = Run(phantom_run / "run-001")
    for with_weights in (False, True):
        with archive_run(run, with_weights=with_weights) as file, zipfile.ZipFile(file) as archive:
            held = {name.removeprefix("run-001/") for name in archive.namelist()}
            for name in held:
                assert archive.read(f"run-001/{name}") == (run.folder / name).read_bytes()
        kept = {name for name, entry in run.manifest.files.items() if with_weights or not entry.detached}
        assert held == kept | {"manifest.json", "audit-log.jsonl"}
    other = Run(copy_run(tmp_path / "run-002"))
    for file_of_weights in (other.folder / "weights").iterdir():
        file_of_weights.unlink()
    (other.folder / "stray.txt").touch()
    assert weights_bytes(run) > weights_bytes(other) == 0
    with archive_run(other, with_weights=True) as file, zipfile.ZipFile(file) as archive:
        assert not [name for name in archive.namelist() if "weights" in name or "stray" in name]
    os.utime(other.folder / "config.json", (0, 0))  # older than zip files can say
    assert why_no_archive(other) == ""
    with archive_run(other, with_weights=False) as file, zipfile.ZipFile(file) as archive:
        assert "run-002/config.json" in archive.namelist()
    (other.folder / "evaluation.json").unlink()
    assert "evaluation.json: is missing" in why_no_archive(other)
    with pytest.raises(RunError, match=r"evaluation\.json: is missing; the run folder is damaged"):
        archive_run(other, with_weights=False)


def test_the_archive_leaves_nothing_on_the_disk(
    phantom_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with archive_run(Run(phantom_run / "run-001"), with_weights=False) as file:
        assert file.read(2) == b"PK"
        assert list(tmp_path.iterdir()) == []


def test_a_hospital_without_a_class_has_no_recall_of_it(two: tuple[Run, Run]) -> None:
    scores = {score.hospital: score for score in pair_scores(*two, "global", "recall/notumor").scores}
    assert np.isnan(scores["hospital-c"].difference.value)
    assert not pd.isna(scores[ALL].difference.value)
