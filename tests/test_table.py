"""The table of a sweep: its numbers from the run folders by hand, its formats, and what it refuses."""

import csv
import io
import json
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from engine.config import load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError, RunError
from engine.federation.sweep import Point, run_sweep
from engine.results import bootstrap
from engine.results.bootstrap import Estimate, mean_score, paired_difference
from engine.results.run_folder import Run
from engine.results.sweep_table import Row, SweepTable, make_table
from engine.results.sweeps import sweep_runs
from engine.results.table_formats import as_csv, as_latex, as_markdown
from engine.sections import ModelConfig
from engine.sweep_grid import expand
from tests.conftest import PROJECT, TINY, Command

FILE = PROJECT / "federations" / "phantoms.toml"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def swept(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with sweep "s": FedAvg and FedProx, seeds 0 and 1, without local models. Read only."""
    folder = tmp_path_factory.mktemp("swept")
    given = (*TINY, 'arms=["federated", "central"]')
    points = [
        Point(load_federation(FILE, [*given, *changes]), (*given, *changes))
        for changes in expand(["aggregation.strategy=fedavg|fedprox,aggregation.mu=0.5"], "0,1")
    ]

    def read(federation: object) -> FederationData:
        return read_federation_data(federation, phantom_root)  # type: ignore[arg-type]

    failures = run_sweep("s", points, federation_file="phantoms.toml", artifacts=folder, read=read)
    assert failures == {}
    return folder


def table_of(folder: Path, metric: str = "macro_f1") -> SweepTable:
    return make_table("s", sweep_runs(folder, "s"), metric, "test")


def predicted(run: Run, model: str) -> tuple[list[str], list[str]]:
    """Labels and what the model says of the test images."""
    rows = run.predictions()
    rows = rows[(rows["model"] == model) & (rows["split"] == "test")].sort_values(["hospital", "path"])
    return list(rows["label"]), [CLASSES[int(np.argmax(logits))] for logits in rows["logits"]]


def macro_f1_of(run: Run, model: str) -> float:
    return float(f1_score(*predicted(run, model), average="macro"))


def test_scores_and_gap_are_those_of_the_predictions(swept: Path) -> None:
    table = table_of(swept)
    assert [row.settings for row in table.rows] == [
        {"aggregation.strategy": "fedavg", "aggregation.mu": ""},
        {"aggregation.strategy": "fedprox", "aggregation.mu": "0.5"},
    ]
    runs = sweep_runs(swept, "s")
    assert [run.federation.arms for run in runs] == [("federated", "central"), ("federated",)] * 2
    pooled = [macro_f1_of(run, "central") for run in runs[::2]]
    for row, mine in zip(table.rows, (runs[::2], runs[1::2]), strict=True):
        scores = [macro_f1_of(run, "global") for run in mine]
        assert row.seeds == (0, 1)
        assert row.n_images == len(predicted(mine[0], "global")[0])
        assert row.score.value == pytest.approx(statistics.fmean(scores))
        assert row.spread == pytest.approx(statistics.stdev(scores))
        assert row.pooled == pytest.approx(statistics.fmean(pooled))
        assert row.gap is not None
        assert row.gap.value == pytest.approx(statistics.fmean(scores) - statistics.fmean(pooled))
        assert row.score.low <= row.score.value <= row.score.high
        assert row.gap.low <= row.gap.high


def difference(ours: list[Run], theirs: list[Run], metric: str) -> Estimate:
    def rows_of(run: Run) -> pd.DataFrame:
        rows = run.predictions()
        return rows[(rows["model"] == "global") & (rows["split"] == "test")].sort_values(["hospital", "path"])

    first, second = (np.stack([np.stack(list(rows_of(run)["logits"])) for run in some]) for some in (ours, theirs))
    rows = rows_of(ours[0])
    labels = rows["label"].map(CLASSES.index).to_numpy()
    return paired_difference(first, second, labels, list(rows["group"]), CLASSES, metric)


def reconfigure(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    file = run.folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.fixture
def apart(swept: Path, tmp_path: Path) -> Path:
    """A copy of `swept` whose federated models answer differently in every run, which so short ones may not."""
    folder = shutil.copytree(swept, tmp_path / "artifacts")
    for seed, run in enumerate(sweep_runs(folder, "s")):
        rows, generator = run.predictions(), np.random.default_rng(seed)
        rows["logits"] = [
            logits + generator.normal(0, 2, 4).astype(np.float32) if model == "global" else logits
            for model, logits in zip(rows["model"], rows["logits"], strict=True)
        ]
        rows.to_parquet(run.folder / "predictions.parquet", index=False)
    return folder


def test_every_row_is_compared_with_the_first(apart: Path) -> None:
    runs = sweep_runs(apart, "s")
    first, second = table_of(apart, "accuracy").rows
    assert first.versus_first is None
    assert second.versus_first == difference(runs[1::2], runs[::2], "accuracy")
    assert second.versus_first.value == pytest.approx(second.score.value - first.score.value)
    assert second.versus_first.low < second.versus_first.high
    other_seeds = make_table("s", runs[:3], "accuracy", "test").rows
    assert [row.seeds for row in other_seeds] == [(0, 1), (0,)]
    assert [row.versus_first for row in other_seeds] == [None, None]


def test_where_the_data_varies_too_each_row_stands_against_the_first_on_its_own(apart: Path) -> None:
    def deal_anew(config: dict[str, Any]) -> None:
        config["federation"]["training"]["seed"] = 0
        config["federation"]["split"]["seed"] = 1

    runs = sweep_runs(apart, "s")
    for run in runs[2:]:
        reconfigure(run, deal_anew)
    found = [row.versus_first for row in table_of(apart).rows]
    assert found == [
        None,
        difference([runs[1]], [runs[0]], "macro_f1"),
        None,
        difference([runs[3]], [runs[2]], "macro_f1"),
    ]


def test_rows_on_other_images_are_not_compared(swept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept, tmp_path / "artifacts")
    one, other = sweep_runs(folder, "s")[:2]
    reconfigure(one, lambda config: config["federation"].update(arms=["federated"]))  # no pooled model ties them
    rows = other.predictions()
    rows = rows.drop(index=rows.index[(rows["split"] == "test") & (rows["model"] == "global")][0])
    rows.to_parquet(other.folder / "predictions.parquet", index=False)
    shown = make_table("s", sweep_runs(folder, "s")[:2], "accuracy", "test").rows
    assert [(row.versus_first, row.gap) for row in shown] == [(None, None)] * 2


def test_rounds_bytes_and_seconds_are_those_of_the_lines(swept: Path, phantom_root: Path) -> None:
    row = table_of(swept).rows[1]
    runs = sweep_runs(swept, "s")
    sent, received, seconds, reached, best = [], [], [], [], []
    for run, reference in zip(runs[1::2], runs[::2], strict=True):
        lines = [line for line in run.rounds() if line.model == "global"]
        sent.append(sum(line.fit.bytes_up for line in lines if line.hospital != "all" and line.fit))
        received.append(sum(line.fit.bytes_down for line in lines if line.hospital != "all" and line.fit))
        whole = [line for line in lines if line.hospital == "all"]
        seconds.append(sum(line.seconds or 0 for line in whole))
        scores = [line.validation.macro_f1 for line in whole if line.validation]
        seen = [(line.validation.macro_f1, -line.validation.loss) for line in whole if line.validation]
        best.append(1 + seen.index(max(seen)))  # ties go to the lower loss
        goal = 0.99 * max(
            line.validation.macro_f1
            for line in reference.rounds()
            if line.model == "central" and line.hospital == "all" and line.validation
        )
        there = [number for number, score in enumerate(scores, start=1) if score >= goal]
        if there:
            reached.append((there[0], sum(line.seconds or 0 for line in whole[: there[0]])))
    assert row.bytes_up == statistics.fmean(sent)
    assert row.bytes_up == sum(h["bytes_up"] for h in runs[1].read_json("communication.json")["hospitals"].values())
    assert row.bytes_up_per_round == row.bytes_up / 3
    assert row.bytes_down == statistics.fmean(received)
    assert row.bytes_down_per_round == row.bytes_down / 3
    images = {one["path"] for one in runs[1].read_json("dataset_splits.json")["images"] if one["split"] == "train"}
    assert row.pooling_once_bytes == sum((phantom_root / path).stat().st_size for path in images)
    assert row.seconds == pytest.approx(statistics.fmean(seconds))
    assert row.best_round == statistics.fmean(best)
    assert row.rounds == 3
    assert row.n_reached == len(reached)
    if reached:
        assert row.rounds_to_reach == statistics.fmean(number for number, _ in reached)
        assert row.seconds_to_reach == pytest.approx(statistics.fmean(time for _, time in reached))
    else:
        assert row.rounds_to_reach is None


def test_the_worst_hospital_is_the_lowest_mean(swept: Path) -> None:
    row = table_of(swept, "accuracy").rows[0]
    runs = sweep_runs(swept, "s")[::2]
    cells = [run.read_json("evaluation.json")["splits"]["test"]["global"] for run in runs]
    means = {h.id: statistics.fmean(cell[h.id]["accuracy"] for cell in cells) for h in runs[0].federation.hospital}
    worst = min(means, key=lambda hospital: means[hospital])
    assert row.worst_hospital == runs[0].federation.display_name(worst)
    assert row.worst_score == pytest.approx(means[worst])
    assert "(simulated)" in str(row.worst_hospital)


def test_other_metrics(swept: Path) -> None:
    run = sweep_runs(swept, "s")[0]
    labels, said = predicted(run, "global")
    one = [run, *sweep_runs(swept, "s")[1:2]]
    accuracy = make_table("s", one, "accuracy", "test").rows[0]
    assert accuracy.score.value == pytest.approx(accuracy_score(labels, said))
    assert accuracy.spread is None, "one seed has no spread"
    recall = make_table("s", one, "recall/glioma", "test").rows[0]
    assert recall.score.value == pytest.approx(recall_score(labels, said, labels=["glioma"], average="macro"))
    for metric in ("f1", "sensitivity", "recall/nothing"):
        with pytest.raises(ConfigError, match=rf"--metric {metric}: must be one of accuracy, balanced_accuracy"):
            make_table("s", one, metric, "test")


def test_without_a_pooled_model_for_every_seed_there_is_no_gap(swept: Path) -> None:
    runs = sweep_runs(swept, "s")
    rows = make_table("s", [*runs[:2], runs[3]], "macro_f1", "test").rows  # seed 1 has lost its reference
    assert rows[0].gap is not None
    assert (rows[1].gap, rows[1].pooled, rows[1].n_reached, rows[1].rounds_to_reach) == (None, None, None, None)
    assert rows[1].seeds == (0, 1)


def test_formats_parse(swept: Path) -> None:
    table = table_of(swept)
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["aggregation.strategy"] for row in rows] == ["fedavg", "fedprox"]
    assert float(rows[0]["mean"]) == table.rows[0].score.value
    assert table.rows[0].gap is not None
    assert float(rows[0]["gap_low"]) == table.rows[0].gap.low
    assert table.rows[1].versus_first is not None
    assert (rows[0]["vs_first"], float(rows[1]["vs_first"])) == ("", table.rows[1].versus_first.value)
    assert rows[0]["seeds"] == "0 1"
    assert int(rows[0]["n_images"]) == table.rows[0].n_images
    markdown = as_markdown(table)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ")
    assert f"{100 * table.rows[0].score.value:.1f}%" in lines[2]
    assert "paired bootstrap" in markdown
    assert "training.rounds=3" in markdown, "what all rows share stands below"
    latex = as_latex(table)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin{tabular}{(.*)}", latex)
    assert columns is not None
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns.group(1))}
    assert not any(re.search(r"(?<!\\)[%_#$]", line) for line in body)


def a_row(**changes: object) -> Row:
    values: dict[str, object] = {
        "settings": {"a|b_c": "50% & $x^2~\\{#}|"}, "seeds": (0, 1, 2), "n_images": 421, "n_groups": 40,
        "score": Estimate(0.9, 0.85, 0.95), "spread": 0.01,
        "versus_first": Estimate(0.02, -0.01, 0.05), "pooled": 0.95, "gap": Estimate(-0.05, -0.08, 0.01),
        "worst_hospital": "North", "worst_score": 0.8, "rounds": 10, "best_round": 7.5, "bytes_up_per_round": 51_200.0,
        "bytes_down_per_round": 2e6, "bytes_up": 5.12e6, "bytes_down": 2e8,
        "pooling_once_bytes": 31_400_000, "seconds": 12.34, "n_reached": 2, "rounds_to_reach": 4.5,
        "seconds_to_reach": 6.0,
    }  # fmt: skip
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_cells_as_people_read_them_and_escapes(tiny_data: FederationData) -> None:
    rows = (a_row(), a_row(n_reached=0, rounds_to_reach=None, seconds_to_reach=None))
    table = SweepTable("s", tiny_data.federation, "macro_f1", "test", ("a|b_c",), (), (), rows)
    markdown = as_markdown(table).splitlines()
    cells = [
        "90.0% (85.0-95.0)", "1.0", "+2.0 (-1.0 to +5.0)", "3", "421", "95.0%", "-5.0 (-8.0 to +1.0)", "80.0% (North)",
        "7.5 of 10", "51.2 kB / 2.0 MB", "5.1 MB / 200.0 MB", "31.4 MB", "12.3", "round 4.5, 6.0 s (2 of 3 seeds)",
    ]  # fmt: skip
    assert markdown[2] == "| 50% & $x^2~\\\\{#}\\| | " + " | ".join(cells) + " |"
    assert markdown[3].endswith("| not reached |")
    latex = as_latex(table)
    assert r"50\% \& \$x\textasciicircum{}2\textasciitilde{}\textbackslash{}\{\#\}\textbar{} &" in latex
    assert r"a\textbar{}b\_c" in latex
    figures = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert (figures[0]["rounds_to_99"], figures[1]["rounds_to_99"]) == ("4.5", "not reached")
    assert figures[0]["a|b_c"] == "50% & $x^2~\\{#}|"
    assert "backbone" not in as_markdown(table)
    federation = tiny_data.federation.model_copy(
        update={"model": ModelConfig(freeze_backbone=True, weights="imagenet")}
    )
    assert "validation included, a frozen backbone's features not." in as_markdown(
        replace(table, federation=federation)
    )


def test_paired_difference_draws_the_same_groups_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one replicate the ends are that replicate, written out image by image for scikit-learn."""
    monkeypatch.setattr(bootstrap, "REPLICATES", 1)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 60)
    groups = [f"g{number // 3:02d}" for number in range(60)]
    ours, theirs = (generator.normal(0, 1, (n, 60, 4)).astype(np.float32) for n in (3, 2))
    got = paired_difference(ours, theirs, labels, groups, CLASSES, seed=4)
    weights = np.random.default_rng(4).multinomial(20, np.full(20, 1 / 20), 1)[0]
    drawn = np.repeat(np.arange(60), np.repeat(weights, 3))

    def mean(logits: np.ndarray, rows: np.ndarray) -> float:
        return statistics.fmean(f1_score(labels[rows], one.argmax(1)[rows], average="macro") for one in logits)

    assert got.value == pytest.approx(mean(ours, np.arange(60)) - mean(theirs, np.arange(60)))
    assert (got.low, got.high) == pytest.approx((mean(ours, drawn) - mean(theirs, drawn),) * 2)


def test_the_same_model_has_no_difference_and_pairing_narrows() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 200)
    groups = list(map(str, range(200)))
    ours = generator.normal(0, 1, (200, 4))
    ours[np.arange(200), labels] += 1.5
    assert paired_difference(ours, ours, labels, groups, CLASSES) == (0, 0, 0)
    theirs = ours + generator.normal(0, 0.1, ours.shape)
    gap = paired_difference(ours, theirs, labels, groups, CLASSES, "accuracy")
    alone = mean_score(ours, labels, groups, CLASSES, "accuracy")
    assert gap.high - gap.low < (alone.high - alone.low) / 2


def test_what_cannot_be_a_table_is_one_line(
    engine: Command,
    swept: Path,
    tmp_path: Path,
) -> None:
    def refused(*arguments: object) -> str:
        return engine("table", *arguments, "--artifacts", swept).error

    assert "there is no sweep 'nothing'" in refused("nothing")
    assert "'No Name' is no name of a sweep" in refused("No Name")
    assert "--format html: must be one of csv, markdown, latex" in refused("s", "--format", "html")
    assert "--split train: must be one of test, external" in refused("s", "--split", "train")
    assert "'Brain MRI phantoms' has no external test set" in refused("s", "--split", "external")
    assert "--metric f2: must be one of" in refused("s", "--metric", "f2")
    shown = engine("table", "s", "--format", "csv", "--artifacts", swept)
    assert len(list(csv.DictReader(io.StringIO(shown.success)))) == 2


def test_mixed_federations_and_unfinished_runs(swept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept, tmp_path / "artifacts")
    for name in ("run-001", "run-002"):
        (folder / name / "manifest.json").unlink()
    assert [row.seeds for row in table_of(folder).rows] == [(1,), (1,)]
    config = folder / "run-003" / "config.json"
    config.write_text(config.read_text().replace('"name": "Brain MRI phantoms"', '"name": "Other"'))
    with pytest.raises(RunError, match=r"run-003 is of 'Other' \(phantoms\), not of 'Brain MRI phantoms'.*--name"):
        table_of(folder)
    for name in ("run-003", "run-004"):
        shutil.rmtree(folder / name)
    with pytest.raises(RunError, match="has no finished run with one federated model yet"):
        table_of(folder)


def test_runs_on_other_images_are_not_compared(swept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept, tmp_path / "artifacts")
    file = folder / "run-003" / "predictions.parquet"
    rows = sweep_runs(folder, "s")[2].predictions()
    rows.drop(index=rows.index[rows["split"] == "test"][0]).to_parquet(file, index=False)
    with pytest.raises(RunError, match="run-001 and run-003 were not tested on the same images"):
        table_of(folder)
