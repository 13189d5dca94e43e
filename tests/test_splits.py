"""Splits lose nobody, and what belongs together stays on one side: whatever the hospitals hold."""

import hashlib
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.hospitals import LocalImage
from engine.data.splits import PARTS, group_images, split_images
from engine.sections import SplitConfig

HOSPITALS = ("north", "south", "west")
LABELS = ("glioma", "notumor")
FAST = settings(max_examples=80, deadline=None)


def sha(content: object) -> str:
    return hashlib.sha256(str(content).encode()).hexdigest()


def image(number: int, hospital: str, label: str, content: object, patient: str | None = None) -> LocalImage:
    return LocalImage(hospital, f"{hospital}/{label}/{number:04d}.png", label, sha(content), patient)


def singletons(n_images: int, hospital: str = "north", label: str = "glioma", start: int = 0) -> list[LocalImage]:
    return [image(start + n, hospital, label, (hospital, label, start + n)) for n in range(n_images)]


@st.composite
def federations(draw: st.DrawFn, patients: bool = True) -> list[LocalImage]:
    """Images over three hospitals and two classes; few contents, so that copies abound; some share a patient."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(HOSPITALS),
                st.sampled_from(LABELS),
                st.integers(0, 60),
                st.sampled_from([None, None, "p1", "p2", "p3"]) if patients else st.none(),
            ),
            max_size=80,
        )
    )
    return [image(number, *row) for number, row in enumerate(rows)]


configs = st.builds(
    lambda seed, train, validation: SplitConfig(
        seed=seed, train=train / 10, validation=validation / 10, test=(10 - train - validation) / 10
    ),
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.integers(1, 3),
)


@given(federations(), configs)
@FAST
def test_every_image_is_dealt_once_and_in_the_order_given(images: list[LocalImage], config: SplitConfig) -> None:
    dealt = split_images(images, config)
    assert [split.image for split in dealt] == images
    assert {split.part for split in dealt} <= set(PARTS)


@given(federations(), configs)
@FAST
def test_exact_copies_lie_on_one_side_across_hospitals_too(images: list[LocalImage], config: SplitConfig) -> None:
    sides = defaultdict(set)
    for split in split_images(images, config):
        sides[split.image.sha256].add(split.part)
    assert all(len(parts) == 1 for parts in sides.values())


@given(federations(), configs)
@FAST
def test_a_hospitals_patient_lies_on_one_side(images: list[LocalImage], config: SplitConfig) -> None:
    sides = defaultdict(set)
    for split in split_images(images, config):
        if split.image.patient is not None:
            sides[split.image.hospital, split.image.patient].add(split.part)
    assert all(len(parts) == 1 for parts in sides.values())


@given(federations(), configs)
@FAST
def test_a_group_lies_on_one_side_and_names_are_not_shared(images: list[LocalImage], config: SplitConfig) -> None:
    sides, members = defaultdict(set), defaultdict(set)
    for split in split_images(images, config):
        sides[split.group].add(split.part)
        members[split.group].add(split.image)
    assert all(len(parts) == 1 for parts in sides.values())
    assert sum(map(len, members.values())) == len(images)


def naive_groups(images: list[LocalImage]) -> set[frozenset[LocalImage]]:
    """Join any two groups with a tie between them until nothing joins."""
    groups = [{image} for image in images]

    def tied(one: LocalImage, other: LocalImage) -> bool:
        same_patient = one.patient is not None and (one.hospital, one.patient) == (other.hospital, other.patient)
        return one.sha256 == other.sha256 or same_patient

    joined = True
    while joined:
        joined = False
        for group in groups:
            for other in groups:
                if group is not other and any(tied(a, b) for a in group for b in other):
                    group |= other
                    groups.remove(other)
                    joined = True
                    break
            if joined:
                break
    return {frozenset(group) for group in groups}


@given(federations().map(lambda images: images[:25]))
@settings(max_examples=40, deadline=None)
def test_groups_are_what_ties_connect(images: list[LocalImage]) -> None:
    assert {frozenset(group) for group in group_images(images).values()} == naive_groups(images)


@given(federations(), configs)
@FAST
def test_a_seed_always_deals_alike(images: list[LocalImage], config: SplitConfig) -> None:
    assert split_images(images, config) == split_images(list(images), config)


@given(federations(), configs, st.randoms(use_true_random=False))
@FAST
def test_the_order_of_the_images_changes_nothing(images: list[LocalImage], config: SplitConfig, random: object) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    expected = {split.image: (split.part, split.group) for split in split_images(images, config)}
    assert {split.image: (split.part, split.group) for split in split_images(shuffled, config)} == expected


@given(federations(), configs, st.sampled_from(HOSPITALS), st.sampled_from(LABELS), st.integers(1, 5))
@FAST
def test_new_files_leave_every_other_stratum_as_it_was(
    images: list[LocalImage], config: SplitConfig, hospital: str, label: str, n_new: int
) -> None:
    new = [image(9000 + n, hospital, label, ("new", n)) for n in range(n_new)]
    groups_here = {
        split.group
        for split in split_images(images, config)
        if (split.image.hospital, split.image.label) == (hospital, label)
    }
    before = {split.image: split.part for split in split_images(images, config) if split.group not in groups_here}
    after = {split.image: split.part for split in split_images([*images, *new], config)}
    assert {image: after[image] for image in before} == before


@pytest.mark.parametrize(
    ("n_images", "expected"), [(100, (70, 15, 15)), (1000, (700, 150, 150)), (20, (14, 3, 3)), (1, (1, 0, 0))]
)
def test_single_images_are_dealt_seventy_fifteen_fifteen(n_images: int, expected: tuple[int, ...]) -> None:
    counts = Counter(split.part for split in split_images(singletons(n_images), SplitConfig()))
    assert tuple(counts[part] for part in PARTS) == expected


@given(st.integers(1, 200), configs)
@FAST
def test_no_part_of_single_images_is_more_than_two_off_its_share(n_images: int, config: SplitConfig) -> None:
    counts = Counter(split.part for split in split_images(singletons(n_images), config))
    for part in PARTS:
        assert abs(counts[part] - n_images * getattr(config, part)) < 2


def test_every_stratum_has_its_own_shares() -> None:
    images = [
        *singletons(100),
        *singletons(20, label="notumor"),
        *singletons(200, hospital="south"),
    ]
    counts = Counter(
        (split.image.hospital, split.image.label, split.part) for split in split_images(images, SplitConfig())
    )
    assert [counts["north", "glioma", part] for part in PARTS] == [70, 15, 15]
    assert [counts["north", "notumor", part] for part in PARTS] == [14, 3, 3]
    assert [counts["south", "glioma", part] for part in PARTS] == [140, 30, 30]


def test_patients_of_many_images_are_dealt_near_the_shares() -> None:
    images = [image(n, "north", "glioma", n, f"p{n // 5}") for n in range(500)]
    counts = Counter(split.part for split in split_images(images, SplitConfig()))
    assert [counts[part] for part in PARTS] == [350, 75, 75]


def test_one_patient_larger_than_all_shares_goes_to_training_whole() -> None:
    images = [image(n, "north", "glioma", n, "p") for n in range(10)]
    assert {split.part for split in split_images(images, SplitConfig())} == {"train"}


def test_another_seed_deals_otherwise() -> None:
    first, second = ([split.part for split in split_images(singletons(100), SplitConfig(seed=seed))] for seed in (0, 1))
    assert first != second


def test_a_patient_of_the_same_name_at_two_hospitals_is_two_patients() -> None:
    images = [image(1, "north", "glioma", "a", "p1"), image(2, "south", "glioma", "b", "p1")]
    assert len(group_images(images)) == 2


def test_a_copy_ties_two_patients_of_two_hospitals_together() -> None:
    images = [
        image(1, "north", "glioma", "a", "p1"),
        image(2, "north", "glioma", "shared", "p1"),
        image(3, "south", "glioma", "shared", "q9"),
        image(4, "south", "glioma", "b", "q9"),
    ]
    assert len(group_images(images)) == 1


def test_a_copy_at_another_hospital_follows_the_stratum_where_most_of_its_group_lies() -> None:
    patient = [image(n, "south", "notumor", n, "p1") for n in range(3)]
    images = [*patient, image(9, "north", "glioma", 0)]
    (part,) = {split.part for split in split_images(images, SplitConfig())}
    assert part == "train"
    many = split_images([*images, *singletons(100)], SplitConfig())
    own = Counter(split.part for split in many[4:])
    assert [own[part] for part in PARTS] == [70, 15, 15]  # the guest takes no place among north's gliomas


def test_no_images_make_no_splits() -> None:
    assert split_images([], SplitConfig()) == []
