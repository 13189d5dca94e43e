"""What the form asks about where hospitals train and what protects them: what it says, and what is then started."""

import sys
from pathlib import Path

import pytest

import ui.training_form
import ui.training_safeguards
from engine.config import load_federation
from engine.results.estimate import Estimate, Traffic
from tests.test_pages import PROJECT, artifacts, open_page, words
from tests.test_training_centre import PHANTOMS, enabled
from ui.training_safeguards import privacy_changes

__all__ = ["artifacts", "enabled"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="trainings are started from a page on Linux alone"),
]


@pytest.fixture
def with_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is installed or not: nothing here starts it."""
    monkeypatch.setattr(ui.training_safeguards, "why_no_loopback", lambda: "")


def test_hospitals_as_processes_of_their_own(
    artifacts: Path, enabled: None, with_flower: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    answer = Estimate(
        n_training_images=100, hospitals={"hospital-a": Traffic(bytes_down=2_000_000, bytes_up=500_000, rounds=60)},
        memory_bytes={"weights": 3_000_000}, seconds=300, timed_by={"global": "run-009"}, not_timed=(),
    )  # fmt: skip
    monkeypatch.setattr(ui.training_form, "estimate_training", lambda given: answer)
    monkeypatch.setattr(ui.training_form, "start_training", lambda folder, *given: started.append(list(given)))
    app = open_page("2_Training", task="start")
    app.radio(key="train_place_phantoms").set_value("loopback").run()
    assert "there is no pooled arm" in words(app)
    app.toggle(key="train_secure_phantoms").set_value(True).run()
    assert "whoever owns this machine can read them all" in words(app)
    app.button(key="estimate").click().run()
    assert "The network's own time" in words(app)
    assert "engine loopback federations/phantoms.toml" in app.code[0].value
    app.button(key="start").click().run()
    assert not app.exception
    changes = ['--set=arms=["federated", "local"]', "--set=secure_aggregation.threshold=0.6667"]
    assert started == [[[PHANTOMS, *changes], "loopback"]]


def test_what_cannot_be_apart_is_refused_as_the_engine_does(artifacts: Path, enabled: None, with_flower: None) -> None:
    app = open_page("2_Training", task="start")
    app.selectbox(key="train_federation").select("federations/chest-xray.toml").run()
    assert not app.error
    app.radio(key="train_place_chest-xray").set_value("loopback").run()
    assert "[partition] deals images from one place" in app.error[0].value
    assert not app.button


def test_without_flower_the_choice_says_why(artifacts: Path, enabled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui.training_safeguards, "why_no_loopback", lambda: "It needs Flower, because so.")
    app = open_page("2_Training", task="start")
    assert app.radio(key="train_place_phantoms").disabled
    assert "It needs Flower, because so." in words(app)


def test_privacy_says_what_it_is_and_what_it_changes(artifacts: Path, enabled: None) -> None:
    app = open_page("2_Training", task="start")
    assert "GroupNorm" not in words(app)
    app.toggle(key="train_privacy_phantoms").set_value(True).run()
    assert not app.exception
    assert app.number_input(key="train_privacy_phantoms_epsilon").value == 8
    assert "about images, not patients" in words(app)
    assert "has GroupNorm in place of BatchNorm" in words(app)
    app.selectbox(key="train_strategy_phantoms").select("scaffold").run()
    assert "aggregation.strategy = 'scaffold' sends a second set" in app.error[0].value
    app.selectbox(key="train_strategy_phantoms").select("fedavg").run()
    app.toggle(key="train_secure_phantoms").set_value(True).run()
    assert "In one process this is a rehearsal" in words(app)
    app.selectbox(key="train_compression_phantoms").select("int8").run()
    assert "[secure_aggregation] sends masked numbers" in app.error[0].value


@pytest.mark.parametrize(
    ("file", "changes", "norm"),
    [
        ("phantoms", [], "group"),
        ("phantoms", ["model.architecture=compact-cnn"], "batch"),
        ("brain-mri", ["model.freeze_backbone=true"], "batch"),
        ("chest-xray", [], "group"),  # its class weights would be refused
    ],
)
def test_privacy_changes_what_it_must_and_no_more(file: str, changes: list[str], norm: str) -> None:
    path = PROJECT / "federations" / f"{file}.toml"
    private = load_federation(path, [*changes, *privacy_changes(load_federation(path, changes), 8.0)])
    assert private.privacy is not None
    assert private.privacy.epsilon == 8
    assert private.model.norm == norm
    assert privacy_changes(private, 8.0) == []
