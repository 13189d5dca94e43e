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
from engine.data.hospitals import HospitalImages, LocalImage, load_hospital
from engine.data.near_duplicates import find_look_alikes, too_large
from engine.data.phantoms import write_phantoms
from engine.data.splits import SplitImage, split_images

OnProgress = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True)
class FederationData:
    federation: Federation
    root: Path
    holdings: tuple[HospitalImages, ...]
    audit: Audit
    splits: tuple[SplitImage, ...]

    def splits_json(self) -> dict[str, Any]:
        """`dataset_splits.json`: relative paths, labels, groups and hashes of every image."""
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
                }
                for split in self.splits
            ],
        }

    def stats_json(self) -> dict[str, Any]:
        """`dataset_stats.json` by hospital name, with the reference system's keys."""
        return {
            holding.hospital.name: {
                "total_samples": len(holding.images),
                "class_distribution": count_classes(self.federation, holding),
                "location": holding.hospital.location.place if holding.hospital.location else "",
                "specialty": holding.hospital.specialty,
                "dataset_id": holding.hospital.folder,
                "unmatched_folders": list(holding.unmatched_folders),
            }
            for holding in self.holdings
        }


def read_federation_data(
    federation: Federation, data: Path | None = None, on_progress: OnProgress | None = None
) -> FederationData:
    """Find the data folder (or draw the phantoms), decode, audit and split. Raises DataError."""
    root = data_root(federation, data)
    if federation.phantom_seed is not None and data is None and not root.exists():
        write_phantoms(root, seed=federation.phantom_seed, progress=_named("Drawing phantoms", on_progress))
    require_data_root(root)
    holdings = tuple(
        load_hospital(federation, hospital, root, default_cache(), _named(f"Reading {hospital.name}", on_progress))
        for hospital in federation.hospital
    )
    images: Sequence[LocalImage] = [image for holding in holdings for image in holding.images]
    look_alikes = find_look_alikes(np.concatenate([holding.decoded.greys for holding in holdings]))
    kept_together = [rows for rows in look_alikes if not too_large(len(rows), len(images))]
    splits = split_images(images, federation.split, kept_together)
    audit = audit_federation(federation, holdings, look_alikes, splits)
    return FederationData(federation, root, holdings, audit, tuple(splits))


def shared_classes(data: FederationData) -> list[str]:
    """Classes that two hospitals or more hold; of the others a model may have learned the hospital."""
    counts = [holding.class_counts.items() for holding in data.audit.hospitals.values()]
    owners = Counter(label for hospital in counts for label, n_images in hospital if n_images)
    return [label for label in data.federation.classes if owners[label] > 1]


def _named(what: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    return (lambda done, of: on_progress(what, done, of)) if on_progress else None
