"""The Runs page: filter and order, deep links, several runs, notes, publishing from the page, and hundreds of runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ui.notes
import ui.publishing
from engine.errors import ConsiliumError, RunError
from engine.results.files import sha256_of
from engine.results.notes import read_note, write_note
from engine.results.published import PublishedVersion, current_version
from engine.results.run_folder import Run
from tests.conftest import Command
from tests.test_pages import artifacts, make_unfinished, open_page, words
from ui.curves import run_curves
from ui.launch import PUBLISHING, Launch
from ui.loaders import rounds_table
from ui.publishing import LOG, serve_version, start_publishing, what_it_said
from ui.run_index import read_entries
from ui.tables import difference_table

__all__ = ["artifacts"]
CopyRun = Callable[[Path], Path]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def two(artifacts: Path, copy_run: CopyRun) -> Path:
    for name in ("run-001", "run-002"):
        copy_run(artifacts / name)
    return artifacts


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_TRAINING", "1")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would have been started."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(ui.publishing, "start_process", lambda folder, command, *rest: commands.append(command))
    return commands


# The list


def test_the_filter_reads_tags_and_notes_and_stands_in_the_url(two: Path) -> None:
    write_note(Run(two / "run-001"), "The one for the paper.", ["seeds"])
    app = open_page("5_Runs")
    assert list(app.dataframe[0].value["Tags"]) == ["\u2013", "seeds"]
    for text in ("SEEDS", "paper", "run-001 finished"):
        app.text_input(key="filter").input(text).run()
        assert list(app.dataframe[0].value["Run"]) == ["run-001"]
    assert app.query_params["filter"] == "run-001 finished"
    assert list(open_page("5_Runs", filter="paper").dataframe[0].value["Run"]) == ["run-001"]
    app.text_input(key="filter").input("").run()
    assert "filter" not in app.query_params
    app.selectbox(key="sort").select("oldest").run()
    assert app.query_params["sort"] == "oldest"
    assert list(app.dataframe[0].value["Run"]) == ["run-001", "run-002"]


def test_the_best_come_first_and_those_without_a_score_last(two: Path, copy_run: CopyRun) -> None:
    copy_run(two / "run-003")
    shutil.copytree(two / "run-003", two / "run-004")
    make_unfinished(two / "run-004")
    path = two / "run-001" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["splits"]["test"]["global"]["all"]["macro_f1"] = 1.0
    path.write_text(json.dumps(evaluation))
    manifest = json.loads((two / "run-001" / "manifest.json").read_text())
    manifest["files"]["evaluation.json"] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (two / "run-001" / "manifest.json").write_text(json.dumps(manifest))
    app = open_page("5_Runs", sort="best")
    assert list(app.dataframe[0].value["Run"]) == ["run-001", "run-003", "run-002", "run-004"]
    assert app.dataframe[0].value["Federated macro-F1"].iloc[0] == 100


def test_hundreds_of_runs_are_hashed_once(artifacts: Path, copy_run: CopyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    first = copy_run(artifacts / "run-001")
    manifest = json.loads((first / "manifest.json").read_text())
    kept = {name: entry for name, entry in manifest["files"].items() if name in ("config.json", "evaluation.json")}
    for number in range(1, 301):
        folder = artifacts / f"run-{number:03d}"
        folder.mkdir(exist_ok=True)
        for name in kept:
            if folder != first:
                os.link(first / name, folder / name)
        (folder / "manifest.json").write_text(json.dumps({**manifest, "run": folder.name, "files": kept}))
    assert {entry.state for entry in read_entries(artifacts)} == {"finished"}
    monkeypatch.setattr(Run, "verify", lambda run: pytest.fail(f"{run.name} is hashed again"))
    assert len(read_entries(artifacts)) == 300


# One run, several runs


def test_a_link_opens_what_was_chosen(two: Path) -> None:
    link = {"view": "compare", "compare": "run-001,run-099", "by": "scores", "of": "central", "score": "auc/glioma"}
    app = open_page("5_Runs", run="run-002", **link)
    assert not app.exception
    assert not app.error
    assert app.segmented_control(key="run_view").value == "compare"
    assert app.multiselect(key="compare").value == ["run-001"]
    assert app.selectbox(key="compare_of").value == "central"
    assert app.selectbox(key="test_score").value == "auc/glioma"
    app.segmented_control(key="compare_by").set_value("curves").run()
    assert app.query_params["by"] == "curves"
    assert app.query_params["run"] == "run-002"


def test_paired_differences_say_what_they_are(two: Path) -> None:
    app = open_page("5_Runs", run="run-002", view="compare", compare="run-001", by="scores")
    assert not app.exception
    assert "**+0.0 points**. The interval holds 0" in words(app)
    assert "paired percentile bootstrap over groups (1,000 replicates" in words(app)
    table = app.dataframe[1].value
    assert list(table["Test images of"])[:2] == ["All hospitals", "Phantom North (simulated)"]
    assert json.loads(app.get("plotly_chart")[0].proto.config)["toImageButtonOptions"]["format"] == "svg"
    kinds = [button.proto.label for button in app.get("download_button")]
    assert kinds == ["Table as CSV", "Table as LaTeX"] * 2


def test_runs_on_other_images_are_not_compared_like_for_like(two: Path) -> None:
    splits = json.loads((two / "run-001" / "dataset_splits.json").read_text())
    for image in splits["images"]:
        image["sha256"] = "0" * 64
    (two / "run-001" / "dataset_splits.json").write_text(json.dumps(splits))
    manifest = json.loads((two / "run-001" / "manifest.json").read_text())
    del manifest["files"]["dataset_splits.json"]
    (two / "run-001" / "manifest.json").write_text(json.dumps(manifest))
    app = open_page("5_Runs", run="run-002", view="compare", compare="run-001", by="scores")
    assert "share no hospital's test images" in app.warning[0].value
    assert not app.get("plotly_chart")
    assert app.dataframe[1].value.columns[0] == "Model"


def test_settings_and_curves_of_several_runs(phantom_run: Path) -> None:
    run = Run(phantom_run / "run-001")
    other = run.federation.model_copy(update={"name": "Other"})
    table = difference_table({"run-001": run.federation, "run-002": other, "run-003": run.federation})
    assert table.to_numpy().tolist() == [["name", run.federation.name, "Other", run.federation.name]]
    rounds = rounds_table(run.rounds())
    figure = run_curves({"run-001": rounds, "run-002": rounds}, "global", "Federated", "macro_f1")
    lines = [line for line in figure.data if line.mode == "lines+markers"]
    assert [line.name for line in lines] == ["run-001", "run-002"]
    assert len({line.line.color for line in lines}) == len({line.marker.symbol for line in lines}) == 2
    assert np.allclose(lines[0].y, lines[1].y)


# Notes


def test_notes_are_read_everywhere_and_written_where_it_is_allowed(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_note(Run(two / "run-002"), "![x](http://127.0.0.1/x.png)", ["seeds"])
    app = open_page("5_Runs")
    assert [text.value for text in app.text] == ["![x](http://127.0.0.1/x.png)"], "as it was typed"
    assert not app.text_area
    with pytest.raises(RunError, match="CONSILIUM_TRAINING=1"):
        ui.notes.save_note(Run(two / "run-002"), "x", [])
    monkeypatch.setenv("CONSILIUM_TRAINING", "1")
    app = open_page("5_Runs")
    app.text_area[0].set_value("Mine.")
    app.button[0].click().run()
    assert not app.exception
    run = Run(two / "run-002")
    note = read_note(two, "run-002", run.config.started_at)
    assert note is not None
    assert (note.text, note.tags) == ("Mine.", ("seeds",))
    app.text_area[0].set_value("Mine, again.")
    write_note(run, "Theirs.", [])  # from another browser meanwhile
    app.button[0].click().run()
    assert "Another browser saved this note meanwhile" in app.warning[0].value
    assert app.text_area[0].value == "Mine, again."
    assert read_note(two, "run-002", run.config.started_at).text == "Theirs."
    app.button[0].click().run()
    assert read_note(two, "run-002", run.config.started_at).text == "Mine, again."
    (two / "notes" / "run-002.json").write_text("{")
    app = open_page("5_Runs")
    assert not app.exception
    assert "notes/run-002.json: cannot be read" in app.warning[0].value


# Publishing


def test_a_page_that_may_not_publish_offers_nothing(two: Path, phantom_version: Path) -> None:
    app = open_page("5_Runs", view="publish")
    assert app.segmented_control(key="run_view").value == "settings"
    assert not app.button
    with pytest.raises(RunError, match="not published from here; CONSILIUM_TRAINING=1"):
        start_publishing(Run(two / "run-001"), "phantoms", phantom_version)
    with pytest.raises(RunError, match="not changed from here; CONSILIUM_TRAINING=1"):
        serve_version(phantom_version, "phantoms", "v1")


@pytest.mark.skipif(sys.platform != "linux", reason="publishing is started from a page on Linux alone")
def test_publishing_is_a_process_of_its_own(two: Path, enabled: None, started: list[tuple[str, ...]]) -> None:
    app = open_page("5_Runs", run="run-001", view="publish")
    assert not app.exception
    app.text_input(key="publish_name").input("No name")
    app.button[-1].click().run()
    assert "'No name' is no model name" in app.error[0].value
    assert not started
    app.text_input(key="publish_name").input("mine")
    app.button[-1].click().run()
    models = os.environ["CONSILIUM_MODELS"]
    where = ("--artifacts", str(two), "--models", models)
    assert started == [(sys.executable, "-m", "engine", "publish", "run-001", "mine", *where)]


@pytest.mark.skipif(sys.platform != "linux", reason="publishing is started from a page on Linux alone")
def test_what_cannot_be_published_says_so_in_its_sentence(
    two: Path, enabled: None, started: list[tuple[str, ...]]
) -> None:
    config = json.loads((two / "run-001" / "config.json").read_text())
    (two / "run-001" / "config.json").write_text(json.dumps({**config, "transport": "flower"}))
    manifest = json.loads((two / "run-001" / "manifest.json").read_text())
    del manifest["files"]["config.json"]
    (two / "run-001" / "manifest.json").write_text(json.dumps(manifest))
    make_unfinished(two / "run-002", seconds_ago=600)
    app = open_page("5_Runs", run="run-001", view="publish")
    assert "It cannot be published." in app.info[0].value
    assert "was trained over a network" in app.info[0].value
    assert "is not finished" in open_page("5_Runs", run="run-002", view="publish").info[0].value
    with pytest.raises(ConsiliumError, match="is not finished"):
        start_publishing(Run(two / "run-002"), "phantoms", two)
    assert not started


def test_the_page_reads_what_the_command_says(
    engine: Command, phantom_run: Path, phantom_version: Path, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no terminal moves a bar, a line tells each model that is begun."""

    def publish_run(run: Run, name: str, data: object, models: Path, show: Callable[[str, int], None]) -> object:
        show("global", 2)
        show("central", 2)
        return PublishedVersion(phantom_version / "phantoms" / "v1")

    monkeypatch.setattr("engine.publishing.publish.publish_run", publish_run)
    where = ("--artifacts", phantom_run, "--models", phantom_version, "--data", phantom_root)
    outcome = engine("publish", "run-001", "phantoms", *where)
    log = Path.cwd() / LOG
    log.write_text(outcome.err)
    assert what_it_said(log.parent) == (2, 2, "phantoms v1", None)
    log.write_text(engine("publish", "run-001", "No name", *where).err)
    said = what_it_said(log.parent)
    assert said.version is None
    assert said.error == "'No name' is no model name; use lower-case letters, digits and '-'"


@pytest.mark.skipif(sys.platform != "linux", reason="publishing is started from a page on Linux alone")
def test_progress_and_result_stand_on_the_page(two: Path, enabled: None, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__main__.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    command = (sys.executable, "-m", "engine", "publish", "run-001", "phantoms")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        launch = Launch(pid=process.pid, command=command, started_at="")
        (two / PUBLISHING).write_text(launch.model_dump_json())
        (two / LOG).write_text("Publishing global, 1 of 5\nPublishing local/hospital-a, 2 of 5\n")
        app = open_page("5_Runs", run="run-002", view="publish")
        assert not app.exception
        bar = app.get("progress")[0]
        assert "run-001 is being published as phantoms: model 2 of 5" in bar.text
        assert not app.text_input(key="filter").disabled
        assert "publish_now" not in [button.key for button in app.button]
    finally:
        process.kill()
        process.wait()
    app = open_page("5_Runs", run="run-001", view="publish")
    assert "run-001 was not published: the process ended" in app.error[0].value
    (two / LOG).write_text("error: no space\n")
    assert open_page("5_Runs", run="run-001", view="publish").error[0].value == "run-001 was not published: no space"
    (two / LOG).write_text("Published models/phantoms/v2; it is served now\n")
    assert "was published as phantoms v2" in open_page("5_Runs", run="run-001", view="publish").success[0].value


@pytest.mark.skipif(sys.platform != "linux", reason="publishing is started from a page on Linux alone")
def test_an_older_version_is_served_again(
    two: Path, enabled: None, phantom_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    shutil.copytree(phantom_version, models)
    shutil.copytree(models / "phantoms" / "v1", models / "phantoms" / "v2")
    manifest = json.loads((models / "phantoms" / "v2" / "manifest.json").read_text())
    (models / "phantoms" / "v2" / "manifest.json").write_text(json.dumps({**manifest, "version": "v2"}))
    (models / "phantoms" / "current.json").write_text('{"schema_version": 1, "version": "v2"}')
    app = open_page("5_Runs", run="run-001", view="publish")
    assert "**phantoms**: v1, v2 (served)." in words(app)
    app.button(key="serve_phantoms").click().run()
    assert not app.exception
    assert current_version(models, "phantoms").version == "v1"
    assert "**phantoms**: v1 (served), v2." in words(app)
    next((models / "phantoms" / "v2").glob("*.onnx")).write_bytes(b"")
    app.button(key="serve_phantoms").click().run()
    assert "is not as it was published" in app.error[0].value
    assert current_version(models, "phantoms").version == "v1"
