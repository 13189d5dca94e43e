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


def runs_table(entries: Sequence[RunEntry], published: dict[str, str]) -> pd.DataFrame:
    """All runs; `published` maps a run's name to the versions made from it."""
    rows = [
        [
            entry.name,
            entry.state,
            entry.problem or DASH,
            entry.federation,
            published.get(entry.name, DASH),
            ", ".join(entry.arms) or DASH,
            entry.rounds or DASH,
            when(entry.started_at),
        ]
        for entry in entries
    ]
    columns = ["Run", "State", "What is wrong", "Federation", "Published as", "Arms", "Rounds", "Started"]
    table = pd.DataFrame(rows, columns=columns).astype(str)
    return table if any(entry.problem for entry in entries) else table.drop(columns="What is wrong")


def matching(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """Rows that hold every word of `text` somewhere."""
    joined = table.apply(lambda row: " ".join(row).lower(), axis=1) if len(table) else pd.Series(dtype=str)
    for word in text.lower().split():
        table = table[joined.loc[table.index].str.contains(word, regex=False)]
    return table


def settings(federation: Federation) -> dict[str, str]:
    """Every setting under its dotted name, hospitals by their id."""
    plain = federation.model_dump(mode="json")
    plain["hospital"] = {hospital["id"]: hospital for hospital in plain["hospital"]}
    return dict(_flatten(plain))


def settings_table(federation: Federation) -> pd.DataFrame:
    return pd.DataFrame(settings(federation).items(), columns=["Setting", "Value"])


def difference_table(one: Federation, other: Federation, names: tuple[str, str]) -> pd.DataFrame:
    """Only the settings in which two runs differ."""
    left, right = settings(one), settings(other)
    keys = [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]
    rows = [[key, left.get(key, DASH), right.get(key, DASH)] for key in keys]
    return pd.DataFrame(rows, columns=["Setting", *names])


def scores_table(
    one: tuple[str, Federation, dict[str, Any]], other: tuple[str, Federation, dict[str, Any]]
) -> pd.DataFrame:
    """Accuracy and macro-F1 of every model of two runs on all their test images."""
    (left, federation, first), (right, _, second) = one, other
    rows = []
    for model in model_order(federation, list(dict.fromkeys([*first, *second]))):
        cells = [cells.get(model, {}).get("all") for cells in (first, second)]
        row = [federation.model_name(model)]
        for metric in ("macro_f1", "accuracy"):
            row += [percent(cell[metric]) if cell else DASH for cell in cells]
        rows.append(row)
    heads = [f"{name}, {run}" for name in ("Macro-F1", "Accuracy") for run in (left, right)]
    return pd.DataFrame(rows, columns=["Model", *heads])


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
