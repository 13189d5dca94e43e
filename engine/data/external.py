"""The external test set: read and decoded as a hospital's images are, in no split, and free of the pool's cases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.config import EXTERNAL, Federation
from engine.data.cache import Decoded, Progress
from engine.data.class_folders import scan_class_folders
from engine.data.findings import Finding
from engine.data.hospitals import HospitalImages, LocalImage, decode_hospital, label_files
from engine.data.near_duplicates import find_look_alikes, too_large
from engine.data.splits import group_images
from engine.results.words import count
from engine.sections import External, Hospital


@dataclass(frozen=True)
class ExternalSet:
    """`copied`, `same_patient` and `alike` are its files that show a hospital's case; they are left out. `alike_kept`
    look like a hospital's too, but both patients are known, and two."""

    holding: HospitalImages
    copied: tuple[str, ...] = ()
    same_patient: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    alike_kept: tuple[str, ...] = ()

    def groups(self) -> dict[str, str]:
        """The group of every image by its path: patients by the federation's pattern, and exact copies."""
        grouped = group_images(self.holding.images)
        return {image.path: name for name, members in grouped.items() for image in members}


def load_external(
    federation: Federation,
    external: External,
    root: Path,
    cache: Path,
    holdings: Sequence[HospitalImages],
    progress: Progress | None = None,
) -> ExternalSet:
    scan = scan_class_folders(root, external.folder, federation.classes, federation.aliases)
    found = label_files(federation, EXTERNAL, root, scan.files)
    # A hospital in all but name: no scanner shift, no place on the map.
    stand_in = Hospital(id=EXTERNAL, name=external.name, folder=external.folder)
    whole = decode_hospital(federation, stand_in, found, root, cache, progress, scan)
    return without_known_cases(whole, holdings, patients_span=federation.source is not None)


def without_known_cases(
    whole: HospitalImages, holdings: Sequence[HospitalImages], *, patients_span: bool
) -> ExternalSet:
    """Leave out what shows a case of the hospitals' `holdings`: it would be no test. `patients_span` as for splits."""
    pool = [image for holding in holdings for image in holding.images]
    images = [*pool, *whole.images]
    held = {
        image.path
        for members in group_images(images, patients_span=patients_span).values()
        for image in _guests(members)
    }
    bytes_held = {image.sha256 for image in pool}
    copied = {image.path for image in whole.images if image.sha256 in bytes_held}
    alike, alike_kept = set[str](), set[str]()
    for rows in find_look_alikes(np.concatenate([holding.decoded.greys for holding in (*holdings, whole)])):
        members = [] if too_large(len(rows), len(images)) else [images[row] for row in rows]
        pool_known = all(image.patient is not None for image in members if image.hospital != EXTERNAL)
        for image in _guests(members):
            (alike_kept if pool_known and image.patient is not None else alike).add(image.path)
    return ExternalSet(
        _without(whole, held | alike),
        copied=tuple(sorted(copied)),
        same_patient=tuple(sorted(held - copied)),
        alike=tuple(sorted(alike - held)),
        alike_kept=tuple(sorted(alike_kept - held)),
    )


def _guests(members: Sequence[LocalImage]) -> list[LocalImage]:
    """The external images of a group that a hospital has a part in."""
    guests = [image for image in members if image.hospital == EXTERNAL]
    return guests if len(guests) < len(members) else []


def _without(holding: HospitalImages, paths: set[str]) -> HospitalImages:
    if not paths:
        return holding  # its arrays stay on disk
    rows = [row for row, image in enumerate(holding.images) if image.path not in paths]
    decoded = holding.decoded
    kept = Decoded(decoded.pixels[rows], decoded.greys[rows], decoded.looks[rows], decoded.unreadable)
    return replace(holding, images=tuple(holding.images[row] for row in rows), decoded=kept)


def external_findings(federation: Federation, external: ExternalSet, own_findings: Sequence[Finding]) -> list[Finding]:
    """What is wrong with the set, as findings of no hospital; `own_findings` are those of its folders and files."""
    findings = [finding.model_copy(update={"hospital": None}) for finding in own_findings]
    held = {image.label for image in external.holding.images}
    absent = [label for label in federation.classes if label not in held]
    if external.holding.images and absent:
        sentence = f"{external.holding.hospital.name}: holds no image of {', '.join(absent)}"
        findings.append(Finding(severity="warning", kind="external-class", hospital=None, sentence=sentence))
    for kind, what, paths in (
        ("external-copies", "held by a hospital too, byte for byte; left out", external.copied),
        ("external-patients", "of patients of whom a hospital holds images too; left out", external.same_patient),
        ("external-look-alikes", "looking like a hospital's; left out", external.alike),
        ("external-look-alikes-kept", "looking like another patient's at a hospital; kept", external.alike_kept),
    ):
        if paths:
            sentence = f"{external.holding.hospital.name}: {count(len(paths), 'image')} {what}"
            findings.append(Finding(severity="warning", kind=kind, hospital=None, sentence=sentence, paths=paths))
    return findings
