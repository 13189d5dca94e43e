"""rounds.jsonl: appended live, read while it is written, cut back by a resume; and the tables made from it."""

import contextlib
import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from engine.errors import RunError
from engine.results.rounds import (
    ALL,
    Epoch,
    Fit,
    RoundLine,
    Validation,
    append_rounds,
    best_round,
    communication,
    drop_rounds_after,
    metric_tables,
    read_rounds,
    training_history,
)
from engine.results.run_folder import find_run


def fit(loss: float = 1.5, n_images: int = 10) -> Fit:
    epochs = (Epoch(loss=loss, accuracy=0.5, seconds=0.1),)
    return Fit(n_images=n_images, loss=loss, accuracy=0.5, epochs=epochs, seconds=2.0, bytes_down=100, bytes_up=90)


def validation(loss: float = 0.8) -> Validation:
    return Validation(n_images=4, loss=loss, accuracy=0.75, macro_f1=0.7, confusion_matrix=((2, 0), (1, 1)))


def line(round_number: int, hospital: str = ALL, model: str = "global", **parts: object) -> RoundLine:
    arm = {"global": "federated", "central": "central"}.get(model, "local")
    return RoundLine.model_validate(
        {"arm": arm, "model": model, "round": round_number, "hospital": hospital, "fit": fit(), **parts}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rounds.jsonl"


def test_lines_are_read_as_they_were_written(path: Path) -> None:
    lines = [line(1, "north"), line(1, validation=validation(), seconds=3.5, is_best_so_far=True)]
    append_rounds(path, lines)
    append_rounds(path, [line(2, "south", failure="no power", fit=None)])
    assert read_rounds(path) == [*lines, line(2, "south", failure="no power", fit=None)]


def test_each_line_is_one_json_object_with_its_schema_version(path: Path) -> None:
    append_rounds(path, [line(1), line(2)])
    rows = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["schema_version"] for row in rows] == [1, 1]


def test_no_file_means_no_rounds_yet(path: Path) -> None:
    assert read_rounds(path) == []


def test_an_empty_file_means_no_rounds_yet(path: Path) -> None:
    path.touch()
    assert read_rounds(path) == []


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_dropped(path: Path, left: int) -> None:
    append_rounds(path, [line(1), line(2)])
    first, second = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(first + second[:left], encoding="utf-8")
    assert read_rounds(path) == [line(1)]


def test_a_last_line_torn_inside_a_letter_is_dropped(path: Path) -> None:
    append_rounds(path, [line(1), line(2, failure="é")])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("é".encode()) + 1])
    assert read_rounds(path) == [line(1)]


def test_a_lone_torn_line_leaves_nothing(path: Path) -> None:
    path.write_text('{"schema_ver', encoding="utf-8")
    assert read_rounds(path) == []


@pytest.mark.parametrize("reason", ["a\u2028b", "a\x85b", "a\nb", "a\x0cb", 'quote " and \\', "हस्पताल"])
def test_any_text_in_a_failure_comes_back(path: Path, reason: str) -> None:
    append_rounds(path, [line(1, "north", failure=reason), line(1)])
    assert [row.failure for row in read_rounds(path)] == [reason, None]


@pytest.mark.parametrize(
    "damage",
    ["", "null", "{}", "{not json}", '{"schema_version": 1, "arm": "federated"}', "\x00\x00"],
    ids=["blank", "null", "empty-object", "no-json", "keys-missing", "zeros"],
)
def test_a_damaged_line_is_named_by_its_number(path: Path, damage: str) -> None:
    append_rounds(path, [line(1)])
    with path.open("a", encoding="utf-8") as stream:
        stream.write(damage + "\n")
    append_rounds(path, [line(2)])
    with pytest.raises(RunError) as caught:
        read_rounds(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"arm": "decentral"}, {"unheard_of": 1}])
def test_a_whole_line_of_another_schema_is_refused(path: Path, change: dict[str, object]) -> None:
    row = json.loads(line(1).model_dump_json()) | change
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"rounds\.jsonl:1: is no line of this schema"):
        read_rounds(path)


def test_bytes_that_are_no_text_are_refused_as_damage(path: Path) -> None:
    append_rounds(path, [line(1)])
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    with pytest.raises(RunError, match="damaged"):
        read_rounds(path)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_never_makes_the_file_unreadable(path: Path, loss: float) -> None:
    append_rounds(path, [line(1)])
    with contextlib.suppress(ValidationError, RunError):  # refusing to write it is as good as reading it back
        append_rounds(path, [line(2, validation=validation(loss))])
    assert read_rounds(path)[0] == line(1)


# --- resume --------------------------------------------------------------------------------------------------------


def test_rounds_that_no_checkpoint_knows_are_dropped_model_by_model(path: Path) -> None:
    lines = [line(n, hospital, model) for model in ("global", "central") for n in (1, 2, 3) for hospital in ("a", ALL)]
    append_rounds(path, [*lines, line(1, ALL, "local/a")])
    drop_rounds_after(path, {"global": 2, "central": 3})
    kept = [(row.model, row.round) for row in read_rounds(path)]
    assert kept == [("global", 1)] * 2 + [("global", 2)] * 2 + [("central", n) for n in (1, 1, 2, 2, 3, 3)]


def test_kept_lines_are_not_changed(path: Path) -> None:
    append_rounds(path, [line(1, "north", validation=validation()), line(1, seconds=1.25, is_best_so_far=True)])
    before = path.read_bytes()
    drop_rounds_after(path, {"global": 5})
    assert path.read_bytes() == before


def test_lines_written_after_a_torn_one_was_dropped_are_whole(path: Path) -> None:
    append_rounds(path, [line(1), line(2)])
    path.write_bytes(path.read_bytes()[:-9])
    drop_rounds_after(path, {"global": 1})
    append_rounds(path, [line(2, seconds=9.0)])
    assert read_rounds(path) == [line(1), line(2, seconds=9.0)]


def test_a_resume_before_the_first_round_leaves_an_empty_file(path: Path) -> None:
    drop_rounds_after(path, {"global": 0})
    assert path.read_bytes() == b""


def test_a_damaged_file_is_left_as_it_was(path: Path) -> None:
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(RunError):
        drop_rounds_after(path, {"global": 1})
    assert path.read_text(encoding="utf-8") == "{}\n"


# --- what follows from the lines -----------------------------------------------------------------------------------

LINES = [
    line(1, "north", validation=validation(0.9)),
    line(1, "south", fit=fit(2.0, 30)),
    line(1, validation=validation(0.85), fit=fit(1.75, 40), is_best_so_far=True),
    line(2, "north", failure="no power", fit=None),
    line(2, "south"),
    line(2, validation=validation(0.5), is_best_so_far=True),
    line(3, "south"),
    line(3, validation=validation(0.6)),
    line(1, "north", "local/north"),
    line(1, ALL, "local/north", validation=validation(), is_best_so_far=True),
]


def test_the_best_round_is_the_last_that_was_best_so_far() -> None:
    assert best_round(LINES, "global") == 2
    assert best_round(LINES, "local/north") == 1


def test_a_model_without_a_best_round_has_none() -> None:
    assert best_round(LINES, "central") is None


def test_the_training_history_is_the_global_models_with_the_reference_systems_keys() -> None:
    assert training_history(LINES) == [
        {"epoch": 1, "train_loss": 1.75, "train_accuracy": 0.5, "val_loss": 0.85, "val_accuracy": 0.75},
        {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.5, "val_loss": 0.5, "val_accuracy": 0.75},
        {"epoch": 3, "train_loss": 1.5, "train_accuracy": 0.5, "val_loss": 0.6, "val_accuracy": 0.75},
    ]


def test_the_metric_tables_hold_the_global_model_alone() -> None:
    tables = metric_tables(LINES)
    assert list(tables) == ["fit_metrics", "eval_metrics", "fit_client_metrics", "eval_client_metrics"]
    assert [row["round"] for row in tables["fit_metrics"]] == [1, 2, 3]
    assert tables["fit_metrics"][0] == {
        "round": 1,
        "num_examples": 40,
        "loss": 1.75,
        "accuracy": 0.5,
        "seconds": 2.0,
    }
    assert tables["eval_metrics"][1] == {
        "round": 2,
        "num_examples": 4,
        "loss": 0.5,
        "accuracy": 0.75,
        "macro_f1": 0.7,
    }


def test_a_hospitals_rows_carry_its_id_and_only_what_it_did() -> None:
    tables = metric_tables(LINES)
    done = [(row["round"], row["client_id"]) for row in tables["fit_client_metrics"]]
    assert done == [(1, "north"), (1, "south"), (2, "south"), (3, "south")]
    assert tables["eval_client_metrics"] == [
        {"round": 1, "client_id": "north", "num_examples": 4, "loss": 0.9, "accuracy": 0.75, "macro_f1": 0.7}
    ]


def test_communication_adds_up_the_federated_hospitals() -> None:
    assert communication(LINES) == {
        "north": {"bytes_down": 100, "bytes_up": 90, "rounds": 1},
        "south": {"bytes_down": 300, "bytes_up": 270, "rounds": 3},
    }


# --- what a real run wrote -----------------------------------------------------------------------------------------


def test_a_run_writes_one_line_per_model_round_and_hospital(phantom_run: Path) -> None:
    written = [(row.model, row.round, row.hospital) for row in find_run(phantom_run, "run-001").rounds()]
    hospitals = ("hospital-a", "hospital-b", "hospital-c")
    assert len(written) == len(set(written))
    for round_number in (1, 2, 3):
        for hospital in (*hospitals, ALL):
            assert ("global", round_number, hospital) in written
        for hospital in hospitals:
            assert (f"local/{hospital}", round_number, ALL) in written
        assert ("central", round_number, ALL) in written


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("fit_metrics", ["round", "num_examples", "loss", "accuracy", "seconds"]),
        ("eval_metrics", ["round", "num_examples", "loss", "accuracy", "macro_f1"]),
        ("fit_client_metrics", ["round", "client_id", "num_examples", "loss", "accuracy", "seconds"]),
        ("eval_client_metrics", ["round", "client_id", "num_examples", "loss", "accuracy", "macro_f1"]),
    ],
)
def test_a_runs_csv_tables_have_these_columns_and_a_row_per_round(
    phantom_run: Path, table: str, columns: list[str]
) -> None:
    frame = pd.read_csv(phantom_run / "run-001" / "metrics" / f"{table}.csv")
    assert list(frame.columns) == columns
    assert len(frame) == (9 if "client" in table else 3)


def test_a_runs_history_agrees_with_its_rounds(phantom_run: Path) -> None:
    run = find_run(phantom_run, "run-001")
    assert run.read_json("training_history.json") == training_history(run.rounds())
    assert len(training_history(run.rounds())) == 3
