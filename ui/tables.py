"""Tables that pages show, as data frames of text. Pure."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from engine.config import Federation
from engine.results.run_folder import FileEntry
from engine.results.words import count, percent
from ui.palette import model_order
from ui.run_index import RunEntry
from ui.words import DASH, format_bytes, score_text

MACRO_F1 = "Federated macro-F1"
# By the URL's word: what a reader chooses, the column, and whether it falls; no column is the order of run numbers.
ORDERS: dict[str, tuple[str, str | None, bool]] = {
    "newest": ("Newest first", None, True),
    "oldest": ("Oldest first", None, False),
    "best": ("Best macro-F1 first", MACRO_F1, True),
    "federation": ("By federation", "Federation", False),
    "state": ("By state", "State", False),
    "published": ("Published first", "Published as", False),  # a dash comes after every letter
}


def per_class_table(cell: dict[str, Any]) -> pd.DataFrame:
    """Precision, recall, F1 and AUC by class; a class without images has no score, so a dash stands there."""
    rows = []
    for label, values in cell["per_class"].items():
        scores = [percent(values[key]) if values["support"] else DASH for key in ("precision", "recall", "f1")]
        area = cell.get("auc", {}).get(label)
        rows.append([label, *scores, DASH if area is None else f"{area:.3f}", f"{values['support']:,}"])
    return pd.DataFrame(rows, columns=["Class", "Precision", "Recall", "F1", "AUC", "n"])


def scores_sentence(values: dict[str, Any]) -> str:
    """All scores of one cell with its n, and what the two less known ones mean."""
    lead = ""
    if values.get("sensitivity") is not None and values.get("specificity") is not None:
        lead = (
            f"{count(values['missed'], 'missed case')} and {count(values['false_alarms'], 'false alarm')}: "
            f"sensitivity {percent(values['sensitivity'])}, specificity {percent(values['specificity'])}. "
        )
    return lead + (
        f"Macro-F1 {score_text(values, 'macro_f1')}, balanced accuracy {score_text(values, 'balanced_accuracy')}, "
        f"accuracy {score_text(values, 'accuracy')}, calibration error {score_text(values, 'ece')} (mean gap between "
        f"how sure the model is and how often it is right); n = {values['n_images']:,}. In brackets: 95% intervals. "
        "A class without images has no score."
    )


def class_mix_table(splits: pd.DataFrame, federation: Federation, hospital: str) -> pd.DataFrame:
    """Counts by class at one hospital and in the whole federation, with shares."""
    totals = splits.assign(n=splits[["train", "validation", "test"]].sum(axis=1))
    mine = totals[totals["hospital"] == hospital].groupby("label")["n"].sum()
    whole = totals.groupby("label")["n"].sum()
    rows = []
    for label in federation.classes:
        here, everywhere = int(mine.get(label, 0)), int(whole.get(label, 0))
        rows.append([label, here, _share(here, mine.sum()), everywhere, _share(everywhere, whole.sum())])
    return pd.DataFrame(rows, columns=["label", "n_here", "share_here", "n_all", "share_all"])


def hospital_rows(splits: pd.DataFrame, federation: Federation) -> pd.DataFrame:
    """One row per hospital: number on the map, display name, place and specialty, images by split."""
    sums = splits.groupby("hospital")[["train", "validation", "test"]].sum()
    rows = []
    for number, hospital in enumerate(federation.hospital, start=1):
        counts = [int(sums[split].get(hospital.id, 0)) for split in sums.columns]
        place = hospital.location.place if hospital.location else "place not given"
        about = "; ".join(part for part in (place, hospital.specialty) if part)
        name = federation.display_name(hospital.id)
        rows.append([hospital.id, number, name, f"{about[0].upper()}{about[1:]}.", *counts, sum(counts)])
    columns = ["id", "No.", "Hospital", "About", "Train", "Validation", "Test", "Images"]
    return pd.DataFrame(rows, columns=columns)


def runs_table(entries: Sequence[RunEntry], published: dict[str, str], tags: dict[str, str]) -> pd.DataFrame:
    """All runs, numbers as numbers so that they sort; `published` and `tags` by a run's name."""
    rows = [
        [
            entry.name,
            entry.state,
            entry.problem or DASH,
            entry.federation,
            tags.get(entry.name, DASH),
            published.get(entry.name, DASH),
            None if entry.macro_f1 is None else 100 * entry.macro_f1,
            entry.n_test,
            ", ".join(entry.arms) or DASH,
            entry.rounds or None,
            when(entry.started_at),
        ]
        for entry in entries
    ]
    columns = ["Run", "State", "What is wrong", "Federation", "Tags", "Published as", MACRO_F1, "Test images", "Arms"]
    table = pd.DataFrame(rows, columns=[*columns, "Rounds", "Started"])
    table = table.astype({MACRO_F1: "Float64", "Test images": "Int64", "Rounds": "Int64"})
    return table if any(entry.problem for entry in entries) else table.drop(columns="What is wrong")


def matching(table: pd.DataFrame, text: str, notes: dict[str, str]) -> pd.DataFrame:
    """Rows that hold every word of `text` somewhere, in what is shown or in the run's note."""
    words = text.lower().split()
    if not words:
        return table
    rows = [" ".join(map(str, row)).lower() for row in table.itertuples(index=False)]
    said = [f"{row} {notes.get(run, '').lower()}" for row, run in zip(rows, table["Run"], strict=True)]
    return table[[all(word in one for word in words) for one in said]]


def in_order(table: pd.DataFrame, order: str) -> pd.DataFrame:
    """The newest first within what counts as equal; a run without a score comes last."""
    _, column, falling = ORDERS[order]
    if column is None:
        return table if falling else table[::-1]
    return table.sort_values(column, ascending=not falling, kind="stable", na_position="last")


def settings(federation: Federation) -> dict[str, str]:
    """Every setting under its dotted name, hospitals by their id."""
    plain = federation.model_dump(mode="json")
    plain["hospital"] = {hospital["id"]: hospital for hospital in plain["hospital"]}
    return dict(_flatten(plain))


def settings_table(federation: Federation) -> pd.DataFrame:
    return pd.DataFrame(settings(federation).items(), columns=["Setting", "Value"])


def difference_table(federations: dict[str, Federation]) -> pd.DataFrame:
    """Only the settings in which runs differ, one column for each run."""
    by_run = {name: settings(federation) for name, federation in federations.items()}
    keys = dict.fromkeys(key for one in by_run.values() for key in one)
    rows = [[key, *(one.get(key, DASH) for one in by_run.values())] for key in keys]
    return pd.DataFrame([row for row in rows if len(set(row[1:])) > 1], columns=["Setting", *by_run])


def scores_table(runs: dict[str, tuple[Federation, dict[str, Any]]], metric: str) -> pd.DataFrame:
    """One score of every model of several runs on all test images of its own run, with its interval."""
    models = list(dict.fromkeys(model for _, cells in runs.values() for model in cells))
    first = next(iter(runs.values()))[0]
    rows = [
        [first.model_name(model), *(cell_score(cells.get(model, {}).get("all"), metric) for _, cells in runs.values())]
        for model in model_order(first, models)
    ]
    counts = [next((one["all"]["n_images"] for one in cells.values() if "all" in one), 0) for _, cells in runs.values()]
    return pd.DataFrame(rows, columns=["Model", *(f"{run}, n = {n:,}" for run, n in zip(runs, counts, strict=True))])


def cell_score(cell: dict[str, Any] | None, metric: str) -> str:
    """A score of one cell of `evaluation.json` by its key in bootstrap.py; a dash where it has none."""
    kind, _, label = metric.partition("/")
    if cell is None:
        return DASH
    if kind == "recall":
        scores = cell["per_class"].get(label)
        return percent(scores["recall"]) if scores and scores["support"] else DASH
    if kind == "auc":
        area = cell.get("auc", {}).get(label)
        if area is None:
            return DASH
        return score_text({**cell, metric: area}, metric)
    return score_text(cell, metric) if metric in cell else DASH


def files_table(files: dict[str, FileEntry]) -> pd.DataFrame:
    rows = [[name, format_bytes(entry.bytes), entry.sha256] for name, entry in files.items()]
    return pd.DataFrame(rows, columns=["File", "Size", "SHA-256"])


def environment_table(environment: dict[str, Any]) -> pd.DataFrame:
    plain = {key: value for key, value in environment.items() if key != "schema_version"}
    return pd.DataFrame(_flatten(plain), columns=["What", "Value"])


def when(timestamp: str) -> str:
    """ "2026-11-21T04:17:12+00:00" -> "2026-11-21 04:17 UTC"."""
    return f"{timestamp[:16].replace('T', ' ')} UTC" if timestamp else DASH


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat.append((prefix + key, ", ".join(map(str, value))))
        else:
            flat.append((prefix + key, DASH if value in (None, "", {}) else str(value)))
    return flat
