"""What a hosted demo installs and allows: requirements.txt alone, pinned, and nothing that writes."""

import re
import tomllib
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ui.seats import SEATS, VARIABLE

PROJECT = Path(__file__).resolve().parent.parent
GUIDE = (PROJECT / "deploy" / "streamlit-cloud.md").read_text(encoding="utf-8")
PREFERRED = ("uv.lock", "Pipfile", "Pipfile.lock", "environment.yml", "environment.yaml")


def test_community_cloud_finds_requirements_txt_and_nothing_that_it_prefers() -> None:
    assert [name for name in PREFERRED if (PROJECT / name).exists()] == []
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted
    assert [line for line in wanted if not re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line)] == []
    assert {line.partition("==")[0] for line in wanted}.isdisjoint({"torch", "scipy", "scikit-learn", "flwr"})


def test_python_versions_are_those_that_the_guide_names() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11, 3.12 or 3.13" in GUIDE


def test_the_guides_limits_are_the_ones_in_force() -> None:
    config = tomllib.loads((PROJECT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["server"]
    assert f'{VARIABLE} = "{SEATS}"' in GUIDE
    assert f"for {config['disconnectedSessionTTL']} s" in GUIDE
    assert f"{config['maxUploadSize']} MB a file" in GUIDE
    assert f"{config['maxCacheDataSize'].removesuffix('mb')} MB of shared frames" in GUIDE
    assert config["fileWatcherType"] == "none"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_a_word_from_the_server_no_page_starts_anything(
    phantom_run: Path, phantom_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the link asks for the form, and nothing new lies in either folder afterwards."""
    monkeypatch.delenv("CONSILIUM_TRAINING", raising=False)
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(phantom_run))
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    before = [sorted(folder.rglob("*")) for folder in (phantom_run, phantom_version)]
    for page in sorted((PROJECT / "pages").glob("*.py")):
        app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page(f"pages/{page.name}")
        app.query_params["task"] = "start"
        app.run()
        assert not app.exception
        words = {button.label for button in app.button}
        assert not words & {"Start a training", "Start training", "Estimate its cost", "Resume", "Publish", "Roll back"}
    assert [sorted(folder.rglob("*")) for folder in (phantom_run, phantom_version)] == before
