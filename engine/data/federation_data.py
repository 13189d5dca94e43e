"""All hospitals of a federation, read, audited and split: what training, publishing and the audit start from."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Federation, data_root, require_data_root
from engine.data.audit import Audit, audit_federation, count_classes
from engine.data.cache import default_cache
from engine.data.external import ExternalSet, load_external
from engine.data.findings import Finding
from engine.data.hospitals import HospitalImages, LocalImage, decode_hospital, load_hospital
from engine.data.labelled import labelled_part
from engine.data.near_duplicates import find_look_alikes, too_large
from engine.data.partition import deal_images
from engine.data.phantoms import write_phantoms
from engine.data.skew import measure_skew
from engine.data.source import by_hospital, read_source, unowned_findings
from engine.data.splits import Part, SplitImage, split_images
from engine.data.unpacked import unpack_once
from engine.sections import Hospital

OnProgress = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True)
class FederationData:
    federation: Federation
    root: Path
    holdings: tuple[HospitalImages, ...]
    audit: Audit
    splits: tuple[SplitImage, ...]
    external: ExternalSet | None = None

    def images_used(self, part: Part, hospital: Hospital) -> list[SplitImage]:
        """A hospital's images of a part; of training images those whose labels the federation uses."""
        if part == "train" and hospital.id == self.federation.left_out:
            return []
        mine = [split for split in self.splits if split.part == part and split.image.hospital == hospital.id]
        if part != "train":
            return mine
        return labelled_part(mine, self.federation.labelled_fraction(hospital), self.federation.split.seed)

    def splits_json(self) -> dict[str, Any]:
        """`dataset_splits.json`: relative paths, labels, groups and hashes of every image; apart, the external ones.
        A training image whose label stays unused has `labelled` false."""
        used = {id(split) for hospital in self.federation.hospital for split in self.images_used("train", hospital)}
        apart: dict[str, Any] = {}
        if self.external is not None:
            groups = self.external.groups()
            apart["external"] = [
                {"path": image.path, "label": image.label, "group": groups[image.path], "sha256": image.sha256}
                for image in self.external.holding.images
            ]
        return {
            "schema_version": 1,
            "seed": self.federation.split.seed,
            "images": [
                {
                    "hospital": split.image.hospital,
                    "path": split.image.path,
                    "label": split.image.label,
                    "split": split.part,
                    "group": split.group,
                    "sha256": split.image.sha256,
                    **({"labelled": False} if split.part == "train" and id(split) not in used else {}),
                }
                for split in self.splits
            ],
            **apart,
        }

    def subgroups_json(self) -> dict[str, Any]:
        """`subgroups.json`: by column, the words of every image that is not trained on, in the order of `paths`."""
        columns = list(self.federation.source.subgroups) if self.federation.source else []
        tested = [split.image for split in self.splits if split.part != "train"]
        return {
            "schema_version": 1,
            "paths": [image.path for image in tested],
            "columns": {name: [image.subgroups[place] for image in tested] for place, name in enumerate(columns)},
        }

    def stats_json(self) -> dict[str, Any]:
        """`dataset_stats.json` by hospital name, with the reference system's keys and our own `class_divergence`: the
        Jensen-Shannon divergence (bits) of the hospital's class mix from the federation's; null without images."""
        counts = {holding.hospital.id: count_classes(self.federation, holding) for holding in self.holdings}
        skew = measure_skew(counts)
        return {
            holding.hospital.name: {
                "total_samples": len(holding.images),
                "class_distribution": counts[holding.hospital.id],
                "class_divergence": skew.from_federation[holding.hospital.id],
                "location": holding.hospital.location.place if holding.hospital.location else "",
                "specialty": holding.hospital.specialty,
                "dataset_id": self.federation.origin(holding.hospital),
                "unmatched_folders": list(holding.unmatched_folders),
            }
            for holding in self.holdings
        }


def find_root(federation: Federation, data: Path | None = None, on_progress: OnProgress | None = None) -> Path:
    """The data folder; phantoms are drawn where there is none. Raises DataError."""
    root = data_root(federation, data)
    if federation.phantom_seed is not None and data is None and not root.exists():
        write_phantoms(root, seed=federation.phantom_seed, progress=_named("Drawing phantoms", on_progress))
    return require_data_root(root)


def read_federation_data(
    federation: Federation, data: Path | None = None, on_progress: OnProgress | None = None
) -> FederationData:
    """Find the data folder (or draw the phantoms), decode, audit and split. Raises DataError."""
    root = find_root(federation, data, on_progress)
    if federation.source is not None and federation.source.archive is not None:
        root = unpack_once(root / federation.source.archive, default_cache().with_name("unpacked"))
    holdings, findings = _load_holdings(federation, root, on_progress)
    images: Sequence[LocalImage] = [image for holding in holdings for image in holding.images]
    external = None
    if federation.external is not None:
        told = _named(f"Reading {federation.external.name}", on_progress)
        external = load_external(federation, federation.external, root, default_cache(), holdings, told)
    look_alikes = find_look_alikes(np.concatenate([holding.decoded.greys for holding in holdings]))
    kept_together = [rows for rows in look_alikes if not too_large(len(rows), len(images))]
    splits = split_images(images, federation.split, kept_together, patients_span=federation.source is not None)
    audit = audit_federation(federation, holdings, look_alikes, splits, external=external, of_source=findings)
    return FederationData(federation, root, holdings, audit, tuple(splits), external)


def _load_holdings(
    federation: Federation, root: Path, on_progress: OnProgress | None
) -> tuple[tuple[HospitalImages, ...], list[Finding]]:
    """What every hospital holds, from its own folder or from the source, and what was found wrong with the source."""
    cache = default_cache()
    told = {hospital.id: _named(f"Reading {hospital.name}", on_progress) for hospital in federation.hospital}
    if federation.source is None:
        own = (load_hospital(federation, one, root, cache, told[one.id]) for one in federation.hospital)
        return tuple(own), []
    pool = read_source(federation, federation.source, root)
    if federation.partition is None:
        dealt = by_hospital(federation, pool, root)
        findings = [*pool.findings, *unowned_findings(federation, pool)]
    else:
        dealt = deal_images(pool.images, list(told), federation.classes, federation.partition)
        findings = list(pool.findings)
    holdings = (
        decode_hospital(federation, hospital, dealt[hospital.id], root, cache, told[hospital.id])
        for hospital in federation.hospital
    )
    return tuple(holdings), findings


def shared_classes(data: FederationData) -> list[str]:
    """Classes that two hospitals or more train with; of the others a model may have learned the hospital."""
    counts = [data.audit.hospitals[hospital.id].class_counts.items() for hospital in data.federation.trainers]
    owners = Counter(label for hospital in counts for label, n_images in hospital if n_images)
    return [label for label in data.federation.classes if owners[label] > 1]


def _named(what: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    return (lambda done, of: on_progress(what, done, of)) if on_progress else None
