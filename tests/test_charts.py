"""The pure parts of the dashboard: names, colours, figures, tables, estimates."""

import json
import re

import pandas as pd
import pytest

from engine.config import Federation
from engine.data.audit import Audit, Finding, HospitalCounts
from engine.results.rounds import Fit, RoundLine, Validation
from engine.results.run_folder import Progress
from engine.results.words import percent
from engine.sections import Hospital, Location
from ui.class_mix import class_mix_figure
from ui.curves import best_rows, hospital_curves, model_curves, value_floor
from ui.findings import caveats, findings_for, holdings_sentence
from ui.live import describe, seconds_left
from ui.loaders import rounds_table, split_counts
from ui.map import LARGEST_PX, SMALLEST_PX, hospital_map, radius_px
from ui.matrices import answer_sentence, confusion_figure, matrix_caption, score_matrix
from ui.palette import hospital_colour, model_colour, model_order
from ui.run_index import RunEntry
from ui.selection import default_entry
from ui.skew import divergence_figure, skew_sentence
from ui.tables import (
    class_mix_table,
    difference_table,
    hospital_rows,
    matching,
    per_class_table,
    runs_table,
    scores_sentence,
    scores_table,
    settings,
    when,
)
from ui.words import score_text

NORTH = Hospital(id="north", name="North", folder="n", location=Location(place="Oslo", latitude=59.9, longitude=10.7))
SOUTH = Hospital(id="south", name="South `${1}` <b>", folder="s", specialty="oncology")


@pytest.fixture
def federation() -> Federation:
    return Federation(
        name="Two",
        data="two",
        classes=("a", "b"),
        intended_input="slices",
        simulated="Not real.",
        hospital=(NORTH, SOUTH),
    )


def line(
    model: str, number: int, hospital: str, f1: float, *, best: bool = False, seconds: float | None = None
) -> RoundLine:
    arm = {"global": "federated", "central": "central"}.get(model, "local")
    fit = Fit(n_images=8, loss=1, accuracy=0.5, epochs=(), seconds=1, bytes_down=10, bytes_up=20)
    seen = Validation(n_images=4, loss=1 - f1, accuracy=f1, macro_f1=f1, confusion_matrix=((2, 0), (0, 2)))
    return RoundLine(
        arm=arm, model=model, round=number, hospital=hospital, fit=fit, validation=seen, seconds=seconds,
        is_best_so_far=best,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def rounds() -> pd.DataFrame:
    lines = []
    for number, f1 in ((1, 0.2), (2, 0.6), (3, 0.5)):
        lines += [line("global", number, "north", f1 + 0.1), line("global", number, "south", f1 - 0.1)]
        lines.append(line("global", number, "all", f1, best=number < 3, seconds=2))
        lines.append(line("central", number, "all", f1 + 0.2, best=number < 3, seconds=2))
    return rounds_table(lines)


def metrics(score: float, n_images: int = 10) -> dict[str, object]:
    return {"macro_f1": score, "accuracy": score, "balanced_accuracy": score, "ece": 1 - score, "n_images": n_images}


CELLS = {
    "central": {"all": metrics(0.9), "north": metrics(0.9, 6), "south": metrics(0.9, 4)},
    "local/south": {"all": metrics(0.5), "north": metrics(0.3, 6), "south": metrics(0.95, 4)},
    "local/north": {"all": metrics(0.6), "north": metrics(0.8, 6), "south": metrics(0.4, 4)},
    "global": {"all": metrics(0.8), "north": metrics(0.8, 6), "south": metrics(0.8, 4)},
}


def test_names_and_colours(federation: Federation) -> None:
    assert federation.model_name("global") == "Federated"
    assert federation.model_name("central") == "Pooled, for reference"
    assert federation.model_name("local/north") == "North (simulated)"
    assert model_colour(federation, "local/south") == hospital_colour(federation, "south") == "#56b4e9"
    colours = [model_colour(federation, model) for model in ("global", "central", "local/north", "local/south")]
    assert len(set(colours)) == 4
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in [*colours, hospital_colour(federation, "unknown")])
    assert model_order(federation, list(CELLS)) == ["global", "local/north", "local/south", "central"]


def test_model_curves_mark_the_chosen_round_and_shade_the_gap(federation: Federation, rounds: pd.DataFrame) -> None:
    assert {model: row["round"] for model, row in best_rows(rounds).items()} == {"global": 2, "central": 2}
    figure = model_curves(rounds, federation, "macro_f1")
    federated = next(trace for trace in figure.data if trace.name == "Federated")
    assert list(federated.y) == [0.2, 0.6, 0.5]
    for part in ("Round", "Federated", "n =", "Macro-F1"):
        assert part in federated.hovertemplate
    stars = [trace for trace in figure.data if trace.marker.symbol == "star"]
    assert [list(star.x) for star in stars] == [[2], [2]]
    assert sum(star.showlegend for star in stars) == 1
    assert [trace.name for trace in figure.data if trace.fill == "tonexty"] == ["Gap, federated to pooled"]


def test_curves_without_the_pooled_arm_shade_nothing(federation: Federation, rounds: pd.DataFrame) -> None:
    figure = model_curves(rounds[rounds["model"] == "global"], federation, "loss")
    assert all(trace.fill is None for trace in figure.data)
    assert figure.layout.yaxis.range[0] == 0


def test_hospital_curves_show_every_hospital(federation: Federation, rounds: pd.DataFrame) -> None:
    names = {trace.name for trace in hospital_curves(rounds, federation, "accuracy").data}
    assert {"All hospitals", "North (simulated)"} < names


def test_rounds_of_a_run_that_has_just_begun_draw_an_empty_figure(federation: Federation) -> None:
    empty = rounds_table([])
    assert len(model_curves(empty, federation, "macro_f1").data) == 0
    assert (
        len(rounds_table([RoundLine(arm="federated", model="global", round=1, hospital="north", failure="late")])) == 1
    )


def test_the_floor_is_zero_or_one_half_and_the_axis_says_so(federation: Federation, rounds: pd.DataFrame) -> None:
    assert value_floor(pd.Series([0.3, 0.9]), "accuracy") == 0
    assert value_floor(pd.Series([0.7, 0.9]), "accuracy") == 0.5
    assert value_floor(pd.Series([0.7]), "loss") == 0
    high = rounds.assign(accuracy=rounds["accuracy"] / 10 + 0.8)
    assert "from 50%" in model_curves(high, federation, "accuracy").layout.yaxis.title.text


def test_score_matrix_is_federated_first_with_n_in_every_column(federation: Federation) -> None:
    figure = score_matrix(CELLS, federation, "macro_f1")
    heat = figure.data[0]
    assert heat.y[0] == "Federated"
    assert [column.rsplit("<br>", 1)[1] for column in heat.x] == ["n = 10", "n = 6", "n = 4"]
    assert heat.z[0][0] == 0.8
    bold = {cell for trace in figure.data[1:] for cell in trace.text if cell.startswith("<b>")}
    assert bold == {"<b>90.0%</b>", "<b>95.0%</b>"}


def test_score_matrix_bolds_the_lowest_calibration_error(federation: Federation) -> None:
    figure = score_matrix(CELLS, federation, "ece", dark=True)
    assert figure.data[0].reversescale
    assert {cell for trace in figure.data[1:] for cell in trace.text if cell.startswith("<b>")} == {
        "<b>10.0%</b>", "<b>5.0%</b>",
    }  # fmt: skip


def test_score_matrix_leaves_a_hospital_without_images_empty(federation: Federation) -> None:
    cells = {"global": CELLS["global"], "central": {"all": metrics(0.9)}}
    texts = [cell for trace in score_matrix(cells, federation, "accuracy").data[1:] for cell in trace.text]
    assert sorted(texts) == ["", "", "80.0%", "<b>80.0%</b>", "<b>80.0%</b>", "<b>90.0%</b>"]


def test_answer_sentence(federation: Federation) -> None:
    sentence = answer_sentence(CELLS, federation, "accuracy", "test")
    assert "On all 10 test images" in sentence
    assert "federated model reaches **80.0%**" in sentence
    assert "best of 2 hospitals alone (North (simulated)) 60.0%" in sentence
    assert "pooling all images 90.0%" in sentence
    assert "lower is better" in answer_sentence(CELLS, federation, "ece", "test")
    assert answer_sentence({}, federation, "ece", "test") == "This run has no test images."


def test_scores_carry_their_interval_and_two_classes_lead_with_what_was_missed() -> None:
    cell = {**metrics(0.8), "intervals": {"accuracy": [0.712, 0.868]}}
    assert score_text(cell, "accuracy") == "80.0% (71.2-86.8)"
    assert score_text(cell, "ece") == percent(cell["ece"])
    two = {**cell, "missed": 3, "false_alarms": 1, "sensitivity": 0.9, "specificity": 0.75}
    assert scores_sentence(two).startswith("3 missed cases and 1 false alarm: sensitivity 90.0%, specificity 75.0%.")
    assert "missed" not in scores_sentence(cell)


def test_caveats_name_unknown_patients_and_the_class_of_one_hospital() -> None:
    findings = [
        Finding(severity="warning", kind=kind, hospital=None, sentence=f"{kind} it is")
        for kind in ("duplicates", "one-hospital-class", "patients-unknown")
    ]
    audit = Audit(federation="x", hospitals={}, findings=tuple(findings))
    assert caveats(audit, {"macro_f1_shared": 0.9, "intervals": {}}, ["a", "b"]) == [
        "One-hospital-class it is. Over the classes that several hospitals hold (a and b), macro-F1 is 90.0%.",
        "Patients-unknown it is.",
    ]
    assert caveats(audit.model_copy(update={"findings": ()}), {"macro_f1_shared": 0.9}, ["a"]) == []


def test_confusion_is_coloured_by_row_and_says_counts() -> None:
    figure = confusion_figure([[3, 1], [0, 0]], ["a", "b"])
    heat = figure.data[0]
    assert list(heat.z[0]) == [0.75, 0.25]
    assert pd.isna(heat.z[1]).all()
    assert sorted(cell for trace in figure.data[1:] for cell in trace.text) == ["", "", "1", "3"]
    assert heat.y[1] == "b<br>n = 0"


def test_a_class_without_images_has_a_dash() -> None:
    scores = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    table = per_class_table(
        {
            "per_class": {
                "a": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1200},
                "b": {**scores, "support": 0},
            },
            "auc": {"a": 0.91234, "b": None},
        }
    )
    assert table.to_numpy().tolist() == [
        ["a", "50.0%", "100.0%", "66.7%", "0.912", "1,200"],
        ["b", "\u2013", "\u2013", "\u2013", "\u2013", "0"],
    ]


@pytest.fixture
def splits() -> pd.DataFrame:
    images = [("north", "a", "train")] * 3 + [("north", "b", "test")] + [("south", "a", "validation")] * 2
    return split_counts([{"hospital": h, "label": label, "split": split} for h, label, split in images])


def test_split_counts_and_class_mix(federation: Federation, splits: pd.DataFrame) -> None:
    hospitals = hospital_rows(splits, federation)
    assert hospitals[["Train", "Validation", "Test", "Images"]].to_numpy().tolist() == [[3, 0, 1, 4], [0, 2, 0, 2]]
    assert list(hospitals["About"]) == ["Oslo.", "Place not given; oncology."]
    mix = class_mix_table(splits, federation, "north")
    assert mix.to_numpy().tolist() == [["a", 3, 0.75, 5, 5 / 6], ["b", 1, 0.25, 1, 1 / 6]]
    bars = class_mix_figure(mix, "North (simulated)", "#123456").data
    assert [bar.name for bar in bars] == ["North (simulated)", "All hospitals"]
    sentence = holdings_sentence(federation, hospitals, splits)
    assert sentence.startswith("**2 hospitals with 6 images**: 3 to train, 2 to validate, 1 to test.")
    assert sentence.endswith("holds no b.")


def test_findings_of_a_hospital_and_of_all() -> None:
    own = Finding(severity="warning", kind="duplicates", hospital="north", sentence="copies")
    shared = Finding(severity="warning", kind="shared-images", hospital=None, sentence="shared")
    audit = Audit(federation="Two", hospitals={}, findings=(own, shared))
    assert findings_for(audit, "north") == ([own], [shared])
    assert findings_for(audit, "south") == ([], [shared])


def test_the_map_needs_nothing_from_elsewhere_and_escapes_names(federation: Federation) -> None:
    south = SOUTH.model_copy(update={"location": NORTH.location})
    drawn = hospital_map(federation.model_copy(update={"hospital": (NORTH, south)}), {"north": 4, "south": 2})
    assert drawn is not None
    links = [url for _, url in [*drawn.default_js, *drawn.default_css]]
    assert links
    assert all(url.startswith("data:") for url in links)
    page = drawn.get_root().render()
    assert "South &#96;&#36;{1}&#96; &lt;b&gt; (simulated)" in page
    assert "`${1}`" not in page


def test_no_place_no_map(federation: Federation) -> None:
    assert hospital_map(federation.model_copy(update={"hospital": (SOUTH,)}), {"south": 2}) is None


def test_circles_grow_by_area() -> None:
    assert radius_px(100, 100) == LARGEST_PX
    assert radius_px(25, 100) == LARGEST_PX / 2
    assert radius_px(0, 100) == radius_px(0, 0) == SMALLEST_PX


def progress(**changes: object) -> Progress:
    values = {
        "model": "global", "round": 2, "rounds": 5, "hospital": "north", "images_done": 300, "images_total": 900,
        "images_at_start": 200, "started_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:01:00+00:00",
    }  # fmt: skip
    return Progress.model_validate({**values, **changes})


def test_the_estimate_counts_from_the_resume_and_waits_until_it_can_tell() -> None:
    assert seconds_left(progress()) == 60 * 600 / 100
    assert seconds_left(progress(images_done=200)) is None
    assert seconds_left(progress(updated_at="2026-01-01T00:00:05+00:00")) is None
    assert seconds_left(progress(images_done=900)) == 0


def test_what_happens_now_in_words(federation: Federation) -> None:
    assert describe(progress(), federation) == "Round 2 of 5 of the federated model: North (simulated) trains"
    assert describe(progress(model="local/north"), federation) == "Round 2 of 5 of North (simulated) alone"
    assert "pooled" in describe(progress(model="central", hospital="pooled"), federation)


def test_the_runs_table_filters_by_every_word() -> None:
    entries = [
        RunEntry("run-002", "", "Two", "damaged", "manifest.json: cannot be read"),
        RunEntry("run-001", "", "Two", "finished", "", "2026-01-02T03:04:05+00:00", "", ("federated",), 5),
    ]
    table = runs_table(entries, {"run-001": "two v1"}, {})
    assert list(matching(table, "two finished", {})["Run"]) == ["run-001"]
    assert list(matching(table, "cannot be", {})["Run"]) == ["run-002"]
    assert list(matching(table, "", {})["Run"]) == ["run-002", "run-001"]
    assert len(matching(table, "nothing like it", {})) == 0
    assert "What is wrong" not in runs_table(entries[1:], {}, {})
    assert default_entry(entries).name == "run-001"
    assert when("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04 UTC"


def test_two_runs_side_by_side(federation: Federation) -> None:
    other = federation.model_copy(update={"training": federation.training.model_copy(update={"rounds": 7})})
    table = difference_table({"run-001": federation, "run-002": other})
    assert table.to_numpy().tolist() == [["training.rounds", "20", "7"]]
    assert settings(federation)["hospital.north.location.place"] == "Oslo"
    runs = {"run-001": (federation, CELLS), "run-002": (other, {"global": CELLS["global"]})}
    scores = scores_table(runs, "macro_f1")
    assert scores["Model"].iloc[0] == "Federated"
    assert scores.iloc[-1].tolist() == ["Pooled, for reference", "90.0%", "\u2013"]


def test_figures_are_plain_json(federation: Federation, rounds: pd.DataFrame) -> None:
    for figure in (model_curves(rounds, federation, "loss"), score_matrix(CELLS, federation, "ece")):
        json.loads(figure.to_json())


def test_of_two_classes_missed_cases_and_false_alarms_lead(federation: Federation) -> None:
    two = federation.model_copy(update={"classes": ("normal", "pneumonia"), "positive": None})
    cell = {
        "n_images": 50, "macro_f1": 0.9, "sensitivity": 0.95, "specificity": 0.8, "missed": 1, "false_alarms": 6,
        "per_class": {"normal": {"support": 30}, "pneumonia": {"support": 20}},
    }  # fmt: skip
    sentence = answer_sentence({"global": {"all": cell}}, two, "macro_f1", "test")
    assert sentence.startswith(
        "Federated misses **1 of 20** pneumonia images, a sensitivity of 95.0% (76.4-99.1), and raises **6 false "
        "alarms** on 30 others, a specificity of 80.0% (62.7-90.5). On all 50 test images, by Macro-F1: "
    )
    assert "Wilson's" in matrix_caption({"global": {"all": cell}}, "test")
    assert "Wilson's" not in matrix_caption(CELLS, "test")


def test_hospitals_at_one_place_share_one_label(federation: Federation) -> None:
    south = federation.hospital[1].model_copy(update={"location": federation.hospital[0].location})
    together = federation.model_copy(update={"hospital": (federation.hospital[0], south)})
    drawn = hospital_map(together, {"north": 3, "south": 4})
    assert drawn is not None
    page = drawn.get_root().render()
    assert len(re.findall(r"nowrap[^0-9]+(?:u003[eE])?1, 2", page)) == 1
    assert page.count("L.circleMarker(") == 2


def an_audit(north: tuple[int, int], south: tuple[int, int]) -> Audit:
    hospitals = {
        hospital: HospitalCounts(
            n_images=sum(held), class_counts=dict(zip("ab", held, strict=True)), unreadable=0, exact_duplicates=0
        )
        for hospital, held in (("north", north), ("south", south))
    }
    return Audit(federation="Two", hospitals=hospitals, findings=())


@pytest.mark.parametrize(
    ("north", "south", "said"),
    [
        ((10, 10), (30, 30), "**hardly differ** between hospitals: Jensen-Shannon divergence 0.00 on average"),
        (
            (10, 10),
            (16, 4),
            "**differ somewhat** between hospitals (non-IID): Jensen-Shannon divergence 0.07 on average",
        ),
        (
            (10, 0),
            (0, 30),
            "**differ strongly** between hospitals (non-IID): Jensen-Shannon divergence 1.00 on average",
        ),
    ],
)
def test_skew_is_said_with_its_number(
    federation: Federation, north: tuple[int, int], south: tuple[int, int], said: str
) -> None:
    assert said in skew_sentence(an_audit(north, south), federation)


def test_an_empty_hospital_has_no_divergence(federation: Federation) -> None:
    audit = an_audit((10, 5), (0, 0))
    assert skew_sentence(audit, federation) == ""
    (bars,) = divergence_figure(audit, federation).data
    assert (list(bars.x), list(bars.y)) == ([0.0], ["North (simulated)"])
