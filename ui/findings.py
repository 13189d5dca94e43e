"""What the audit found, as sentences with a severity, and what a federation holds in one sentence."""

from typing import Any

import pandas as pd
import streamlit as st

from engine.config import Federation
from engine.data.audit import Audit, Finding
from engine.results.words import count, join_words, percent

BADGES = {
    "error": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
    "note": ("gray", ":material/info:"),
}


def holdings_sentence(federation: Federation, hospitals: pd.DataFrame, splits: pd.DataFrame) -> str:
    """How much there is, dealt how, and which class one hospital alone holds."""
    sums = hospitals[["Images", "Train", "Validation", "Test"]].sum()
    sentence = (
        f"**{count(len(hospitals), 'hospital')} with {count(int(sums['Images']), 'image')}**: {int(sums['Train']):,} "
        f"to train, {int(sums['Validation']):,} to validate, {int(sums['Test']):,} to test."
    )
    if unlabelled := int(splits["unlabelled"].sum()):
        used = f"{int(sums['Train']) - unlabelled:,}"
        sentence += (
            f" Of the training images only the labels of {used} were used."
            if federation.left_out is None
            else f" Only {used} images trained: those of {federation.display_name(federation.left_out)} are to test on."
        )
    held = splits[splits[["train", "validation", "test"]].sum(axis=1) > 0]
    lacking: dict[str, list[str]] = {}
    for hospital in federation.hospital:
        mine = set(held[held["hospital"] == hospital.id]["label"])
        absent = [label for label in federation.classes if label not in mine]
        if absent:
            lacking.setdefault(join_words(absent, "or"), []).append(federation.display_name(hospital.id))
    for classes, names in lacking.items():
        sentence += f" {join_words(names)} {'holds' if len(names) == 1 else 'hold'} no {classes}."
    return sentence


def caveats(audit: Audit, federated: dict[str, Any], shared_classes: list[str]) -> list[str]:
    """What a reader of scores must know of the data, from the audit; `federated` is that model's cell on all images."""
    said = []
    for finding in audit.findings:
        if finding.kind not in ("one-hospital-class", "patients-unknown"):
            continue
        sentence = f"{finding.sentence[0].upper()}{finding.sentence[1:]}."
        if finding.kind == "one-hospital-class" and "macro_f1_shared" in federated and len(shared_classes) > 1:
            share = percent(federated["macro_f1_shared"])
            sentence += (
                f" Over the classes that several hospitals hold ({join_words(shared_classes)}), macro-F1 is {share}."
            )
        said.append(sentence)
    return said


def findings_for(audit: Audit, hospital: str) -> tuple[list[Finding], list[Finding]]:
    """Findings of one hospital, and those that concern several; worst first, as the audit sorts them."""
    return (
        [finding for finding in audit.findings if finding.hospital == hospital],
        [finding for finding in audit.findings if finding.hospital is None],
    )


def draw_findings(audit: Audit, federation: Federation, hospital: str, n_images: int) -> None:
    own, shared = findings_for(audit, hospital)
    st.markdown("**What the audit found**")
    if not own:
        st.markdown(f"Nothing wrong with the {count(n_images, 'image')} of {federation.display_name(hospital)}.")
    _draw(own)
    sentence = looks_sentence(audit, hospital)
    if sentence:
        st.caption(sentence)
    if shared:
        st.markdown("**In the federation as a whole**")
        _draw(shared)


def looks_sentence(audit: Audit, hospital: str) -> str:
    """How large, bright and sharp its images are; empty where it holds none."""
    looks = audit.hospitals[hospital].looks if hospital in audit.hospitals else {}
    if not looks:
        return ""
    said = [
        f"{looks[name].low:,.0f} to {looks[name].high:,.0f} px {word}"
        for name, word in (("width_px", "wide"), ("height_px", "high"))
    ]
    said += [
        f"{name} {looks[name].low:.2f} to {looks[name].high:.2f}" for name in ("brightness", "contrast", "sharpness")
    ]
    return f"Nine in ten of its images are {', '.join(said)} (each of 0 to 1)."


def _draw(findings: list[Finding]) -> None:
    for finding in findings:
        colour, icon = BADGES[finding.severity]
        st.markdown(f":{colour}-badge[{icon} {finding.severity}] {finding.sentence[:1].upper()}{finding.sentence[1:]}.")
        if finding.paths:
            with st.popover(f"{count(len(finding.paths), 'file')}", type="tertiary"):
                shown = finding.paths[:200]
                more = f" (the first {len(shown)})" if len(finding.paths) > len(shown) else ""
                st.caption(f"{count(len(finding.paths), 'file')}{more}")
                st.code("\n".join(shown), language=None, height=240)
