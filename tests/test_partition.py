"""Dealing a pool to hospitals: complete, disjoint, seeded, and never a patient or a copy at two of them."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.data.hospitals import LocalImage
from engine.data.partition import MIN_GROUPS, deal_images
from engine.data.skew import divergence, measure_skew
from engine.data.splits import group_images
from engine.errors import DataError
from engine.sections import Partition

HOSPITALS = ("north", "south", "west")
CLASSES = ("a", "b")
FAST = settings(max_examples=60, deadline=None)


def image(number: int, label: str, content: object = None, patient: str | None = None) -> LocalImage:
    sha = hashlib.sha256(str(number if content is None else f"content {content}").encode()).hexdigest()
    return LocalImage("", f"train/{label}/{number:04d}.png", label, sha, patient)


def pool_of(n_a: int, n_b: int) -> list[LocalImage]:
    return [image(n, "a") for n in range(n_a)] + [image(n, "b") for n in range(n_a, n_a + n_b)]


@st.composite
def pools(draw: st.DrawFn) -> list[LocalImage]:
    """Single images of both classes, and others tied into groups by patients and by copies, across labels too."""
    contents, patients = st.integers(0, 30), st.sampled_from([None, "p1", "p2", "p3", "p4"])
    tied = draw(st.lists(st.tuples(st.sampled_from(CLASSES), contents, patients), max_size=50))
    return [*pool_of(20, 16), *(image(number, *row) for number, row in enumerate(tied, start=1000))]


partitions = st.one_of(
    st.builds(lambda seed: Partition(method="iid", seed=seed), st.integers(0, 99)),
    st.builds(
        lambda method, alpha, seed: Partition(method=method, alpha=alpha, seed=seed),
        st.sampled_from(["dirichlet", "quantity"]),
        st.sampled_from([0.3, 1.0, 10.0, 1e6]),
        st.integers(0, 99),
    ),
    st.builds(
        lambda parts, seed: Partition(method="quotas", quotas=dict(zip(HOSPITALS, parts, strict=True)), seed=seed),
        st.lists(st.fixed_dictionaries({"a": st.integers(1, 9), "b": st.integers(0, 9)}), min_size=3, max_size=3),
        st.integers(0, 99),
    ).filter(lambda partition: any(parts["b"] for parts in partition.quotas.values())),
)  # fmt: skip


def deal(images: list[LocalImage], partition: Partition) -> dict[str, list[LocalImage]]:
    try:
        return deal_images(images, HOSPITALS, CLASSES, partition)
    except DataError:
        assume(False)
        raise


def ownerless(images: list[LocalImage]) -> list[tuple[str, str, str]]:
    return sorted((image.path, image.label, image.sha256) for image in images)


@given(pools(), partitions)
@FAST
def test_nobody_is_lost_and_nobody_is_dealt_twice(images: list[LocalImage], partition: Partition) -> None:
    dealt = deal(images, partition)
    assert list(dealt) == list(HOSPITALS)
    assert ownerless([image for mine in dealt.values() for image in mine]) == ownerless(images)
    assert all(image.hospital == hospital for hospital, mine in dealt.items() for image in mine)


@given(pools(), partitions)
@FAST
def test_patients_and_copies_stay_at_one_hospital(images: list[LocalImage], partition: Partition) -> None:
    homes = defaultdict(set)
    for hospital, mine in deal(images, partition).items():
        for dealt in mine:
            homes["bytes", dealt.sha256].add(hospital)
            if dealt.patient is not None:
                homes["patient", dealt.patient].add(hospital)
    assert all(len(hospitals) == 1 for hospitals in homes.values())


@given(pools(), partitions, st.randoms(use_true_random=False))
@FAST
def test_the_order_of_the_files_changes_nothing(images: list[LocalImage], partition: Partition, random: object) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert deal(shuffled, partition) == deal(images, partition)


@given(pools(), partitions)
@FAST
def test_every_hospital_gets_two_groups_or_more(images: list[LocalImage], partition: Partition) -> None:
    for mine in deal(images, partition).values():
        assert len(group_images(mine, patients_span=True)) >= MIN_GROUPS


def counts(dealt: dict[str, list[LocalImage]]) -> dict[str, dict[str, int]]:
    held = {hospital: Counter(image.label for image in mine) for hospital, mine in dealt.items()}
    return {hospital: {label: mine[label] for label in CLASSES} for hospital, mine in held.items()}


def test_iid_deals_every_class_alike() -> None:
    dealt = counts(deal_images(pool_of(90, 31), HOSPITALS, CLASSES, Partition(method="iid")))
    assert [mine["a"] for mine in dealt.values()] == [30, 30, 30]
    assert sorted(mine["b"] for mine in dealt.values()) == [10, 10, 11]


def test_quotas_are_parts_of_each_class() -> None:
    quotas = {"north": {"a": 3, "b": 1}, "south": {"a": 1}, "west": {"b": 1}}
    dealt = counts(deal_images(pool_of(80, 40), HOSPITALS, CLASSES, Partition(method="quotas", quotas=quotas)))
    assert dealt == {"north": {"a": 60, "b": 20}, "south": {"a": 20, "b": 0}, "west": {"a": 0, "b": 20}}


def test_quantity_skews_sizes_and_keeps_the_class_mix() -> None:
    partition = Partition(method="quantity", alpha=0.5, seed=3)
    skew = measure_skew(counts(deal_images(pool_of(600, 300), HOSPITALS, CLASSES, partition)))
    assert skew.quantity_ratio is not None
    assert skew.pairwise_max is not None
    assert skew.quantity_ratio > 2
    assert skew.pairwise_max < 0.01


def test_a_small_alpha_skews_classes_more_than_a_large_one() -> None:
    def mean_divergence(alpha: float) -> float:
        found = []
        for seed in range(10):
            partition = Partition(method="dirichlet", alpha=alpha, seed=seed)
            skew = measure_skew(counts(deal_images(pool_of(300, 300), HOSPITALS, CLASSES, partition)))
            found.append(skew.pairwise_mean or 0.0)
        return float(np.mean(found))

    assert mean_divergence(0.2) > 0.2 > 0.05 > mean_divergence(100.0)


def test_another_seed_deals_otherwise() -> None:
    first, second = (
        deal_images(pool_of(60, 60), HOSPITALS, CLASSES, Partition(method="iid", seed=seed)) for seed in (0, 1)
    )
    assert first != second


def test_an_unlucky_draw_is_drawn_anew() -> None:
    """Of 30 seeds of a strong skew several first draws leave a hospital short; none of the dealt ones does."""
    images = pool_of(12, 12)
    first_draws_short = 0
    for seed in range(30):
        generator = np.random.default_rng([seed, 0])
        first = generator.dirichlet([0.3] * 3, 2) * 12
        first_draws_short += bool((np.round(first.sum(axis=0)) < MIN_GROUPS).any())
        dealt = deal_images(images, HOSPITALS, CLASSES, Partition(method="dirichlet", alpha=0.3, seed=seed))
        assert min(map(len, dealt.values())) >= MIN_GROUPS
    assert first_draws_short > 3


def test_a_hopeless_alpha_says_how_often_it_was_drawn() -> None:
    with pytest.raises(DataError) as caught:
        deal_images(pool_of(30, 30), HOSPITALS, CLASSES, Partition(method="dirichlet", alpha=1e-6))
    message = str(caught.value)
    assert message.startswith("partition 'dirichlet': in 100 draws of alpha = 1e-06 a hospital always got fewer than 2")
    assert message.endswith("raise alpha or name fewer hospitals")


def test_more_hospitals_than_groups_is_said_with_both_numbers() -> None:
    images = [image(n, "ab"[n % 2], patient=f"p{n % 5}") for n in range(50)]
    with pytest.raises(
        DataError, match=r"holds 5 groups \(patients with their copies\) for 3 hospitals that need 2 each"
    ):
        deal_images(images, HOSPITALS, CLASSES, Partition(method="iid"))


def test_quotas_that_starve_a_hospital_name_it() -> None:
    quotas = {"north": {"a": 100, "b": 1}, "south": {"a": 100}, "west": {"a": 1}}
    with pytest.raises(DataError, match=r"at last 'west' with 0; change the quotas"):
        deal_images(pool_of(20, 20), HOSPITALS, CLASSES, Partition(method="quotas", quotas=quotas))


@pytest.mark.parametrize(
    ("one", "other", "bits"), [([5, 5], [50, 50], 0.0), ([7, 0], [0, 3], 1.0), ([1, 1], [2, 0], 0.311278)]
)
def test_the_divergence_is_jensen_and_shannons_in_bits(one: list[int], other: list[int], bits: float) -> None:
    assert divergence(np.array(one, float), np.array(other, float)) == pytest.approx(bits, abs=1e-6)


def test_the_skew_leaves_an_empty_hospital_out() -> None:
    skew = measure_skew({"north": {"a": 6, "b": 0}, "south": {"a": 0, "b": 2}, "west": {"a": 0, "b": 0}})
    assert skew.from_federation["west"] is None
    assert skew.from_federation["north"] == pytest.approx(0.137925, abs=1e-6)  # (6, 0) against (6, 2)
    assert (skew.pairwise_mean, skew.pairwise_max, skew.quantity_ratio) == (1.0, 1.0, 3.0)


def test_one_hospital_has_no_pairs() -> None:
    skew = measure_skew({"north": {"a": 6, "b": 1}})
    assert (skew.from_federation, skew.pairwise_mean, skew.quantity_ratio) == ({"north": 0.0}, None, None)
