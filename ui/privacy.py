"""Evaluation's privacy view: what was on, what it cost, what leaked, as far as files say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from engine.config import Federation
from engine.errors import ConsiliumError
from engine.results.bootstrap import Estimate, paired_difference
from engine.results.files import sha256_of
from engine.results.run_folder import PRIVACY, Run, list_runs
from engine.results.words import count
from ui.leaked import draw_leaked
from ui.loaders import load_privacy
from ui.matrices import SCORES
from ui.palette import model_order
from ui.words import DASH

SPLITS, PREDICTIONS, MASKS = "dataset_splits.json", "predictions.parquet", "secure_aggregation.json"
COMPRESSIONS = {"fp16": "half precision", "int8": "8 bits per value", "topk": "the largest changes alone"}


def draw_privacy(run: Run) -> None:
    """Raises RunError where the run's own files are damaged."""
    federation, privacy = run.federation, load_privacy(run)
    st.markdown(on_sentence(federation, privacy, masks=MASKS in run.manifest.files))
    st.subheader("What was on", anchor=False)
    if privacy is not None:
        st.dataframe(spent_table(federation, privacy), hide_index=True)
        st.caption(
            f"From `{PRIVACY}`: the most that one training image of a hospital can change what is learned from all its "
            f"updates, with delta = {privacy['delta']:g}; smaller is stricter. An upper bound "
            f"({privacy['accountant']}), and a claim about one image, not one patient, and about updates alone "
            "(docs/privacy.md)."
        )
    sent = federation.communication.compression
    others = [
        "Updates were not compressed."
        if sent == "none"
        else f"Updates were compressed ({COMPRESSIONS[sent]}); that is no protection.",
        f"Secure aggregation is recorded in `{MASKS}`."
        if MASKS in run.manifest.files
        else "No secure aggregation is recorded, so a coordinator would see each hospital's update.",
    ]
    if "federated" in federation.arms:
        st.caption(" ".join(others))
    if privacy is not None:
        st.subheader("What it cost", anchor=False)
        _draw_cost(run)
    draw_leaked(run)


def on_sentence(federation: Federation, privacy: dict[str, Any] | None, *, masks: bool) -> str:
    """The answer in plain words: the promise of this run, or that there is none."""
    if privacy is None:
        hidden = "Secure aggregation hid single updates, but no" if masks else "No"
        return f"{hidden} noise was added in this training, so nothing bounds what its models tell of one image."
    spent = [one["epsilon"] for one in privacy["models"].get("global", {}).values()]
    if not spent:
        return "This run has no federated model; each of its others was trained with differential privacy."
    return (
        f"Every hospital trained the federated model with differential privacy: **epsilon at most {max(spent):.2f}**, "
        f"delta {privacy['delta']:g}, for any one of its training images."
    )


def spent_table(federation: Federation, privacy: dict[str, Any]) -> pd.DataFrame:
    """A row for each model and trainer: what it spent, and with how much noise."""
    rows = []
    for model in model_order(federation, list(privacy["models"])):
        for trainer, spent in privacy["models"][model].items():
            whose = "all hospitals, pooled" if trainer == "pooled" else federation.display_name(trainer)
            noise = ", ".join(f"{done['noise_multiplier']:.2f}" for done in spent["history"]) or DASH
            steps = sum(done["steps"] for done in spent["history"])
            row = [federation.model_name(model), whose, f"{spent['epsilon']:.2f}", noise, f"{steps:,}"]
            rows.append([*row, f"{spent['n_images']:,}"])
    columns = ["Model", "Images of", "Epsilon", "Noise multiplier", "Steps", "Training images"]
    return pd.DataFrame(rows, columns=columns)


def find_twin(run: Run) -> Run | None:
    """The newest finished run beside it that differs in nothing but [privacy], on the same images."""
    wanted = run.federation.model_copy(update={"privacy": None})
    for other in reversed(list_runs(run.folder.parent)):
        try:
            same = other.name != run.name and other.is_finished and other.federation == wanted
            if same and other.manifest.files[SPLITS].sha256 == run.manifest.files[SPLITS].sha256:
                other.verify()
                return other
        except (ConsiliumError, KeyError):  # one that cannot be read is no witness
            continue
    return None


def cost_sentence(run: Run, twin: Run, cost: Estimate, n_images: int) -> str:
    """What the federated model lost, or did not."""
    score = SCORES[run.federation.headline]
    points = f"{100 * cost.value:+.1f} points ({100 * cost.low:+.1f} to {100 * cost.high:+.1f})"
    sure = "" if cost.low > 0 or cost.high < 0 else " The interval holds 0: these images do not tell the two apart."
    return (
        f"{score} of the federated model beside that of {twin.name}, which differs in `[privacy]` alone: **{points}** "
        f"on the same {count(n_images, 'test image')}; 95% interval over groups.{sure} One training each."
    )


def _draw_cost(run: Run) -> None:
    twin = find_twin(run)
    if "federated" not in run.federation.arms or twin is None:
        st.info(
            "Not measured: no finished run beside this one has the same settings without `[privacy]`. Train one from "
            f"`{run.config.federation_file}` with that section left out.",
            icon=":material/info:",
        )
        return
    stamps = [sha256_of(one.folder / "manifest.json") for one in (run, twin)]
    cost, n_images = _cost(str(run.folder), str(twin.folder), *stamps)
    if n_images == 0:
        st.info("Not measured: there are no test images.", icon=":material/info:")
        return
    st.markdown(cost_sentence(run, twin, cost, n_images))


@st.cache_data(max_entries=20, show_spinner=False)
def _cost(run: str, twin: str, run_sha256: str, twin_sha256: str) -> tuple[Estimate, int]:
    """The headline score of the federated model less that of the twin's, paired, and the number of test images."""
    federation, tables = Run(Path(run)).federation, []
    for folder in (run, twin):
        table = Run(Path(folder)).predictions()
        mine = table[(table["model"] == "global") & (table["split"] == "test")]
        tables.append(mine.set_index(["hospital", "path"]).sort_index())
    ours, theirs = tables
    if ours.empty:
        return Estimate(np.nan, np.nan, np.nan), 0
    labels = ours["label"].map({label: number for number, label in enumerate(federation.classes)}).to_numpy(np.int64)
    logits = [np.stack(list(table["logits"])) for table in (ours, theirs)]
    found = paired_difference(*logits, labels, list(ours["group"]), federation.classes, federation.headline)
    return found, len(ours)
