"""What the audit says about images that stand in a federation more than once."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from engine.config import Federation
from engine.data.findings import Finding
from engine.data.hospitals import LocalImage
from engine.data.near_duplicates import too_large
from engine.data.splits import SplitImage
from engine.results.words import count


def exact_copies(images: Iterable[LocalImage]) -> list[list[LocalImage]]:
    """Groups of two or more images with the same bytes."""
    by_hash: dict[str, list[LocalImage]] = defaultdict(list)
    for image in images:
        by_hash[image.sha256].append(image)
    return [group for group in by_hash.values() if len(group) > 1]


def extra_copies(copies: Sequence[Sequence[LocalImage]], hospital: str) -> int:
    """Images of a hospital that repeat another of its own."""
    return sum(max(0, sum(image.hospital == hospital for image in group) - 1) for group in copies)


def copy_findings(federation: Federation, copies: Sequence[Sequence[LocalImage]]) -> list[Finding]:
    findings = []
    for hospital in federation.hospital:
        n_extra = extra_copies(copies, hospital.id)
        if n_extra:
            mine = [image for group in copies for image in group if image.hospital == hospital.id]
            copied = {image.sha256 for image in mine if sum(other.sha256 == image.sha256 for other in mine) > 1}
            sentence = (
                f"{federation.display_name(hospital.id)}: {count(n_extra, 'exact copy', 'exact copies')} "
                "of other images; copies stay on one side of the split"
            )
            paths = tuple(image.path for image in mine if image.sha256 in copied)
            findings.append(
                Finding(severity="warning", kind="duplicates", hospital=hospital.id, sentence=sentence, paths=paths)
            )
    across = [group for group in copies if len({image.hospital for image in group}) > 1]
    if across:
        sentence = f"{count(len(across), 'image')} at more than one hospital, byte for byte; copies stay on one side"
        findings.append(_warning("shared-images", sentence, across))
    contradicting = [group for group in copies if len({image.label for image in group}) > 1]
    if contradicting:
        sentence = f"{count(len(contradicting), 'image')} with more than one label, byte for byte the same"
        findings.append(_warning("contradicting-labels", sentence, contradicting))
    return findings


def look_alike_findings(
    federation: Federation,
    images: Sequence[LocalImage],
    look_alikes: Sequence[Sequence[int]],
    splits: Sequence[SplitImage],
) -> list[Finding]:
    """About groups that look alike without being copies of one file."""
    groups = [[images[row] for row in rows] for rows in look_alikes]
    near = [group for group in groups if len({image.sha256 for image in group}) > 1]
    if not near:
        return []
    findings = []
    for hospital in federation.hospital:
        mine = [[image for image in group if image.hospital == hospital.id] for group in near]
        n_extra = sum(max(0, len({image.sha256 for image in group}) - 1) for group in mine)
        if n_extra:
            sentence = (
                f"{federation.display_name(hospital.id)}: {count(n_extra, 'image')} looking like another of its own"
            )
            paths = tuple(image.path for group in mine if len(group) > 1 for image in group)
            findings.append(
                Finding(severity="warning", kind="look-alikes", hospital=hospital.id, sentence=sentence, paths=paths)
            )
    across = [group for group in near if len({image.hospital for image in group}) > 1]
    if across:
        sentence = f"{count(len(across), 'group')} of images that look alike at more than one hospital"
        findings.append(_warning("shared-look-alikes", sentence, across))
    contradicting = [group for group in near if len({image.label for image in group}) > 1]
    if contradicting:
        sentence = f"{count(len(contradicting), 'group')} of images that look alike and carry different labels"
        findings.append(_warning("contradicting-look-alikes", sentence, contradicting))
    large = [group for group in groups if too_large(len(group), len(images))]
    if large:
        sentence = (
            f"{count(len(large), 'group')} of look-alikes too large to be one patient, the largest of "
            f"{count(len(large[0]), 'image')}; not kept together"
        )
        findings.append(_warning("too-many-look-alikes", sentence, large))
    part_of = {(split.image.hospital, split.image.path): split.part for split in splits}
    torn = [group for group in near if len({part_of.get((image.hospital, image.path)) for image in group}) > 1]
    if torn:
        sentence = f"{count(len(torn), 'group')} of images that look alike on both sides of the split"
        findings.append(_warning("torn-look-alikes", sentence, torn))
    sizes = Counter(len(group) for group in groups)
    sentence = f"look-alikes: {count(len(groups), 'group')}, the largest of {count(max(sizes), 'image')}"
    findings.append(Finding(severity="note", kind="largest-look-alikes", hospital=None, sentence=sentence))
    return findings


def _warning(kind: str, sentence: str, groups: Iterable[Sequence[LocalImage]]) -> Finding:
    paths = tuple(image.path for group in groups for image in group)
    return Finding(severity="warning", kind=kind, hospital=None, sentence=sentence, paths=paths)
