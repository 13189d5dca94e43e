"""Hospitals, Training, Evaluation and Runs in every state a run folder can be in, through Streamlit's AppTest."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.cli import ENGINE_ONLY
from engine.results.audit_log import read_log
from engine.results.run_folder import Progress, now

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("1_Hospitals", "2_Training", "3_Evaluation", "5_Runs")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty artifacts folder, and no published model."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(folder))
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(PROJECT)
    return folder


def open_page(page: str, **query: str) -> AppTest:
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page(f"pages/{page}.py")
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    """All that the page says in text."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.subheader, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def make_unfinished(run: Path, seconds_ago: float = 0) -> None:
    """As a training leaves it in its third round: no manifest, no results, a torn last line."""
    (run / "manifest.json").unlink()
    for name in ("evaluation.json", "predictions.parquet", "communication.json", "training_history.json"):
        (run / name).unlink()
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    federated = [line for line in lines if '"model":"global"' in line][:8]
    (run / "rounds.jsonl").write_text("".join(federated) + federated[0][:40])
    progress = Progress(
        model="global", round=3, rounds=3, hospital="hospital-b", images_done=250, images_total=1000,
        images_at_start=0, started_at="2026-01-01T00:00:00+00:00", updated_at="2026-01-01T00:05:00+00:00",
    )  # fmt: skip
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "progress.json").write_text(progress.model_dump_json())
    (run.parent / f".{run.name}.lock").touch()  # a process elsewhere may hold it
    then = time.time() - seconds_ago
    for file in (path for path in run.rglob("*") if path.is_file()):
        os.utime(file, (then, then))


def change_a_byte(run: Path) -> None:
    content = bytearray((run / "evaluation.json").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "evaluation.json").write_bytes(content)


def cut_the_manifest(run: Path) -> None:
    content = (run / "manifest.json").read_bytes()
    (run / "manifest.json").write_bytes(content[: len(content) // 2])


def lose_the_config(run: Path) -> None:
    (run / "config.json").unlink()


@pytest.mark.parametrize("page", PAGES)
def test_without_a_run_a_page_says_which_command_makes_one(page: str, artifacts: Path) -> None:
    app = open_page(page)
    assert not app.exception
    assert "no run yet" in app.info[0].value
    assert "python -m engine train federations/phantoms.toml" in words(app)


@pytest.mark.parametrize("page", PAGES)
def test_a_finished_run_shows(page: str, artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    app = open_page(page)
    assert not app.exception
    assert not app.error
    assert "none shows a patient" in words(app)
    assert "The hospitals do not exist" in words(app)
    assert app.query_params["run"] == "run-001" or app.query_params["run"] == ["run-001"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("damage", [change_a_byte, cut_the_manifest, lose_the_config])
def test_a_damaged_run_is_one_calm_sentence(
    page: str, damage: Callable[[Path], None], artifacts: Path, phantom_run: Path
) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    damage(artifacts / "run-001")
    app = open_page(page)
    assert not app.exception
    assert len(app.error) == 1
    assert app.error[0].value.startswith("run-001 cannot be shown.")


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_run_leaves_the_others_alone(page: str, artifacts: Path, copy_run: Callable[[Path], Path]) -> None:
    for name in ("run-001", "run-002"):
        copy_run(artifacts / name)
    change_a_byte(artifacts / "run-002")
    app = open_page(page)
    assert not app.exception
    assert not app.error
    assert "Showing run-001" in words(app)
    app = open_page(page, run="run-002")
    assert not app.exception
    assert "evaluation.json: is not as it was written" in app.error[0].value


def test_damage_that_comes_later_is_noticed(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    assert not open_page("3_Evaluation").error
    change_a_byte(artifacts / "run-001")
    assert len(open_page("3_Evaluation").error) == 1


@pytest.mark.parametrize("page", PAGES)
def test_an_unfinished_run_alone(page: str, artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    make_unfinished(artifacts / "run-001")
    app = open_page(page)
    assert not app.exception
    assert not app.error
    if page == "3_Evaluation":
        assert "No run is finished yet" in app.info[0].value


def test_a_running_training_says_where_it_is(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    make_unfinished(artifacts / "run-001")
    app = open_page("2_Training")
    text = app.get("progress")[0].text
    assert "Round 3 of 3 of the federated model: Phantom Coast (simulated) trains" in text
    assert "25% of the training, about 15 min left" in text


def test_a_stopped_training_says_how_to_go_on(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    make_unfinished(artifacts / "run-001", seconds_ago=600)
    app = open_page("2_Training")
    assert "Stopped" in app.get("progress")[0].text
    command = "python -m engine train federations/phantoms.toml --resume run-001"
    assert any(element.value.startswith(command) for element in app.code)


def test_training_opens_on_the_newest_finished_run_and_names_the_running_one(
    artifacts: Path, copy_run: Callable[[Path], Path]
) -> None:
    for name in ("run-001", "run-002"):
        copy_run(artifacts / name)
    make_unfinished(artifacts / "run-002")
    app = open_page("2_Training")
    assert "Showing run-001" in words(app)
    assert "run-002 is being trained now" in app.get("page_link")[0].proto.label
    app = open_page("2_Training", run="run-002")
    assert "Showing run-002 (being trained)" in words(app)
    app.selectbox(key="run_choice").select("run-001").run()
    assert "Showing run-001" in words(app)


def test_evaluation_answers_with_n_and_shows_any_cell(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    cells = json.loads((artifacts / "run-001" / "evaluation.json").read_text())["splits"]["test"]
    app = open_page("3_Evaluation")
    assert f"On all {cells['global']['all']['n_images']} test images" in words(app)
    app.selectbox(key="cell_model").select("central")
    app.selectbox(key="cell_hospital").select("hospital-c").run()
    assert not app.exception
    table = app.table[0].value
    absent = [row for row in table.to_dict("records") if row["n"] == "0"]
    assert [row["Class"] for row in absent] == ["notumor"]
    assert {row["Recall"] for row in absent} == {"\u2013"}


def test_an_unknown_run_in_the_link_is_said(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    app = open_page("3_Evaluation", run="run-099")
    assert not app.exception
    assert "run-099 is not on this machine" in app.warning[0].value


def test_runs_filters_and_compares(artifacts: Path, copy_run: Callable[[Path], Path]) -> None:
    for name in ("run-001", "run-002"):
        copy_run(artifacts / name)
    app = open_page("5_Runs")
    assert len(app.dataframe[0].value) == 2
    app.text_input(key="filter").input("RUN-002 finished").run()
    assert list(app.dataframe[0].value["Run"]) == ["run-002"]
    app.segmented_control(key="run_view").set_value("compare").run()
    app.multiselect(key="compare").select("run-001").run()
    assert not app.exception
    assert "run-002 and run-001 were trained with the same settings" in words(app)
    app.segmented_control(key="run_view").set_value("files").run()
    assert "evaluation.json" in set(app.dataframe[1].value["File"])
    assert "It has no audit log." in words(app)


def test_runs_says_that_the_audit_log_holds(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    app = open_page("5_Runs")
    app.segmented_control(key="run_view").set_value("files").run()
    last = read_log(artifacts / "run-001" / "audit-log.jsonl").last
    assert f"Its audit log holds: 5 entries, the last is `{last}`." in words(app)


def test_runs_says_when_weights_are_elsewhere(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    shutil.rmtree(artifacts / "run-001" / "weights")
    app = open_page("5_Runs")
    assert not app.error
    assert "weights are not on this machine" in words(app)


def test_runs_names_the_published_version(
    artifacts: Path, phantom_run: Path, phantom_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    app = open_page("5_Runs")
    assert "phantoms v1" in app.dataframe[0].value["Published as"].iloc[0]
    assert "published as phantoms v1, served" in words(app)


def test_pages_need_no_torch(artifacts: Path, phantom_run: Path) -> None:
    """In a process of its own, where any import of torch fails."""
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    program = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ENGINE_ONLY!r}:
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, NoTorch())
from streamlit.testing.v1 import AppTest
for page in {PAGES!r}:
    app = AppTest.from_file("app.py", default_timeout=60).switch_page(f"pages/{{page}}.py").run()
    assert not app.exception and not app.error, (page, app.exception, app.error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_now_is_what_progress_is_written_with() -> None:
    """The estimate reads both times as ISO with an offset."""
    assert now().endswith("+00:00")
