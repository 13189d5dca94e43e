"""The doctor says what is there and what to do about what is not."""

from pathlib import Path

import pytest

from engine import doctor
from engine.config import PRESETS, load_federation, preset_overrides
from engine.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent


def found() -> dict[str, doctor.Check]:
    return {check.what: check for check in doctor.examine()}


def test_here_everything_pinned_is_installed() -> None:
    report = found()
    assert report["requirements.txt"] == doctor.Check("requirements.txt", "installed as pinned")
    assert report["requirements-engine.txt"].remedy == ""
    assert report["Training"].found.startswith("torch ")


def test_missing_and_other_versions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "federations").mkdir()
    (tmp_path / "requirements.txt").write_text("# words\nno-such-package==1.0\nnumpy==0.1\n", encoding="utf-8")
    (tmp_path / "requirements-engine.txt").write_text("-r requirements.txt\n", encoding="utf-8")
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    check = found()["requirements.txt"]
    assert check.found.startswith("no-such-package is missing; numpy ")
    assert check.found.endswith(" instead of 0.1")
    assert check.remedy == "pip install -r requirements.txt"


def test_a_federation_without_images_says_where_they_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    report = found()
    assert str(tmp_path / "brain-mri") in report["federations/brain-mri.toml"].found
    assert "CONSILIUM_DATA" in report["federations/brain-mri.toml"].remedy
    (tmp_path / "brain-mri").mkdir()
    assert found()["federations/brain-mri.toml"].remedy == ""
    assert report["federations/phantoms.toml"].remedy == ""


def test_little_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found()["Disk for artifacts"].remedy == ""
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 10**18)
    assert "free some disk" in found()["Disk for artifacts"].remedy


def test_a_preset_changes_settings_and_set_changes_them_again() -> None:
    file = PROJECT / "federations" / "brain-mri.toml"
    federation = load_federation(file, preset_overrides("low-memory"))
    assert (federation.training.batch_size, federation.model.image_size_px, federation.training.threads) == (8, 64, 1)
    again = load_federation(file, [*preset_overrides("low-memory"), "training.batch_size=16"])
    assert again.training.batch_size == 16
    assert preset_overrides(None) == ()
    with pytest.raises(ConfigError, match="there is no such preset; there is low-memory"):
        preset_overrides("tiny")
    assert all(load_federation(file, changes) for changes in PRESETS.values())
