"""What each hospital holds and what is wrong with it, as findings that people can read."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from engine.config import Federation
from engine.data.duplicate_findings import copy_findings, exact_copies, extra_copies, look_alike_findings
from engine.data.external import ExternalSet, external_findings
from engine.data.findings import Finding, Severity
from engine.data.hospitals import HospitalImages, LocalImage
from engine.data.labels import nearest_class
from engine.data.looks import LOOKS, look
from engine.data.splits import SplitImage
from engine.errors import DataError
from engine.results.words import count


class Range(BaseModel):
    """5th percentile, median and 95th percentile over a hospital's images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: float
    median: float
    high: float


class HospitalCounts(BaseModel):
    """`looks` has the measures of `engine.data.looks`, in their units; empty where there is no image."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    n_images: int
    class_counts: dict[str, int]
    unreadable: int
    exact_duplicates: int
    looks: dict[str, Range] = {}


class Audit(BaseModel):
    """`audit.json`: counts per hospital id and of the external test set, and the findings, worst first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    federation: str
    hospitals: dict[str, HospitalCounts]
    external: HospitalCounts | None = None
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]


def audit_federation(
    federation: Federation,
    holdings: Sequence[HospitalImages],
    look_alikes: Sequence[Sequence[int]] = (),
    splits: Sequence[SplitImage] = (),
    *,
    external: ExternalSet | None = None,
    of_source: Sequence[Finding] = (),
) -> Audit:
    """`look_alikes` are groups of positions in all hospitals' images, one hospital after the other; so are `splits`.
    `of_source` was found while a pooled source was read."""
    images = [image for holding in holdings for image in holding.images]
    copies = exact_copies(images)
    findings: list[Finding] = list(of_source)
    for holding in holdings:
        findings += _folder_findings(federation, holding)
    if external is not None:
        findings += external_findings(federation, external, _folder_findings(federation, external.holding))
    findings += copy_findings(federation, copies)
    findings += look_alike_findings(federation, images, look_alikes, splits)
    findings += _class_findings(federation, holdings)
    unknown = sum(image.patient is None for image in images)
    if unknown:
        some = "" if unknown == len(images) else f" of {unknown:,} of {len(images):,} images"
        sentence = f"patients{some} unknown: these figures flatter; expect a fall elsewhere"
        findings.append(Finding(severity="warning", kind="patients-unknown", hospital=None, sentence=sentence))
    order = {"error": 0, "warning": 1, "note": 2}
    return Audit(
        federation=federation.name,
        hospitals={holding.hospital.id: _counts(federation, holding, copies) for holding in holdings},
        external=_counts(federation, external.holding, exact_copies(external.holding.images)) if external else None,
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


def _counts(federation: Federation, holding: HospitalImages, copies: Sequence[Sequence[LocalImage]]) -> HospitalCounts:
    return HospitalCounts(
        n_images=len(holding.images),
        class_counts=count_classes(federation, holding),
        unreadable=len(holding.unreadable),
        exact_duplicates=extra_copies(copies, holding.hospital.id),
        looks=_ranges(holding),
    )


def _ranges(holding: HospitalImages) -> dict[str, Range]:
    if not holding.images:
        return {}
    ranges = {}
    for name in LOOKS:
        low, median, high = np.percentile(look(name, holding.decoded.looks), [5, 50, 95])
        ranges[name] = Range(low=float(low), median=float(median), high=float(high))
    return ranges


def count_classes(federation: Federation, holding: HospitalImages) -> dict[str, int]:
    counts = Counter(image.label for image in holding.images)
    return {label: counts[label] for label in federation.classes}


def require_trainable(audit: Audit) -> None:
    """Raise DataError with the first error found, and how many more there are."""
    if audit.errors:
        more = f" (and {len(audit.errors) - 1} more; see the audit)" if len(audit.errors) > 1 else ""
        raise DataError(audit.errors[0].sentence + more)


def _folder_findings(federation: Federation, holding: HospitalImages) -> list[Finding]:
    hospital = holding.hospital
    name = federation.display_name(hospital.id)

    def finding(severity: Severity, kind: str, sentence: str, paths: Sequence[str] = ()) -> Finding:
        return Finding(severity=severity, kind=kind, hospital=hospital.id, sentence=sentence, paths=tuple(paths))

    if holding.folder_missing:
        return [
            finding(
                "error",
                "missing-folder",
                f"{name}: its folder '{hospital.folder}' is missing; mend 'folder' in the TOML",
            )
        ]
    found = []
    if not holding.images:
        found.append(finding("error", "no-images", f"{name}: no usable image in '{federation.origin(hospital)}'"))
    for folder in holding.unmatched_folders:
        close = nearest_class(folder, federation.classes)
        hint = f"; if it means {close}, add an alias" if close else "; add an alias or take the folder away"
        found.append(
            finding("warning", "unmatched-folder", f"{name}: folder '{folder}' is no class and is left out{hint}")
        )
    for folder in holding.empty_folders:
        found.append(finding("warning", "empty-folder", f"{name}: folder '{folder}' holds no images"))
    if holding.unreadable:
        path, reason = holding.unreadable[0]
        sentence = (
            f"{name}: {count(len(holding.unreadable), 'image')} cannot be read and left out, e.g. {path}: {reason}"
        )
        found.append(finding("warning", "unreadable", sentence, [path for path, _ in holding.unreadable]))
    if holding.ignored_files:
        ignored = count(len(holding.ignored_files), "file")
        sentence = f"{name}: {ignored} ignored: outside a class folder, or no image by name"
        found.append(finding("note", "ignored-files", sentence, holding.ignored_files))
    return found


def _class_findings(federation: Federation, holdings: Sequence[HospitalImages]) -> list[Finding]:
    findings = []
    for label in federation.classes:
        owners = [holding.hospital.id for holding in holdings if count_classes(federation, holding)[label]]
        if not owners:
            sentence = f"no hospital holds an image of '{label}'; add a folder or an alias, or drop the class"
            findings.append(Finding(severity="error", kind="absent-class", hospital=None, sentence=sentence))
        elif len(owners) == 1 and len(holdings) > 1:
            sentence = (
                f"only {federation.display_name(owners[0])} holds {label}: "
                "the model may learn to recognise the hospital instead"
            )
            findings.append(
                Finding(severity="warning", kind="one-hospital-class", hospital=owners[0], sentence=sentence)
            )
    return findings
