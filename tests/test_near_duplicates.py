"""Images that look alike are found, stay on one side, and unlike ones are not chained together."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engine.config import Federation
from engine.data.audit import Audit
from engine.data.federation_data import read_federation_data
from engine.data.hospitals import LocalImage
from engine.data.looks import LOOKS, look, measure_looks, small_grey
from engine.data.near_duplicates import find_look_alikes, too_large
from engine.data.phantom_heads import draw_patient
from engine.data.phantoms import SCANNERS, render_slice
from engine.data.splits import group_images, split_images
from engine.sections import SplitConfig

Grey = npt.NDArray[np.uint8]


def slice_of(patient: int, noise: int = 0) -> Grey:
    """One patient's phantom slice; another `noise` is another scan of the very same plane."""
    drawn = draw_patient("glioma", np.random.default_rng(patient))
    clean, _ = render_slice(drawn, SCANNERS["hospital-a"], 96, np.random.default_rng(1))
    speckle = np.random.default_rng(noise).normal(0, 3 if noise else 0, clean.shape)
    return np.clip(clean + speckle, 0, 255).astype(np.uint8)


def greys(*images: Grey) -> Grey:
    return np.stack([small_grey(image) for image in images])


def test_a_noisier_copy_and_a_resized_one_look_alike() -> None:
    first = slice_of(1)
    smaller = np.asarray(Image.fromarray(first).resize((70, 70)))
    assert find_look_alikes(greys(first, slice_of(2), slice_of(1, noise=5), smaller)) == [[0, 2, 3]]


def test_other_patients_do_not_look_alike() -> None:
    assert find_look_alikes(greys(*(slice_of(patient) for patient in range(30)))) == []


def test_a_mirrored_or_inverted_image_does_not_look_alike() -> None:
    first = slice_of(3)
    assert find_look_alikes(greys(first, first[:, ::-1], 255 - first)) == []


def test_groups_are_found_across_blocks_and_come_largest_first() -> None:
    images = [slice_of(patient) for patient in range(20)]
    stack = greys(*images, slice_of(4, 1), *images[10:12], slice_of(4, 2))
    assert find_look_alikes(stack) == [[4, 20, 23], [10, 21], [11, 22]]


@pytest.mark.parametrize("images", [np.zeros((0, 64, 64), np.uint8), np.zeros((1, 64, 64), np.uint8)])
def test_no_or_one_image_has_no_look_alike(images: Grey) -> None:
    assert find_look_alikes(images) == []


def test_a_group_over_two_percent_is_too_large_but_a_pair_never_is() -> None:
    assert not too_large(20, 1000)
    assert too_large(21, 1000)
    assert not too_large(2, 10)


def local(name: str, patient: str | None = None) -> LocalImage:
    return LocalImage("north", f"north/a/{name}", "a", name * 16, patient)


def test_look_alikes_of_unknown_patients_stay_together_and_known_patients_decide_for_themselves() -> None:
    unknown = [local("1"), local("2"), local("3")]
    assert sorted(map(len, group_images(unknown, [[0, 2]]).values())) == [1, 2]
    known = [local("1", "p1"), local("2", "p2"), local("3", "p3")]
    assert sorted(map(len, group_images(known, [[0, 2]]).values())) == [1, 1, 1]


def test_every_look_alike_lands_on_one_side() -> None:
    images = [local(f"{number:03d}") for number in range(60)]
    groups = [[start, start + 1, start + 2] for start in range(0, 60, 3)]
    parts = [split.part for split in split_images(images, SplitConfig(), groups)]
    assert all(len({parts[row] for row in rows}) == 1 for rows in groups)
    assert set(parts) == {"train", "validation", "test"}


@pytest.fixture
def federation() -> Federation:
    return Federation.model_validate(
        {
            "name": "Test",
            "data": "test",
            "classes": ["a", "b"],
            "intended_input": "slices",
            "model": {"image_size_px": 32},
            "hospital": [{"id": name, "name": name.title(), "folder": name} for name in ("north", "south")],
        }
    )


def audit_of(federation: Federation, root: Path, images: dict[str, Grey]) -> Audit:
    for path, image in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / path)
    return read_federation_data(federation, root).audit


def many(start: int = 100) -> dict[str, Grey]:
    """Enough unlike images that no pair is a large share."""
    return {
        f"{hospital}/{label}/{number}.png": slice_of(start + 40 * h + 20 * c + number)
        for h, hospital in enumerate(("north", "south"))
        for c, label in enumerate("ab")
        for number in range(4)
    }


def test_the_audit_tells_look_alikes_within_across_and_with_two_labels(federation: Federation, tmp_path: Path) -> None:
    audit = audit_of(
        federation,
        tmp_path,
        {
            **many(),
            "north/a/one.png": slice_of(1),
            "north/a/one-again.png": slice_of(1, noise=1),
            "north/b/two.png": slice_of(2),
            "south/a/two-again.png": slice_of(2, noise=1),
        },
    )
    found = {finding.kind: finding for finding in audit.findings}
    assert found["look-alikes"].hospital == "north"
    assert "1 image looking like another" in found["look-alikes"].sentence
    assert found["shared-look-alikes"].paths == ("north/b/two.png", "south/a/two-again.png")
    assert "carry different labels" in found["contradicting-look-alikes"].sentence
    assert "2 groups, the largest of 2 images" in found["largest-look-alikes"].sentence
    assert "torn-look-alikes" not in found
    assert found["patients-unknown"].sentence.startswith("patients unknown: these figures flatter")


def test_a_large_group_is_reported_not_merged(federation: Federation, tmp_path: Path) -> None:
    repeated = {f"north/a/again-{number}.png": slice_of(1, noise=number) for number in range(12)}
    audit = audit_of(federation, tmp_path, {**many(), **repeated})
    found = {finding.kind: finding for finding in audit.findings}
    assert "the largest of 12 images; not kept together" in found["too-many-look-alikes"].sentence
    assert "both sides of the split" in found["torn-look-alikes"].sentence


def test_exact_copies_alone_are_no_look_alikes(federation: Federation, tmp_path: Path) -> None:
    audit = audit_of(federation, tmp_path, {**many(), "north/a/x.png": slice_of(1), "north/a/y.png": slice_of(1)})
    kinds = {finding.kind for finding in audit.findings}
    assert "duplicates" in kinds
    assert "look-alikes" not in kinds


def looks_of(grey: np.ndarray) -> dict[str, float]:
    rows = measure_looks(np.repeat(grey[..., None], 3, axis=2))[None]
    return {name: float(look(name, rows)[0]) for name in LOOKS}


def test_looks_are_measured_in_their_units() -> None:
    flat = looks_of(np.full((40, 60), 51, np.uint8))
    assert (flat["width_px"], flat["height_px"]) == (60, 40)
    assert flat["brightness"] == pytest.approx(0.2)
    assert flat["contrast"] == pytest.approx(0, abs=1e-9)
    assert flat["sharpness"] == pytest.approx(0, abs=2e-3)
    half = np.zeros((50, 50), np.uint8)
    half[:, 25:] = 255
    assert looks_of(half)["contrast"] == pytest.approx(0.5)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    sharp = looks_of(noise)["sharpness"]
    soft = looks_of(np.asarray(Image.fromarray(noise).resize((40, 40)).resize((200, 200))))["sharpness"]
    assert 0 < soft < sharp / 3


def test_the_audit_records_ranges_per_hospital(federation: Federation, tmp_path: Path) -> None:
    looks = audit_of(federation, tmp_path, many()).hospitals["north"].looks
    assert (looks["width_px"].low, looks["width_px"].high) == (96, 96)
    assert 0 < looks["brightness"].low <= looks["brightness"].median <= looks["brightness"].high < 1
