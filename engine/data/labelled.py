"""Which images' labels are used, where only a share of them is."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from engine.data.splits import SplitImage


def labelled_part(images: Sequence[SplitImage], fraction: float, seed: int) -> list[SplitImage]:
    """Whole groups of `images`, in their order: of each class at least this share of its images, and one group.

    The order in which groups are taken depends on the seed and the group's own name alone, so a smaller fraction is
    a part of a larger one. A group's class is the one that most of it has (ties: by name).
    """
    if fraction >= 1:
        return list(images)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for one in images:
        labels[one.group][one.image.label] += 1
    groups: dict[str, list[str]] = defaultdict(list)  # by class
    for group, counts in labels.items():
        groups[min(counts, key=lambda label: (-counts[label], label))].append(group)
    taken: set[str] = set()
    for names in groups.values():
        wanted = math.ceil(fraction * sum(labels[name].total() for name in names))
        n_images = 0
        for name in sorted(names, key=lambda name: hashlib.sha256(f"labels/{seed}/{name}".encode()).hexdigest()):
            if n_images >= wanted:
                break
            taken.add(name)
            n_images += labels[name].total()
    return [one for one in images if one.group in taken]
