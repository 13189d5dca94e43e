"""Trainings started from a page: what is refused, what is left alone, and what the page says of it."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ui.launch
import ui.training_controls
import ui.training_form
from engine.config import load_federation
from engine.errors import RunError
from engine.results.estimate import Estimate, Traffic
from engine.results.lock import alone_with, lock_holder
from engine.results.run_folder import JOINED, Progress
from tests.test_pages import PROJECT, artifacts, make_unfinished, open_page, words
from ui.launch import LOG, RECORD, Launch, getting_ready, start_training, stop_process, stop_run, what_it_said
from ui.live import hospital_states
from ui.log import matching_lines, read_log
from ui.training_form import changes_of

__all__ = ["artifacts"]
PHANTOMS = "federations/phantoms.toml"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="trainings are started from a page on Linux alone"),
]


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_TRAINING", "1")


@pytest.fixture
def never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def stopped_run(artifacts: Path, phantom_run: Path) -> Path:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    make_unfinished(artifacts / "run-001")
    (artifacts / ".run-001.lock").unlink()
    return artifacts / "run-001"


@pytest.fixture(params=["train", "loopback"])
def training(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with the command line of a training, which only waits."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__main__.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "engine", request.param, "nothing"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    yield process
    process.kill()
    process.wait()


# Starting


def test_nothing_starts_unless_it_is_enabled(tmp_path: Path, never_started: None) -> None:
    with pytest.raises(RunError, match="CONSILIUM_TRAINING=1"):
        start_training(tmp_path, [PHANTOMS])


@pytest.mark.parametrize("value", ["", "0", "no", "true"])
def test_only_one_value_enables_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_TRAINING", value)
    assert not ui.launch.training_enabled()


def test_nothing_starts_without_torch(
    tmp_path: Path, enabled: None, never_started: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"torch is not installed.*requirements-engine"):
        start_training(tmp_path, [PHANTOMS])


def test_one_at_a_time(stopped_run: Path, enabled: None, never_started: None) -> None:
    """Whoever holds the lock of a run, and while one that was started has no run yet."""
    folder = stopped_run.parent
    with alone_with(folder / ".run-001.lock", "x"), pytest.raises(RunError, match="run-001 is being trained"):
        start_training(folder, [PHANTOMS])
    with (folder / LOG).open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="beginning or ending"):
            start_training(folder, [PHANTOMS])


def test_refused_settings_end_in_the_engines_one_line(tmp_path: Path, enabled: None) -> None:
    start_training(tmp_path, [PHANTOMS, "--set=training.rounds=none"])
    launch = ui.launch.last_launch(tmp_path)
    assert launch is not None
    deadline = time.monotonic() + 60
    while launch.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert what_it_said(tmp_path).run is None
    assert "training.rounds" in (what_it_said(tmp_path).error or "")


# Stopping


def test_a_training_is_asked_to_stop_as_by_ctrl_c(training: "subprocess.Popen[str]") -> None:
    stop_process(training.pid)
    assert training.wait(20) in (-signal.SIGINT, 130)


def test_a_stranger_is_left_alone(stopped_run: Path) -> None:
    """Also one that has got the number of a training, or holds a run's lock."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(RunError, match="is no `python -m engine train`"):
            stop_process(stranger.pid)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    with pytest.raises(RunError, match="has ended already"):
        stop_process(stranger.pid)
    with alone_with(stopped_run.parent / ".run-001.lock", "x"), pytest.raises(RunError, match="stop it where it was"):
        stop_run(stopped_run.parent, "run-001")  # this test holds it
    with pytest.raises(RunError, match="there is nothing to stop"):
        stop_run(stopped_run.parent, "run-001")


def test_a_number_that_is_given_again_is_not_the_training(tmp_path: Path, training: "subprocess.Popen[str]") -> None:
    theirs = tuple(training.args)
    for pid, command, alive in ((training.pid, theirs, True), (training.pid, (*theirs, "else"), False)):
        launch = Launch(pid=pid, command=command, started_at="")
        (tmp_path / RECORD).write_text(launch.model_dump_json())
        assert launch.is_alive == alive
        assert (getting_ready(tmp_path) == launch) == alive
    assert not Launch(pid=os.getpid(), command=theirs, started_at="").is_alive


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    lock = tmp_path / ".run-001.lock"
    assert lock_holder(lock) is None
    lock.touch()
    assert lock_holder(lock) is None
    with alone_with(lock, "x"):
        assert lock_holder(lock) == os.getpid()


# What the page says


def test_a_page_that_may_not_start_one_offers_nothing(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    app = open_page("2_Training", task="start")
    assert not app.exception
    assert "task" not in [control.key for control in app.segmented_control]
    assert [button.key for button in app.button] == []
    assert "Showing run-001" in words(app)


def test_without_torch_one_sentence_says_why(
    artifacts: Path,
    enabled: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ui.training_form, "why_not_here", lambda: "No training can be started here, because so.")
    app = open_page("2_Training", task="start")
    assert not app.exception
    assert app.info[0].value.startswith("No training can be started here")
    assert not app.button


def test_the_form_starts_from_the_file_and_refuses_as_the_engine_does(artifacts: Path, enabled: None) -> None:
    app = open_page("2_Training", task="start")
    assert not app.exception
    assert app.number_input(key="train_rounds_phantoms").value == 60
    assert not app.error
    app.selectbox(key="train_strategy_phantoms").select("krum").run()
    assert "needs at least 5 hospitals in a round; there are 3" in app.error[0].value
    assert not app.button
    app.selectbox(key="train_strategy_phantoms").select("fedavg").run()
    app.selectbox(key="train_federation").select("federations/skin.toml").run()
    assert (
        app.number_input(key="train_rounds_skin").value
        == load_federation(Path("federations/skin.toml")).training.rounds
    )


def test_the_estimate_comes_first_and_is_of_what_is_started(
    artifacts: Path,
    enabled: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []
    started: list[list[str]] = []
    answer = Estimate(
        n_training_images=100, hospitals={"hospital-a": Traffic(bytes_down=2_000_000, bytes_up=500_000, rounds=5)},
        memory_bytes={"weights": 3_000_000}, seconds=300, timed_by={"global": "run-009"}, not_timed=(),
    )  # fmt: skip
    monkeypatch.setattr(ui.training_form, "estimate_training", lambda given: asked.append(list(given)) or answer)
    monkeypatch.setattr(ui.training_form, "start_training", lambda folder, *given: started.append(list(given)))
    app = open_page("2_Training", task="start")
    app.number_input(key="train_rounds_phantoms").set_value(5).run()
    assert "start" not in [button.key for button in app.button]
    app.button(key="estimate").click().run()
    assert not app.exception
    assert [metric.value for metric in app.metric] == ["5 min", "3.0 MB", "2.5 MB"]
    assert "as run-009 measured" in words(app)
    app.number_input(key="train_rounds_phantoms").set_value(6).run()
    assert "start" not in [button.key for button in app.button], "that estimate is of other settings"
    app.number_input(key="train_rounds_phantoms").set_value(5).run()
    app.button(key="start").click().run()
    arguments = ["federations/phantoms.toml", "--set=training.rounds=5"]
    assert started == [[arguments, "train"]]
    assert asked == [[*arguments, "--artifacts", str(artifacts)]]


def test_what_is_not_timed_has_no_time(artifacts: Path, enabled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Estimate(
        n_training_images=1, hospitals={}, memory_bytes={}, seconds=None, timed_by={"global": "run-001"},
        not_timed=("local/hospital-b",),
    )  # fmt: skip
    monkeypatch.setattr(ui.training_form, "estimate_training", lambda given: answer)
    app = open_page("2_Training", task="start")
    app.button(key="estimate").click().run()
    assert app.metric[0].value == "not known"
    assert "has timed Phantom Coast (simulated) yet" in words(app)


def test_a_training_that_did_not_begin_says_why(artifacts: Path, enabled: None) -> None:
    launch = Launch(pid=2**22 + 1, command=("python", "-m", "engine", "train", PHANTOMS), started_at="")
    (artifacts / RECORD).write_text(launch.model_dump_json())
    (artifacts / LOG).write_text("reading\nerror: data/x: no such data folder; give --data DIR\n")
    app = open_page("2_Training", task="start")
    assert app.error[0].value == "The last training did not begin: data/x: no such data folder; give --data DIR"
    (artifacts / LOG).write_text("Traceback (most recent call last):\n")
    assert LOG in open_page("2_Training", task="start").error[0].value


def test_while_one_runs_there_is_no_form_but_the_way_to_it(stopped_run: Path, enabled: None) -> None:
    with alone_with(stopped_run.parent / ".run-001.lock", "x"):
        app = open_page("2_Training", task="start")
        assert not app.exception
        assert "run-001 is being trained, and this machine trains one at a time" in words(app)
        assert not app.number_input
        app = open_page("2_Training", run="run-001")
        assert [button.key for button in app.button] == ["stop_now"]
        assert "Round 3 of 3" in app.get("progress")[0].text


def test_a_stopped_run_offers_to_go_on(stopped_run: Path, enabled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(ui.training_controls, "start_training", lambda folder, *given: started.append(list(given)))
    with (stopped_run / "training.log").open("a") as log:
        log.write("2026-01-01 00:00:00,000 ERROR stopped: RunError: out of memory: free some\n")
    app = open_page("2_Training", run="run-001")
    assert "out of memory: free some" in app.get("progress")[0].text
    assert not app.code, "no command where there is a button"
    app.button(key="resume").click().run()
    assert not app.exception
    assert started == [[[PHANTOMS, "--resume", "run-001"], "train"]]


def test_a_stopped_run_goes_on_where_its_hospitals_are(
    stopped_run: Path, enabled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes here if their states are here; else on their own machines, from which no page can call them."""
    started: list[list[str]] = []
    monkeypatch.setattr(ui.training_controls, "start_training", lambda folder, *given: started.append(list(given)))
    monkeypatch.setattr(ui.launch, "LOOPBACK_STATE", tmp_path / "state")
    config = json.loads((stopped_run / "config.json").read_text())
    (stopped_run / "config.json").write_text(json.dumps({**config, "transport": "flower"}))
    (stopped_run / JOINED).write_text(json.dumps({"schema_version": 1, "training": "0123", "hospitals": {}}))
    app = open_page("2_Training", run="run-001")
    assert not app.exception
    assert not app.button
    assert f"engine coordinator {PHANTOMS} --resume run-001 --certificates DIR" in app.code[0].value
    (tmp_path / "state" / "hospital-a" / "0123").mkdir(parents=True)
    app = open_page("2_Training", run="run-001")
    app.button(key="resume").click().run()
    assert started == [[[PHANTOMS, "--resume", "run-001"], "loopback"]]


def test_a_resume_that_is_refused_says_why(stopped_run: Path, enabled: None) -> None:
    command = ("python", "-m", "engine", "train", PHANTOMS, "--resume", "run-001")
    (stopped_run.parent / RECORD).write_text(Launch(pid=2**22 + 1, command=command, started_at="").model_dump_json())
    (stopped_run.parent / LOG).write_text("error: the images are no longer those it began with; train anew\n")
    app = open_page("2_Training", run="run-001")
    assert app.error[0].value.startswith("run-001 could not go on: the images are no longer those")


def test_hospitals_in_flight_by_name(stopped_run: Path) -> None:
    federation = load_federation(PROJECT / PHANTOMS)
    file = stopped_run / "checkpoint" / "progress.json"
    progress = Progress.model_validate(
        {**json.loads(file.read_text()), "hospitals": {"hospital-a": "failed", "hospital-b": "training"}}
    )
    assert hospital_states(progress, federation) == {
        "Phantom North (simulated)": "failed",
        "Phantom Coast (simulated)": "training",
        "Phantom Valley (simulated)": "not asked",
    }
    file.write_text(progress.model_dump_json())
    with alone_with(stopped_run.parent / ".run-001.lock", "x"):
        app = open_page("2_Training", run="run-001")
    shown = [badge.value for badge in app.markdown if "Phantom" in str(badge.value)]
    assert any("Phantom North (simulated): failed" in str(text) for text in shown)


def test_the_log_is_filtered_by_level_and_words() -> None:
    lines = read_log(
        "2026-01-01 00:00:00,000 INFO global: round 1\n2026-01-01 00:00:01,000 WARNING global: hospital-b failed\n"
        "  no power\n2026-01-01 00:00:02,000 ERROR stopped: RunError: no\n"
    )
    assert [line.level for line in lines] == ["INFO", "WARNING", "WARNING", "ERROR"]
    assert [line.text for line in matching_lines(lines, ("WARNING", "ERROR"), "NO power")] == ["  no power"]
    assert len(matching_lines(lines, (), "global")) == 2
    assert matching_lines(lines, ("ERROR",), "hospital-b") == []


def test_the_log_stands_on_the_page(artifacts: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    app = open_page("2_Training", run="run-001")
    app.toggle(key="show_log").set_value(True).run()
    assert "global: round 3 of 3 took" in app.code[0].value
    app.text_input(key="log_words").input("no such words").run()
    assert not app.exception
    assert "No line says that." in words(app)


# What was chosen


def test_only_what_was_changed_is_set() -> None:
    federation = load_federation(PROJECT / PHANTOMS, ['aggregation={strategy="fedprox",mu=0.5}'])
    same = {
        "arms": list(federation.arms), "rounds": 60, "local_epochs": 1, "per_round": 3, "strategy": "fedprox",
        "compression": "none", "epsilon": None, "secure": False,
    }  # fmt: skip
    assert changes_of(federation, same) == []
    other = {
        **same,
        "arms": ["federated"],
        "local_epochs": 2,
        "per_round": 2,
        "strategy": "fedavg",
        "compression": "topk",
        "epsilon": 3.0,
    }
    changes = changes_of(federation, other)
    changed = load_federation(PROJECT / PHANTOMS, ['aggregation={strategy="fedprox",mu=0.5}', *changes])
    assert changed.arms == ("federated",)
    assert changed.training.local_epochs == 2
    assert changed.training.hospitals_per_round(3) == 2
    assert changed.aggregation.strategy == "fedavg", "its mu went with the strategy that it belonged to"
    assert changed.communication.compression == "topk"
    assert changed.privacy is not None
    assert changed.privacy.epsilon == 3
