"""Every page on a run that learned without labels: finished, probed, with a damaged probe, unfinished."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from engine.config import load_federation
from engine.results.files import sha256_of, write_json
from engine.results.probes import Probe, probe_file, read_probe
from engine.results.run_folder import Progress, Run
from tests.conftest import PROJECT, TINY, mixed
from tests.test_pages import artifacts, open_page, words
from ui.curves import best_rows
from ui.loaders import rounds_table
from ui.pretext import pretext_sentence
from ui.pretext_curves import objective_figure, objectives_of, pretext_progress
from ui.probe_figures import efficiency_figure, embedding_figure, encoder_order, rounds_figure
from ui.probed import probe_rows, probe_sentence, probe_table, round_rows

__all__ = ["artifacts"]
PAGES = ("1_Hospitals", "2_Training", "3_Evaluation", "4_Compare", "5_Runs")
STATES = ("finished", "probed", "damaged probe", "foreign probe", "unfinished")
ENCODERS = ["global", "local/hospital-a", "local/hospital-b", "local/hospital-c", "central", "random"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def lay_out(artifacts: Path, run: Run, probes: list[dict[str, Any]], state: str) -> None:
    shutil.copytree(run.folder, artifacts / "run-001")
    if state == "unfinished":
        make_unfinished(artifacts / "run-001")
    elif state != "finished":
        for probe in probes:
            write_json(probe_file(artifacts, "run-001", probe["labels"], finetune=False), probe)
    damaged = probe_file(artifacts, "run-001", 0.1, finetune=False)
    if state == "damaged probe":
        damaged.write_text(damaged.read_text()[:300])
    elif state == "foreign probe":
        write_json(damaged, {**probes[0], "run_manifest_sha256": "0" * 64})


def make_unfinished(run: Path) -> None:
    """As a training leaves it in its second round."""
    for name in ("manifest.json", "communication.json", "training_history.json"):
        (run / name).unlink()
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    progress = Progress(
        model="global", round=2, rounds=3, hospital="hospital-b", images_done=250, images_total=1000,
        images_at_start=0, started_at="2026-01-01T00:00:00+00:00", updated_at="2026-01-01T00:05:00+00:00",
    )  # fmt: skip
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "progress.json").write_text(progress.model_dump_json())
    (run.parent / f".{run.name}.lock").touch()


def everything(app: AppTest) -> str:
    """All text, figures' labels too."""
    figures = "\n".join(chart.proto.spec for chart in app.get("plotly_chart"))
    return f"{words(app)}\n{figures}\n" + "\n".join(metric.label for metric in app.metric)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", [*PAGES, "home"])
def test_no_page_breaks_or_speaks_of_a_diagnosis(
    page: str, state: str, artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, state)
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run() if page == "home" else open_page(page)
    assert not app.exception
    assert not app.error
    said = everything(app)
    assert not re.search(r"\bnan\b", words(app) + " ".join(metric.value for metric in app.metric))
    if page in ("4_Compare", "home"):  # nothing to publish yet: train a run with labels first
        assert "publish run-001" not in said
        assert "publish run-002 phantoms" in said
        return
    if page == "3_Evaluation" and state == "unfinished":
        assert "No run is finished yet" in said
        return
    assert "without labels" in said
    assert "by rotation at Phantom North (simulated) and SimCLR at Phantom Coast (simulated)" in said
    if page == "2_Training":
        assert "acro-F1" not in words(app) + "".join(metric.label for metric in app.metric)
        assert "Chosen round" in said


def test_training_shows_each_objective_apart_and_says_what_its_share_is(artifacts: Path, ssl_run: Run) -> None:
    lay_out(artifacts, ssl_run, [], "finished")
    app = open_page("2_Training")
    assert len(app.get("plotly_chart")) == 2
    assert "That compares rounds of this run and nothing else" in words(app)
    app.segmented_control(key="metric").set_value("accuracy").run()
    assert not app.exception
    assert "turns named rightly; a guess is right 25% of the time" in words(app)
    assert "views whose nearest other view is their partner" in words(app)


def test_training_draws_what_each_round_was_worth(
    artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "probed")
    app = open_page("2_Training")
    assert len(app.get("plotly_chart")) == 3
    assert "No round was chosen by it" in words(app)
    probes = [Probe.model_validate(probe) for probe in ssl_probes]
    figure = rounds_figure(round_rows(probes), ssl_run.federation, "macro_f1", "Macro-F1")
    all_labels, tenth = figure.data
    assert all_labels.name.startswith("100% of the labels")
    for line, probe in ((tenth, probes[0]), (all_labels, probes[1])):
        random = next(row for row in probe.rows if (row.encoder, row.method) == ("random", "linear"))
        linear = [row.scores.macro_f1.value for row in probe.rounds if row.method == "linear"]
        assert list(line.x) == [0, 1, 2, 3]
        assert list(line.y) == [random.scores.macro_f1.value, *linear]


def test_training_without_probed_rounds_has_no_such_chart(
    artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, [{**probe, "rounds": []} for probe in ssl_probes], "probed")
    app = open_page("2_Training")
    assert len(app.get("plotly_chart")) == 2
    assert not app.exception


def test_evaluation_says_how_to_probe(artifacts: Path, ssl_run: Run) -> None:
    lay_out(artifacts, ssl_run, [], "finished")
    app = open_page("3_Evaluation")
    assert "no opinions" in app.info[0].value
    probe, train = (code.value for code in app.code)
    assert probe.startswith("python -m engine probe run-001 --labels 0.01,0.1,1 --artifacts ")
    assert "--set model.weights=run-001 --set model.architecture=compact-cnn --set model.image_size_px=32" in train


def test_evaluation_shows_a_probe(artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "probed")
    app = open_page("3_Evaluation")
    assert not app.warning
    (federated,) = (row for row in ssl_probes[0]["rows"] if (row["encoder"], row["method"]) == ("global", "linear"))
    assert f"federated **{100 * federated['scores']['macro_f1']['value']:.1f}%" in words(app)
    assert len(app.dataframe[0].value) == 13, "six encoders, two ways, and from scratch"
    assert "A whole network, trained on the same labels: from scratch " in words(app)
    assert list(app.pills(key="methods").options) == ["Linear probe", "Nearest neighbours"], "scratch is always shown"
    assert "to stand beside it" not in words(app)
    app.segmented_control(key="score").set_value("accuracy").run()
    assert f"federated **{100 * federated['scores']['accuracy']['value']:.1f}%" in words(app)
    app.segmented_control(key="probe_view").set_value("Embedding").run()
    app.selectbox(key="encoder").select("random").run()
    app.segmented_control(key="colour").set_value("Hospital").run()
    assert not app.exception
    assert f"{ssl_probes[0]['n_test']} test images on the first two principal components" in words(app)


def test_shares_that_look_alike_rounded_are_two_columns(ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    probes = [Probe.model_validate({**ssl_probes[0], "labels": share}) for share in (0.1, 0.102)]
    table = probe_table(probe_rows(ssl_run.federation, probes), ssl_run.federation, "macro_f1")
    assert [head.partition(" (")[0] for head in table.columns[2:]] == ["10%", "10.2%"]


def test_arms_that_are_not_there_are_named(ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    alone = ssl_run.federation.model_copy(update={"arms": ("federated",)})
    rows = probe_rows(alone, [Probe.model_validate(ssl_probes[0])])
    said = probe_sentence(rows, alone, "macro_f1")
    assert "This run trained no hospital's own encoder and no pooled encoder to stand beside it." in said


def test_no_method_chosen_draws_an_empty_chart(artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "probed")
    app = open_page("3_Evaluation")
    app.pills(key="methods").set_value([]).run()
    assert not app.exception


def test_a_damaged_probe_leaves_the_others_alone(
    artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "damaged probe")
    app = open_page("3_Evaluation")
    (warning,) = app.warning
    assert "run-001-labels-0.1.json: cannot be read" in warning.value
    assert "probe the run again" in warning.value
    assert f"With the labels of {ssl_probes[1]['n_labels']:,} of " in words(app)


def test_a_probe_of_another_run_of_that_name_is_not_shown(
    artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "foreign probe")
    app = open_page("3_Evaluation")
    assert "is of another run that was called run-001" in app.warning[0].value
    assert f"With the labels of {ssl_probes[0]['n_labels']:,} of " not in words(app)


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"rows": []}, {"labels": 0}, {"embedding": {"labels": ["a"], "hospitals": []}}, {"n": 1}],
)
def test_a_probe_that_is_none_is_one_sentence(
    change: dict[str, Any], artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, ssl_probes, "probed")
    write_json(probe_file(artifacts, "run-001", 0.1, finetune=False), {**ssl_probes[0], **change})
    app = open_page("3_Evaluation")
    assert not app.exception
    assert len(app.warning) == 1


def test_a_probe_from_before_embeddings_is_read(
    artifacts: Path, ssl_run: Run, ssl_probes: list[dict[str, Any]]
) -> None:
    lay_out(artifacts, ssl_run, [], "finished")
    plain = {key: value for key, value in ssl_probes[0].items() if key != "embedding"}
    write_json(probe_file(artifacts, "run-001", 0.1, finetune=False), plain)
    app = open_page("3_Evaluation")
    assert not app.warning
    app.segmented_control(key="probe_view").set_value("Embedding").run()
    assert "probe again" in app.info[0].value


def descend(artifacts: Path, phantom_run: Path, name: str, sha256: str) -> None:
    """A supervised run as it would stand, had it started from run-001."""
    folder = artifacts / name
    shutil.copytree(phantom_run / "run-001", folder)
    config = json.loads((folder / "config.json").read_text())
    config["federation"]["model"]["weights"] = "run-001"
    write_json(folder / "config.json", {**config, "starting_weights_sha256": sha256})
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": sha256_of(folder / "config.json"), "bytes": (folder / "config.json").stat().st_size}
    files = {**manifest["files"], "config.json": {**entry, "detached": False}}
    write_json(folder / "manifest.json", {**manifest, "run": name, "files": files, "audit_log": None})
    (folder / "audit-log.jsonl").unlink()  # run-001's


def test_runs_draws_where_a_run_came_from(artifacts: Path, ssl_run: Run, phantom_run: Path) -> None:
    lay_out(artifacts, ssl_run, [], "finished")
    descend(artifacts, phantom_run, "run-002", sha256_of(ssl_run.weights("global")))
    descend(artifacts, phantom_run, "run-003", "0" * 64)
    links = {
        name: [link.proto.label for link in open_page("5_Runs", run=name).get("page_link")]
        for name in ("run-001", "run-002", "run-003")
    }
    name = ssl_run.federation.name
    assert links == {
        "run-001": [f"run-002: {name}, with labels"],
        "run-002": [f"run-001: {name}, without labels"],
        "run-003": [],
    }
    assert "another run by now" in words(open_page("5_Runs", run="run-003"))
    (link,) = open_page("5_Runs", run="run-002").get("page_link")
    assert link.proto.query_string == "run=run-001"
    for part in ("settings", "curves", "scores"):
        app = open_page("5_Runs", run="run-002", view="compare", compare="run-001", by=part)
        assert not app.exception
        assert not app.error
    assert "run-001 learned without labels, so it has no test scores" in words(app)
    assert "publish run-003 phantoms" in words(AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run())


def test_panels_hold_their_objective_alone(ssl_run: Run) -> None:
    rounds, federation = rounds_table(ssl_run.rounds()), ssl_run.federation
    assert objectives_of(federation) == ["rotation", "simclr"]
    rotation, simclr = (objective_figure(rounds, federation, one, "loss") for one in objectives_of(federation))
    assert [line.name for line in rotation.data] == [
        "Federated, at Phantom North (simulated)",
        "Phantom North (simulated) alone",
    ]
    assert [line.name for line in simclr.data][-1] == "Pooled, for reference"
    assert len(simclr.data) == 5
    mine = rounds[(rounds["model"] == "global") & (rounds["hospital"] == "hospital-a")]
    assert list(rotation.data[0].y) == list(mine["loss"])
    assert f"**round {best_rows(rounds)['global']['round']}** of 3" in pretext_progress(rounds)
    assert pretext_progress(rounds[rounds["model"] == "central"]) == ""


def test_losses_below_zero_are_in_the_panel(ssl_run: Run) -> None:
    rounds = rounds_table(ssl_run.rounds())
    figure = objective_figure(rounds.assign(loss=rounds["loss"] - 9), ssl_run.federation, "simclr", "loss")
    bottom, top = figure.layout.yaxis.range
    assert bottom < min(min(line.y) for line in figure.data)
    assert max(max(line.y) for line in figure.data) < top < 0


def test_a_pooled_objective_of_nobody_has_its_own_panel(ssl_run: Run) -> None:
    pretext = mixed().pretext
    assert pretext is not None
    federation = mixed().model_copy(update={"pretext": pretext.model_copy(update={"objective": "simsiam"})})
    assert objectives_of(federation) == ["rotation", "simsiam"]  # hospitals that name none follow it


def test_figures_of_a_probe(ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    federation, probes = ssl_run.federation, [Probe.model_validate(probe) for probe in ssl_probes]
    rows = probe_rows(federation, [*probes, probes[0]])
    assert len(rows) == 2 * (2 * 6 + 1), "six encoders, two ways, and from scratch"
    assert encoder_order(federation, list(rows["encoder"].unique())) == ENCODERS
    figure = efficiency_figure(rows, federation, "macro_f1", "Macro-F1")
    assert len(figure.data) == 13
    for line in figure.data:
        assert [one[1] for one in line.customdata] == [probe.n_labels for probe in probes]
        assert all(gap >= 0 for gap in (*line.error_y.array, *line.error_y.arrayminus))
    assert len({line.x[0] for line in figure.data}) == 6, "encoders stand apart"
    table = probe_table(rows, federation, "accuracy")
    assert list(table.columns[:2]) == ["Encoder", "Method"]
    assert table.columns[3] == f"100% ({probes[1].n_labels:,})"
    embedding = probes[0].embedding
    assert embedding is not None
    for by_class, groups in ((True, set(embedding.labels)), (False, set(embedding.hospitals))):
        drawn = embedding_figure(embedding, federation, "global", by_class=by_class)
        assert len(drawn.data) == len(groups)
        assert sum(len(trace.x) for trace in drawn.data) == len(embedding.labels)


def test_from_scratch_is_named(ssl_run: Run, ssl_probes: list[dict[str, Any]]) -> None:
    tuned = [{**row, "method": "finetuned", "best_round": 1} for row in ssl_probes[0]["rows"][::2]]
    probe = Probe.model_validate({**ssl_probes[0], "rows": tuned})
    rows = probe_rows(ssl_run.federation, [probe])
    names = [line.name for line in efficiency_figure(rows, ssl_run.federation, "macro_f1", "Macro-F1").data]
    assert names.count("From scratch") == 1
    assert isinstance(rows, pd.DataFrame)


def test_what_such_a_federation_is_in_words() -> None:
    assert pretext_sentence(load_federation(PROJECT / "federations" / "phantoms.toml", TINY)) == ""
    alike = [*TINY, "pretext.objective='rotation'"]
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", alike)
    assert "by rotation at every hospital" in pretext_sentence(federation)


def test_a_probe_file_comes_back_as_it_was_written(tmp_path: Path, ssl_probes: list[dict[str, Any]]) -> None:
    file = probe_file(tmp_path, "run-001", 0.1, finetune=True)
    write_json(file, ssl_probes[0])
    assert file.name == "run-001-labels-0.1-finetuned.json"
    assert read_probe(file).model_dump(mode="json", exclude_none=True) == json.loads(file.read_text())
