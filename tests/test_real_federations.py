"""The chest X-ray and skin federations on their real images: names, patients, practices, and what the audit says."""

import os
import resource
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from engine.config import load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.hospitals import patient_of
from engine.data.near_duplicates import find_look_alikes

PROJECT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("CONSILIUM_DATA", "/nowhere"))
CHEST = load_federation(PROJECT / "federations" / "chest-xray.toml")
SKIN = load_federation(PROJECT / "federations" / "skin.toml")

here = [
    pytest.mark.realdata,
    pytest.mark.skipif(
        not ((DATA / "chest-xray").is_dir() and (DATA / "ham10000").is_dir()),
        reason="the real images are not on this machine (CONSILIUM_DATA)",
    ),
]


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        ("train/PNEUMONIA/person12_bacteria_46.jpeg", "train/PNEUMONIA/person12_bacteria"),
        ("train/PNEUMONIA/person12_virus_47.jpeg", "train/PNEUMONIA/person12_virus"),
        ("train/PNEUMONIA/person447_virus_921_1.jpeg", "train/PNEUMONIA/person447_virus"),
        ("test/PNEUMONIA/person12_bacteria_1.jpeg", "test/PNEUMONIA/person12_bacteria"),
        ("train/NORMAL/IM-0117-0001.jpeg", "train/NORMAL/IM-0117"),
        ("train/NORMAL/IM-0429-0001-0002.jpeg", "train/NORMAL/IM-0429"),
        ("train/NORMAL/NORMAL2-IM-0117-0001.jpeg", "train/NORMAL/NORMAL2-IM-0117"),
        ("train/NORMAL/IM-1175-0001.jpeg", "train/NORMAL/IM-1175"),
        ("train/NORMAL/other.jpeg", None),
    ],
)
def test_the_chest_pattern_tells_patients_apart(path: str, patient: str | None) -> None:
    assert patient_of(path, CHEST.split.patient_pattern) == patient


@pytest.fixture(scope="module")
def chest() -> FederationData:
    return read_federation_data(CHEST, DATA / "chest-xray")


@pytest.fixture(scope="module")
def skin() -> FederationData:
    small = SKIN.model_copy(update={"model": SKIN.model.model_copy(update={"image_size_px": 32})})
    return read_federation_data(small, DATA / "ham10000")


class TestChest:
    pytestmark = here

    def test_every_image_has_its_patient_and_one_home(self, chest: FederationData) -> None:
        images = [image for holding in chest.holdings for image in holding.images]
        assert len(images) == 4731
        homes = defaultdict(set)
        for image in images:
            homes[image.patient].add(image.hospital)
        assert None not in homes
        assert len(homes) == 3287
        assert all(len(hospitals) == 1 for hospitals in homes.values())

    def test_patients_are_what_the_files_names_say(self, chest: FederationData) -> None:
        """By another road than the pattern: the name up to the picture's own number."""
        for holding in chest.holdings:
            for image in holding.images:
                folder, _, name = image.path.rpartition("/")
                parts = name.removesuffix(".jpeg")
                own = parts.rsplit("_")[:2] if "person" in parts else parts.split("-")[: 3 if "NORMAL2" in parts else 2]
                assert image.patient == f"{folder}/{('_' if 'person' in parts else '-').join(own)}"

    def test_a_patient_lies_on_one_side(self, chest: FederationData) -> None:
        sides = defaultdict(set)
        for split in chest.splits:
            sides[split.image.patient].add(split.part)
        assert all(len(parts) == 1 for parts in sides.values())

    def test_every_hospital_holds_both_classes(self, chest: FederationData) -> None:
        for counts in chest.audit.hospitals.values():
            assert min(counts.class_counts.values()) >= 20
        assert not chest.audit.errors

    def test_the_external_set_is_the_data_sets_own(self, chest: FederationData) -> None:
        assert chest.external is not None
        assert len(chest.external.holding.images) == 312  # none of them is a hospital's too, nor looks like one
        assert all(image.path.startswith("test/") for image in chest.external.holding.images)
        assert not any(split.image.path.startswith("test/") for split in chest.splits)


class TestSkin:
    pytestmark = here

    def test_the_practices_hold_what_the_table_says(self, skin: FederationData) -> None:
        held = {hospital: counts.n_images for hospital, counts in skin.audit.hospitals.items()}
        assert held == {"vidir-molemax": 3560, "vidir-modern": 3009, "vienna-dias": 402, "rosendahl": 2032}
        assert skin.audit.hospitals["rosendahl"].class_counts["actinic keratosis"] == 271
        assert skin.audit.hospitals["vidir-molemax"].class_counts["actinic keratosis"] == 0
        assert not skin.audit.errors

    def test_lesions_that_span_practices_stay_on_one_side(self, skin: FederationData) -> None:
        homes, sides = defaultdict(set), defaultdict(set)
        for split in skin.splits:
            homes[split.image.patient].add(split.image.hospital)
            sides[split.image.patient].add(split.part)
        assert sum(len(hospitals) > 1 for hospitals in homes.values()) == 9
        assert all(len(parts) == 1 for parts in sides.values())

    def test_look_alikes_of_9003_images_are_found_in_seconds(self, skin: FederationData) -> None:
        greys = np.concatenate([holding.decoded.greys for holding in skin.holdings])
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        assert find_look_alikes(greys)
        assert time.perf_counter() - started < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_both_say_what_is_not_real_and_what_the_licence_asks() -> None:
    assert CHEST.simulated
    assert "non-commercial" in SKIN.licence
    assert "took no part" in SKIN.simulated
    assert SKIN.headline == "balanced_accuracy"
    assert (CHEST.positive_class, len(CHEST.hospital), len(SKIN.classes)) == ("pneumonia", 5, 7)
