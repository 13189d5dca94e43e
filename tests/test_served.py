"""Evaluation's last part: what a published version promises, in words, as a table and as a drawing."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.config import Federation
from engine.inference.panel import read_calibration
from engine.results.published import current_version
from ui.served import reliability_figure, served_caption, served_sentence, served_table

PROJECT = Path(__file__).resolve().parent.parent
LOCAL = "local/hospital-a"


def cell(after: float) -> dict:
    return {
        "before": {"n_images": 40, "ece": 0.2, "interval": [0.1, 0.3], "bins": [[40, 0.9, 0.7]]},
        "after": {"n_images": 40, "ece": after, "interval": [0.01, 0.09], "bins": [[10, 0.5, 0.4], [30, 0.8, 0.8]]},
    }


SETS = {"n_images": 40, "coverage": 0.925, "interval": [0.85, 0.975], "mean_size": 1.2, "size_interval": [1.1, 1.3]}
REFUSED = {"n_images": 40, "share": 0.025, "interval": [0.0, 0.075]}
CALIBRATION = {
    "coverage": 0.9,
    "models": {
        model: {"temperature": 1.5, "threshold": 0.93, "hospitals": ["hospital-a"], "n_images": 33}
        for model in ("global", LOCAL)
    },
    "measured": {
        "calibration": {model: {"all": cell(0.04), "hospital-a": cell(0.05)} for model in ("global", LOCAL)},
        "sets": {model: {"all": SETS, "hospital-a": SETS} for model in ("global", LOCAL)},
        "sets_by_class": {model: {"glioma": SETS} for model in ("global", LOCAL)},
        "refused": {"all": REFUSED, "hospital-a": REFUSED},
    },
}


def test_the_sentence_says_what_to_expect(tiny_federation: Federation) -> None:
    assert served_sentence(tiny_federation, CALIBRATION, "global") == (
        "**Federated**, on 40 test images: the gap between how sure it is and how often it is right is **4.0%** "
        "(1.0-9.0), before calibration 20.0%. Its 90% prediction sets hold the true class on **92.5%** (85.0-97.5) and "
        "name 1.20 classes on average. The gate refuses 2.5% (0.0-7.5) of these images."
    )


def test_a_gap_that_grew_shows_both_figures(tiny_federation: Federation) -> None:
    grown = {**CALIBRATION, "measured": {**CALIBRATION["measured"], "calibration": {"global": {"all": cell(0.25)}}}}
    assert "is **25.0%** (1.0-9.0), before calibration 20.0%" in served_sentence(tiny_federation, grown, "global")


def test_the_table_has_places_then_classes(tiny_federation: Federation) -> None:
    table = served_table(tiny_federation, CALIBRATION, "global")
    assert list(table["Images of"]) == ["All hospitals", "Phantom North (simulated)", "True class glioma"]
    assert table["Sets hold the truth"].iloc[0] == "92.5% (85.0-97.5)"
    assert table["n"].iloc[0] == "40"
    assert table["Error before"].iloc[0] == "20.0%"
    assert table["Refused"].iloc[-1] == "\u2013"


def test_a_local_models_promise_is_its_own_hospitals(tiny_federation: Federation) -> None:
    said = served_caption(tiny_federation, CALIBRATION, LOCAL)
    assert "Phantom North (simulated)'s own 33 validation images" in said
    assert "for that hospital's kind of image alone" in said
    assert "alone" not in served_caption(tiny_federation, CALIBRATION, "global")


def test_the_reliability_drawing_shows_both(tiny_federation: Federation) -> None:
    figure = reliability_figure(cell(0.04), "#2f6cb3")
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["Before calibration", "After"]
    assert list(figure.data[-1].customdata) == [10, 30]


def test_evaluation_shows_the_version_made_from_its_run(
    phantom_run: Path, phantom_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(phantom_run))
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page("pages/3_Evaluation.py").run()
    assert not app.exception
    assert "As served: phantoms v1" in [element.value for element in app.subheader]
    found = read_calibration(current_version(phantom_version, "phantoms"))
    assert found is not None
    coverage = found.measured["sets"]["global"]["all"]["coverage"]
    assert any(f"**{100 * coverage:.1f}%**" in element.value for element in app.markdown)
