"""The external test set: read and decoded as a hospital's images are, in no split, and free of copies of the pool's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import EXTERNAL, Federation
from engine.data.cache import Progress
from engine.data.class_folders import scan_class_folders
from engine.data.findings import Finding
from engine.data.hospitals import HospitalImages, LocalImage, decode_hospital, label_files
from engine.data.splits import group_images
from engine.results.words import count
from engine.sections import External, Hospital


@dataclass(frozen=True)
class ExternalSet:
    """`copied` are its files that the hospitals hold too, byte for byte; they are left out."""

    holding: HospitalImages
    copied: tuple[str, ...]

    def groups(self) -> dict[str, str]:
        """The group of every image by its path: patients by the federation's pattern, and exact copies."""
        grouped = group_images(self.holding.images)
        return {image.path: name for name, members in grouped.items() for image in members}


def load_external(
    federation: Federation,
    external: External,
    root: Path,
    cache: Path,
    pool: Iterable[LocalImage],
    progress: Progress | None = None,
) -> ExternalSet:
    """`pool` are the hospitals' images; a case that one of them holds would be no test."""
    scan = scan_class_folders(root, external.folder, federation.classes, federation.aliases)
    known = {image.sha256 for image in pool}
    found = label_files(federation, EXTERNAL, root, scan.files)
    fresh = [image for image in found if image.sha256 not in known]
    # A hospital in all but name: no scanner shift, no place on the map.
    stand_in = Hospital(id=EXTERNAL, name=external.name, folder=external.folder)
    holding = decode_hospital(federation, stand_in, fresh, root, cache, progress, scan)
    return ExternalSet(holding, tuple(image.path for image in found if image.sha256 in known))


def external_findings(federation: Federation, external: ExternalSet, own_findings: Sequence[Finding]) -> list[Finding]:
    """What is wrong with the set, as findings of no hospital; `own_findings` are those of its folders and files."""
    findings = [finding.model_copy(update={"hospital": None}) for finding in own_findings]
    held = {image.label for image in external.holding.images}
    absent = [label for label in federation.classes if label not in held]
    if external.holding.images and absent:
        sentence = f"{external.holding.hospital.name}: holds no image of {', '.join(absent)}"
        findings.append(Finding(severity="warning", kind="external-class", hospital=None, sentence=sentence))
    if external.copied:
        copies = count(len(external.copied), "image")
        sentence = f"{external.holding.hospital.name}: {copies} held by a hospital too, byte for byte; left out"
        findings.append(
            Finding(severity="warning", kind="external-copies", hospital=None, sentence=sentence, paths=external.copied)
        )
    return findings
