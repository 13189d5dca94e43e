"""Sample pictures: only where the very images of the run lie on this machine, and never as a file of the server."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from engine.results.run_folder import Run
from engine.sections import Scanner
from ui.pictures import browser_picture, sample_files

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(phantom_run: Path) -> Run:
    return Run(phantom_run / "run-001")


@pytest.fixture
def data(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's images, where the run looks for them."""
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    return Path(shutil.copytree(phantom_root, tmp_path / "phantoms"))


def test_one_image_per_class_that_the_hospital_holds(run: Run, data: Path) -> None:
    found = sample_files(run, "hospital-c")
    assert set(found) == {"glioma", "meningioma", "pituitary"}
    assert all(path.parent.parent == data / "hospital-c" for path in found.values())


def test_without_the_images_there_is_no_sample(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sample_files(run, "hospital-a") == {}


def test_another_image_in_its_place_is_not_shown(run: Run, data: Path) -> None:
    before = sample_files(run, "hospital-a")["glioma"]
    before.write_bytes(next(data.glob("hospital-b/*/*.png")).read_bytes())
    assert sample_files(run, "hospital-a")["glioma"] != before


def test_the_picture_travels_inside_the_page(data: Path) -> None:
    file = next(data.rglob("*.png"))
    shown = browser_picture(file, colour=False, longest_px=32)
    head, _, body = shown.url.partition(",")
    assert head == "data:image/png;base64"
    assert (shown.width, shown.height) == (64, 64)
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (32, 32)


def test_the_page_shows_samples_only_when_asked(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(run.folder.parent))
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "models"))
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page("pages/1_Hospitals.py").run()
    assert not app.exception
    assert len(app.get("image")) == 0
    app.toggle(key="samples").set_value(True).run()
    assert not app.exception
    assert len(app.get("image")) == 4


def test_a_sample_is_shown_as_the_hospitals_scanner_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))).save(path)
    plain = browser_picture(path, colour=False, longest_px=100)
    shifted = browser_picture(path, colour=False, longest_px=100, scanner=Scanner(contrast=0.5))
    assert plain.url != shifted.url
    assert shifted == browser_picture(path.read_bytes(), colour=False, longest_px=100, scanner=Scanner(contrast=0.5))
    assert plain == browser_picture(path, colour=False, longest_px=100, scanner=Scanner())
