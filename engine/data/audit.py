"""What each hospital holds and what is wrong with it, as findings that people can read."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from engine.config import Federation
from engine.data.hospitals import HospitalImages
from engine.data.labels import nearest_class
from engine.errors import DataError

Severity = Literal["error", "warning", "note"]


class Finding(BaseModel):
    """One thing found. An error stops a training; a warning belongs beside every figure; a note is for the record."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    severity: Severity
    kind: str
    hospital: str | None
    sentence: str
    paths: tuple[str, ...] = ()


class HospitalCounts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    n_images: int
    class_counts: dict[str, int]
    unreadable: int
    exact_duplicates: int


class Audit(BaseModel):
    """`audit.json`: counts per hospital id and the findings, worst first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    federation: str
    hospitals: dict[str, HospitalCounts]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]


def audit_federation(federation: Federation, holdings: Sequence[HospitalImages]) -> Audit:
    findings: list[Finding] = []
    for holding in holdings:
        findings += _folder_findings(federation, holding)
    copies = _exact_copies(holdings)
    findings += _duplicate_findings(federation, copies)
    findings += _class_findings(federation, holdings)
    order = {"error": 0, "warning": 1, "note": 2}
    extra_copies = Counter(
        hospital for group in copies for hospital, n in Counter(h for h, _, _ in group).items() for _ in range(n - 1)
    )
    return Audit(
        federation=federation.name,
        hospitals={
            holding.hospital.id: HospitalCounts(
                n_images=len(holding.images),
                class_counts=count_classes(federation, holding),
                unreadable=len(holding.unreadable),
                exact_duplicates=extra_copies[holding.hospital.id],
            )
            for holding in holdings
        },
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


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
        found.append(finding("error", "no-images", f"{name}: no usable image in '{hospital.folder}'"))
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
            f"{name}: {_count(len(holding.unreadable), 'image')} cannot be read and left out, e.g. {path}: {reason}"
        )
        found.append(finding("warning", "unreadable", sentence, [path for path, _ in holding.unreadable]))
    if holding.ignored_files:
        ignored = _count(len(holding.ignored_files), "file")
        sentence = f"{name}: {ignored} ignored: outside a class folder, or no image by name"
        found.append(finding("note", "ignored-files", sentence, holding.ignored_files))
    return found


def _exact_copies(holdings: Sequence[HospitalImages]) -> list[list[tuple[str, str, str]]]:
    """Groups of (hospital, path, label) with the same bytes."""
    by_hash: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for holding in holdings:
        for image in holding.images:
            by_hash[image.sha256].append((image.hospital, image.path, image.label))
    return [group for group in by_hash.values() if len(group) > 1]


def _duplicate_findings(federation: Federation, copies: list[list[tuple[str, str, str]]]) -> list[Finding]:
    findings = []
    for hospital in federation.hospital:
        inside = [group for group in copies if sum(h == hospital.id for h, _, _ in group) > 1]
        if inside:
            n = sum(sum(h == hospital.id for h, _, _ in group) - 1 for group in inside)
            sentence = (
                f"{federation.display_name(hospital.id)}: {_count(n, 'exact copy', 'exact copies')} of other images; "
                "copies stay on one side of the split"
            )
            paths = [path for group in inside for h, path, _ in group if h == hospital.id]
            findings.append(
                Finding(
                    severity="warning", kind="duplicates", hospital=hospital.id, sentence=sentence, paths=tuple(paths)
                )
            )
    across = [group for group in copies if len({h for h, _, _ in group}) > 1]
    if across:
        sentence = f"{_count(len(across), 'image')} at more than one hospital, byte for byte; copies stay on one side"
        paths = [path for group in across for _, path, _ in group]
        findings.append(
            Finding(severity="warning", kind="shared-images", hospital=None, sentence=sentence, paths=tuple(paths))
        )
    contradicting = [group for group in copies if len({label for _, _, label in group}) > 1]
    if contradicting:
        sentence = f"{_count(len(contradicting), 'image')} with more than one label, byte for byte the same"
        paths = [path for group in contradicting for _, path, _ in group]
        findings.append(
            Finding(
                severity="warning", kind="contradicting-labels", hospital=None, sentence=sentence, paths=tuple(paths)
            )
        )
    return findings


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


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one}" if n == 1 else f"{n:,} {many or one + 's'}"
