"""Who trains, who validates, who tests. Nobody is lost, and what belongs together stays on one side.

A group is all images of one patient together with every exact copy of any of them, across hospitals too. A patient's
name is its hospital's own, except in a pooled source, where one name is one patient at every hospital. Where the
patient is unknown, images that look alike belong together as well: they may well show one patient.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.data.hospitals import LocalImage
from engine.sections import SplitConfig

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitImage:
    image: LocalImage
    part: Part
    group: str


def split_images(
    images: Sequence[LocalImage],
    config: SplitConfig,
    look_alikes: Iterable[Sequence[int]] = (),
    *,
    patients_span: bool = False,
) -> list[SplitImage]:
    """Deal every image to train, validation or test, in the order given.

    Groups are dealt one stratum (hospital x class) after another, in an order that depends on the seed and the
    group's own content alone; each goes where the stratum still lacks most. So a file added to one stratum leaves
    the others as they were. `look_alikes` are groups of positions in `images`; `patients_span` says that one name is
    one patient at every hospital.
    """
    groups = group_images(images, look_alikes, patients_span=patients_span)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, members in groups.items():
        # A group's home is where most of it lies (ties: by name), so that one stratum alone deals it.
        home = Counter((image.hospital, image.label) for image in members)
        strata[min(home, key=lambda stratum: (-home[stratum], stratum))].append(name)
    part_of: dict[str, Part] = {}
    for names in strata.values():
        n_images = sum(len(groups[name]) for name in names)
        lacking = {part: n_images * getattr(config, part) for part in PARTS}
        for name in sorted(names, key=lambda name: (-len(groups[name]), _shuffle_key(config.seed, name))):
            part = max(PARTS, key=lambda part: lacking[part])
            part_of[name] = part
            lacking[part] -= len(groups[name])
    group_of = {(image.hospital, image.path): name for name, members in groups.items() for image in members}
    return [
        SplitImage(image, part_of[group_of[image.hospital, image.path]], group_of[image.hospital, image.path])
        for image in images
    ]


def group_images(
    images: Sequence[LocalImage], look_alikes: Iterable[Sequence[int]] = (), *, patients_span: bool = False
) -> dict[str, list[LocalImage]]:
    """Connected images under "same patient", "same bytes" and, where the patient is unknown, "look alike".

    The name is the smallest hash among the members.
    """
    parent = list(range(len(images)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[tuple[str, ...], int] = {}
    for index, image in enumerate(images):
        ties: list[tuple[str, ...]] = [("bytes", image.sha256)]
        if image.patient is not None:
            ties.append(("patient", "" if patients_span else image.hospital, image.patient))
        for tie in ties:
            parent[find(index)] = find(first_with.setdefault(tie, index))
    for rows in look_alikes:
        unknown = [index for index in rows if images[index].patient is None]
        for index in unknown[1:]:
            parent[find(index)] = find(unknown[0])
    members: dict[int, list[LocalImage]] = defaultdict(list)
    for index, image in enumerate(images):
        members[find(index)].append(image)
    return {min(image.sha256 for image in group)[:16]: group for group in members.values()}


def _shuffle_key(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()
