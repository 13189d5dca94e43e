"""The repository's own runs and published models: every page lets one choose, and Home leads with what matters."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from engine.results.published import current_version
from engine.results.run_folder import find_run
from engine.results.words import count, percent
from tests.conftest import PROJECT
from tests.test_pages import PAGES, open_page, words
from ui.words import share_text

NAMES = ("Brain MRI", "Chest X-ray", "Skin lesions")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(PROJECT / "artifacts"))
    monkeypatch.setenv("CONSILIUM_MODELS", str(PROJECT / "models"))
    monkeypatch.chdir(PROJECT)


def parameter(app: AppTest, name: str) -> str:
    value = app.query_params[name]  # AppTest gives back a list where a test has set it
    return str(value if isinstance(value, str) else value[0])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_runs_lets_one_choose_the_federation_and_keeps_it_in_the_link(page: str) -> None:
    app = open_page(page, run="run-001")
    assert "Showing run-001" in words(app)
    choice = app.sidebar.selectbox(key="federation_choice")
    assert set(NAMES) <= set(choice.options)
    app = choice.select("Chest X-ray").run()
    assert not app.exception
    assert not app.error
    shown = parameter(app, "run")
    assert find_run(PROJECT / "artifacts", shown).federation.name == "Chest X-ray"
    assert f"Showing {shown}" in words(app)
    assert "taken at one medical centre in Guangzhou" in words(app)


def test_compare_lets_one_choose_the_model_and_keeps_it_in_the_link() -> None:
    app = open_page("4_Compare", model="brain-mri")
    choice = app.sidebar.selectbox(key="model_choice")
    assert set(NAMES) <= set(choice.options)
    app = choice.select("chest-xray").run()
    assert not app.exception
    assert not app.error
    assert parameter(app, "model") == "chest-xray"
    assert "chest radiographs of children" in words(app)
    assert "CC BY 4.0: Kermany et al." in words(app)


def test_home_leads_with_missed_cases_and_false_alarms_of_two_classes_and_with_the_headline_of_more() -> None:
    home = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()
    labels = [metric.label for metric in home.metric]
    assert labels.index("Macro-F1") < labels.index("Sensitivity") < labels.index("Specificity")
    assert labels.count("Hospitals") >= len(NAMES)  # more after make demo
    run = find_run(PROJECT / "artifacts", current_version(PROJECT / "models", "chest-xray").manifest.run)
    scores = run.read_json("evaluation.json")["splits"]["test"]["global"]["all"]
    value = {metric.label: metric.value for metric in home.metric}
    assert value["Sensitivity"] == percent(scores["sensitivity"])
    assert value["Specificity"] == percent(scores["specificity"])
    cases = scores["per_class"]["pneumonia"]["support"]
    others = scores["n_images"] - cases
    said = words(home)
    assert (
        f"The federated model misses **{scores['missed']} of {cases}** pneumonia images, a sensitivity of "
        f"{share_text(cases - scores['missed'], cases)}, and raises **{count(scores['false_alarms'], 'false alarm')}** "
        f"on {others} others, a specificity of {share_text(others - scores['false_alarms'], others)}." in said
    )
    outside = run.read_json("evaluation.json")["splits"]["external"]["global"]["all"]
    sentence = f"it misses **{outside['missed']} of"
    assert sentence in said, "and what becomes of it elsewhere"
    assert sentence in words(open_page("4_Compare", model="chest-xray"))
    assert said.index("misses **") < said.index(f"Macro-F1 of the federated model: {percent(scores['macro_f1'])}")


def test_home_leads_with_balanced_accuracy_where_that_is_the_headline_and_says_the_licence() -> None:
    home = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()
    skin = current_version(PROJECT / "models", "skin")
    recall = json.loads((skin.folder / "model_meta.json").read_text(encoding="utf-8"))["metrics"]["avg_recall"]
    assert ("Balanced accuracy", percent(recall)) in [(metric.label, metric.value) for metric in home.metric]
    for app in (home, open_page("4_Compare", model="skin")):
        assert "CC BY-NC 4.0: non-commercial use only" in words(app)
