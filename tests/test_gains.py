"""Who gains: paired differences by hospital, and a hospital that is left out to test on."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score
from streamlit.testing.v1 import AppTest

from engine.config import Federation, load_federation, networked
from engine.data.federation_data import FederationData, shared_classes
from engine.errors import ConfigError, RunError
from engine.federation.arms import plan_models
from engine.federation.leakage import require_measurable
from engine.options import settings
from engine.results.answers import Answers, read_answers
from engine.results.bootstrap import Estimate
from engine.results.gains import Gain, compare_left_out, gains, left_out_runs, worst_served
from engine.results.run_folder import find_run, list_runs
from engine.results.subgroups import FEWEST_GROUPS
from engine.sections import Source
from tests.conftest import TINY
from ui.gains import elsewhere_text, gains_sentence, gains_table, left_out_command
from ui.run_index import read_entries
from ui.words import points_text, trainers_text

PROJECT = Path(__file__).resolve().parent.parent
PHANTOMS = PROJECT / "federations" / "phantoms.toml"
CLASSES = ("a", "b", "c")
LEFT_OUT = "hospital-c"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def some_answers(n_images: int = 90, **skills: float) -> Answers:
    """Hospitals north, south and west hold a third each; a model is the surer of the truth the higher its skill."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 3, n_images)
    images = pd.DataFrame(
        {
            "hospital": np.repeat(["north", "south", "west"], n_images // 3),
            "path": [f"{number:03d}.png" for number in range(n_images)],
            "label": [CLASSES[label] for label in labels],
            "group": [f"g{number // 2}" for number in range(n_images)],
        }
    )
    logits = {}
    for model, skill in skills.items():
        logits[model.replace("__", "/")] = generator.normal(0, 1, (n_images, 3)) + skill * np.eye(3)[labels]
    return Answers(CLASSES, images, logits)


def macro_f1(answers: Answers, model: str, hospital: str) -> float:
    mine = answers.at(hospital)
    return float(f1_score(mine.labels, mine.logits[model].argmax(axis=1), average="macro"))


def test_a_gain_is_federated_less_alone_on_the_hospitals_own_images() -> None:
    answers = some_answers(**{"global": 2, "local__north": 0.5, "local__south": 2.5, "central": 3})
    found = {one.hospital: one for one in gains(answers, ["south", "north", "west", "nobody"], "macro_f1")}
    assert list(found) == ["south", "north", "west", "all"]
    for hospital in ("south", "north"):
        one = found[hospital]
        ours, alone = (macro_f1(answers, model, hospital) for model in ("global", f"local/{hospital}"))
        assert one.gain is not None
        assert one.gain.value == pytest.approx(ours - alone)
        assert one.gain.low < one.gain.value < one.gain.high
        assert (one.n_images, one.n_groups) == (30, 15)
        assert one.gap is not None
        assert one.gap.value == pytest.approx(ours - macro_f1(answers, "central", hospital))
    assert found["north"].gain is not None
    assert found["north"].gain.low > 0
    assert found["west"].alone is None
    assert found["west"].gain is None
    assert found["all"].federated.value == pytest.approx(macro_f1(answers, "global", "all"))
    worst = worst_served(list(found.values()))
    assert worst is not None
    assert worst.hospital == min(("north", "south", "west"), key=lambda name: macro_f1(answers, "global", name))


def test_a_model_gains_nothing_over_itself_and_the_interval_says_so() -> None:
    answers = some_answers(**{"global": 1})
    answers.logits["local/north"] = answers.logits["global"]
    (north, _) = gains(answers, ["north"], "accuracy")
    assert north.gain == Estimate(0, 0, 0)
    assert north.federated.low < north.federated.value < north.federated.high


def test_without_a_federated_model_nobody_gains() -> None:
    assert gains(some_answers(**{"local__north": 1}), ["north"], "accuracy") == []
    assert worst_served([Gain("north", 3, 3, Estimate(1, 1, 1), None, None, None, None)]) is None


@pytest.mark.parametrize(
    ("n_groups", "said"), [(1, "**0 of 1 hospital** gain"), (FEWEST_GROUPS, "**1 of 1 hospital**")]
)
def test_too_few_groups_are_no_certainty(n_groups: int, said: str, tiny_federation: Federation) -> None:
    sure = Estimate(0.05, 0.05, 0.05)
    one = Gain("hospital-a", 20, n_groups, Estimate(0.9, 0.9, 0.9), Estimate(0.85, 0.85, 0.85), sure, None, None)
    sentence = gains_sentence(tiny_federation, [one, one._replace(hospital="all", gain=None)], "accuracy")
    assert said in sentence
    assert ("for 1 the images do not tell" in sentence) == (n_groups < FEWEST_GROUPS)
    assert list(gains_table(tiny_federation, [one])["Gain, points"]) == ["+5.0"]
    assert points_text(Estimate(0.05, 0.01, 0.09)) == "+5.0 (+1.0 to +9.0)"


def test_what_a_left_out_hospital_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = some_answers(**{"global": 2, "local__west": 1})
    without = some_answers(**{"global": 0.5})
    one = compare_left_out("run-007", "west", without, whole, "accuracy")
    assert one is not None
    west = whole.at("west")
    scores = [
        accuracy_score(west.labels, answers.at("west").logits[model].argmax(axis=1))
        for answers, model in ((without, "global"), (whole, "local/west"), (whole, "global"))
    ]
    assert (one.unseen.value, one.alone and one.alone.value, one.together.value) == pytest.approx(scores)
    assert one.over_alone is not None
    assert one.over_alone.value == pytest.approx(scores[0] - scores[1])
    assert one.taking_part.value == pytest.approx(scores[2] - scores[0])
    other = dataclasses.replace(without, images=without.images.assign(path="another.png"))
    assert compare_left_out("run-007", "west", other, whole, "accuracy") is None


@pytest.fixture(scope="module")
def without_c(tiny_data: FederationData) -> FederationData:
    federation = load_federation(PHANTOMS, [*TINY, 'arms=["federated"]', f"left_out={LEFT_OUT}"])
    return dataclasses.replace(tiny_data, federation=federation)


@pytest.fixture(scope="module")
def two_runs(phantom_run: Path, without_c: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run-001 of all hospitals, run-002 without hospital-c."""
    from engine.federation.training_run import start_run, train_run

    artifacts = tmp_path_factory.mktemp("left-out")
    shutil.copytree(phantom_run / "run-001", artifacts / "run-001")
    train_run(start_run(without_c, "federations/phantoms.toml", artifacts), without_c)
    return artifacts


def test_a_hospital_left_out_trains_nothing_and_chooses_nothing(two_runs: Path, without_c: FederationData) -> None:
    all_arms = load_federation(PHANTOMS, [*TINY, f"left_out={LEFT_OUT}"])
    plans = plan_models(dataclasses.replace(without_c, federation=all_arms))
    assert [plan.model for plan in plans] == ["global", "local/hospital-a", "local/hospital-b", "central"]
    for plan in plans:
        assert LEFT_OUT not in {*plan.training_sets, *plan.validation_sets}
    assert plans[-1].sizes["pooled"] == sum(plans[0].sizes.values())
    run = find_run(two_runs, "run-002")
    assert LEFT_OUT not in {line.hospital for line in run.rounds()}
    dealt = run.read_json("dataset_splits.json")["images"]
    assert {row.get("labelled", True) for row in dealt if row["hospital"] == LEFT_OUT and row["split"] == "train"} == {
        False
    }
    without_b = without_c.federation.model_copy(update={"left_out": "hospital-b"})  # c has no image without a tumour
    assert "notumor" not in shared_classes(dataclasses.replace(without_c, federation=without_b))
    assert "notumor" in shared_classes(without_c)
    assert run.federation.display_name(LEFT_OUT).endswith(", left out (simulated)")


def test_weights_that_saw_the_hospital_left_out_are_no_start(two_runs: Path, without_c: FederationData) -> None:
    from engine.federation.training_run import check_start

    def starting_from(name: str, **update: str) -> FederationData:
        model = without_c.federation.model.model_copy(update={"weights": name})
        federation = without_c.federation.model_copy(update={"model": model, **update})
        return dataclasses.replace(without_c, federation=federation)

    with pytest.raises(ConfigError, match=r"start from weights that never saw hospital-c, which is left out$"):
        check_start(starting_from("run-001"), two_runs)
    check_start(starting_from("run-002"), two_runs)
    with pytest.raises(ConfigError, match="start from weights that never saw hospital-b"):
        check_start(starting_from("run-002", left_out="hospital-b"), two_runs)


def test_weights_are_asked_for_whom_their_own_start_saw(
    two_runs: Path, without_c: FederationData, tmp_path: Path
) -> None:
    from engine.federation.training_run import _require_unseen

    for name in ("run-001", "run-002"):
        shutil.copytree(two_runs / name, tmp_path / name)
    file = tmp_path / "run-002" / "config.json"
    config = json.loads(file.read_text())
    config["federation"]["model"]["weights"] = "run-001"
    file.write_text(json.dumps(config))
    model = without_c.federation.model.model_copy(update={"weights": "run-002"})
    data = dataclasses.replace(without_c, federation=without_c.federation.model_copy(update={"model": model}))
    with pytest.raises(ConfigError, match="never saw hospital-c"):
        _require_unseen(data, tmp_path)


def test_it_is_tested_on_the_very_images_of_the_run_that_it_was_in(two_runs: Path) -> None:
    whole, without = (find_run(two_runs, name) for name in ("run-001", "run-002"))
    assert [one.name for one in left_out_runs(whole, list_runs(two_runs))] == ["run-002"]
    assert left_out_runs(without, list_runs(two_runs)) == []
    one = compare_left_out("run-002", LEFT_OUT, read_answers(without, "test"), read_answers(whole, "test"), "accuracy")
    assert one is not None
    cells = [run.read_json("evaluation.json")["splits"]["test"] for run in (without, whole)]
    assert one.unseen.value == cells[0]["global"][LEFT_OUT]["accuracy"]
    assert one.together.value == cells[1]["global"][LEFT_OUT]["accuracy"]
    assert one.alone is not None
    assert one.alone.value == cells[1][f"local/{LEFT_OUT}"][LEFT_OUT]["accuracy"]


def test_other_settings_are_no_such_run(two_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_runs / "run-001", tmp_path / "run-001")
    shutil.copytree(two_runs / "run-002", tmp_path / "run-002")
    file = tmp_path / "run-002" / "config.json"
    config = json.loads(file.read_text())
    config["federation"]["training"]["seed"] = 9
    file.write_text(json.dumps(config))
    assert left_out_runs(find_run(tmp_path, "run-001"), list_runs(tmp_path)) == []


def test_threads_and_subgroups_make_no_other_run(two_runs: Path, tmp_path: Path) -> None:
    for name in ("run-001", "run-002"):
        shutil.copytree(two_runs / name, tmp_path / name)
    file = tmp_path / "run-001" / "config.json"
    config = json.loads(file.read_text())
    config["federation"]["training"]["threads"] = 3
    file.write_text(json.dumps(config))
    assert [one.name for one in left_out_runs(find_run(tmp_path, "run-001"), list_runs(tmp_path))] == ["run-002"]


def test_whom_a_run_trained_is_said(two_runs: Path, without_c: FederationData, tiny_federation: Federation) -> None:
    assert {entry.name: entry.left_out for entry in read_entries(two_runs)} == {"run-001": None, "run-002": LEFT_OUT}
    assert trainers_text(tiny_federation) == "all hospitals"
    assert trainers_text(without_c.federation) == "the 2 hospitals that train"
    found = gains(read_answers(find_run(two_runs, "run-001"), "test"), ["hospital-a"], "accuracy")
    assert "pooling the images of the 2 hospitals that train" in gains_sentence(without_c.federation, found, "accuracy")


def test_patients_at_two_hospitals_are_known_of_a_source_alone(tiny_federation: Federation) -> None:
    assert "is not known" in elsewhere_text(tiny_federation, patients_known=True)
    pooled = tiny_federation.model_copy(update={"source": Source(folder="train")})
    assert "is not known" in elsewhere_text(pooled, patients_known=False)
    assert "on one side of the split at both" in elsewhere_text(pooled, patients_known=True)


def test_the_offered_command_trains_the_like_of_the_run(two_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_runs / "run-001", tmp_path / "run-001")
    file = tmp_path / "run-001" / "config.json"
    config = json.loads(file.read_text()) | {"changes": [*TINY, 'arms=["federated","local"]']}
    file.write_text(json.dumps(config))
    command = left_out_command(find_run(tmp_path, "run-001"))
    assert command is not None
    words = shlex.split(command)
    assert words[words.index("--artifacts") + 1] == str(tmp_path)
    given = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert given == list(TINY)
    trained = load_federation(PHANTOMS, settings(given, "federated", without="hospital-a"))
    whole = find_run(tmp_path, "run-001").federation
    assert trained.left_out == "hospital-a"
    assert trained.model_copy(update={"left_out": None, "arms": whole.arms}) == whole
    started = {**config["federation"], "model": {**config["federation"]["model"], "weights": "run-001"}}
    file.write_text(json.dumps(config | {"federation": started}))
    assert left_out_command(find_run(tmp_path, "run-001")) is None
    config["federation"]["aggregation"] = {"strategy": "fedper"}
    file.write_text(json.dumps(config))
    assert left_out_command(find_run(tmp_path, "run-001")) is None


def test_such_a_run_is_not_published_nor_measured(two_runs: Path, without_c: FederationData, tmp_path: Path) -> None:
    from engine.publishing.publish import publish_run

    run = find_run(two_runs, "run-002")
    with pytest.raises(RunError, match=r"left hospital-c out, to test on it; publish a run of all hospitals$"):
        publish_run(run, "phantoms", without_c, tmp_path)
    with pytest.raises(RunError, match="measure a run of all hospitals"):
        require_measurable(run)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["left_out=nobody"], r"left_out: 'nobody' is no hospital's id; there is hospital-a, hospital-b, hospital-c$"),
        ([f"left_out={LEFT_OUT}", "aggregation.strategy=fedper"], "so there is no model for one that never trained"),
        ([f"left_out={LEFT_OUT}", "pretext.objective=simclr"], "learns without labels; take one away"),
        ([f"left_out={LEFT_OUT}", "training.min_hospitals=3"], "min_hospitals is 3, but there are 2 hospitals"),
        ([f"left_out={LEFT_OUT}", "aggregation.strategy=trimmed-mean"], "in a round; there are 2$"),
    ],
)
def test_what_cannot_be_left_out_is_said(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_federation(PHANTOMS, settings)


def test_over_a_network_nobody_is_left_out(tiny_federation: Federation) -> None:
    with pytest.raises(ConfigError, match="a hospital is left out by not starting it"):
        networked(tiny_federation.model_copy(update={"left_out": LEFT_OUT}))


def test_the_page_says_who_gains_and_what_a_left_out_hospital_gets(
    two_runs: Path, open_evaluation: Callable[..., AppTest]
) -> None:
    app = open_evaluation("Who gains", two_runs, run="run-001")
    said = "\n".join(element.value for element in app.markdown)
    whole = read_answers(find_run(two_runs, "run-001"), "test")
    found = gains(whole, [f"hospital-{letter}" for letter in "abc"], "macro_f1")
    better = sum(one.gain.low > 0 for one in found if one.gain)
    assert f"**{better} of 3 hospitals** gain" in said
    table = app.table[0].value
    assert list(table["On images of"])[-1] == "All hospitals"
    for one, text in zip(found[:3], table["Gain, points"], strict=False):
        assert one.gain is not None
        assert text == points_text(one.gain)
        assert text.startswith(f"{100 * one.gain.value:+.1f}")
    assert "A model that never saw **Phantom Valley (simulated)**" in said
    assert list(app.table[1].value["Run"]) == ["run-002"]
    assert any("left out is not known" in element.value for element in app.caption)
    app = open_evaluation("Who gains", two_runs, run="run-002")
    assert any("This run is such a one" in element.value for element in app.markdown)


def test_without_such_a_run_the_page_says_how_to_make_one(
    phantom_run: Path, open_evaluation: Callable[..., AppTest]
) -> None:
    app = open_evaluation("Who gains", phantom_run)
    assert "train federations/phantoms.toml --without hospital-a --arms federated" in app.code[0].value
