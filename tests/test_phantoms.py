"""The drawn heads: the same every time, independent of each other, and told apart by the mass alone."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.phantom_heads import BRAIN_HALF_HEIGHT, BRAIN_HALF_WIDTH, BRAIN_Y, PHANTOM_CLASSES, draw_patient
from engine.data.phantoms import DEFAULT_COUNTS, SCANNERS, Lesion, draw_slice, render_slice, write_phantoms
from engine.errors import DataError

COUNTS = {
    "hospital-a": {"glioma": 4, "meningioma": 3, "notumor": 5, "pituitary": 2},
    "hospital-b": {"glioma": 2, "meningioma": 4, "notumor": 2, "pituitary": 3},
    "hospital-c": {"glioma": 3, "meningioma": 2, "pituitary": 4},
}
TUMOURS = tuple(label for label in PHANTOM_CLASSES if label != "notumor")
QUIET = replace(SCANNERS["hospital-a"], noise=0.0)


def write(root: Path, *, seed: int = 3, counts: dict[str, dict[str, int]] = COUNTS) -> dict[str, bytes]:
    write_phantoms(root, seed=seed, size_px=32, images_per_hospital=counts)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "lesions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def disc(lesion: Lesion, size_px: int, share: float = 1.0) -> np.ndarray:
    row, column = np.mgrid[:size_px, :size_px]
    return np.hypot(column - lesion.x, row - lesion.y) <= share * lesion.radius


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = write(tmp_path / "1"), write(tmp_path / "2"), write(tmp_path / "3", seed=4)
    assert first == second
    images = [name for name in first if name.endswith(".png")]
    assert not {first[name] for name in images} & {other[name] for name in other if name.endswith(".png")}
    assert len({first[name] for name in images}) == len(images)


def test_another_process_draws_the_same_bytes(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.test_phantoms import write; write(Path(sys.argv[1]))"
    project = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], cwd=project, check=True)
    there = tmp_path / "there"
    assert write(tmp_path / "here") == {
        str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()
    }


def test_the_files_are_those_asked_for(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    root = tmp_path / "new" / "phantoms"
    write_phantoms(root, seed=3, size_px=32, images_per_hospital=COUNTS, progress=lambda *now: heard.append(now))
    found = {
        hospital.name: {folder.name: len(list(folder.iterdir())) for folder in hospital.iterdir()}
        for hospital in root.iterdir()
        if hospital.is_dir()
    }
    n_images = sum(sum(counts.values()) for counts in COUNTS.values())
    assert found == COUNTS
    assert heard == [(n, n_images) for n in range(1, n_images + 1)]
    assert "synthetic" in (root / "SYNTHETIC.txt").read_text(encoding="utf-8")
    assert [path.name for path in root.parent.iterdir()] == ["phantoms"]  # nothing left of the drawing
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))


def test_the_table_of_lesions_lists_every_image_with_its_patient(tmp_path: Path) -> None:
    files = write(tmp_path / "phantoms")
    rows = rows_of(tmp_path / "phantoms")
    assert list(rows[0]) == ["path", "label", "x", "y", "radius_px", "patient"]
    assert sorted(row["path"] for row in rows) == sorted(name for name in files if name.endswith(".png"))
    labels_of: dict[str, set[str]] = {}
    for row in rows:
        match = re.search(r"(phantom-[abc]-p\d+)-s[123]\.png$", row["path"])
        assert match is not None
        assert match[1] == row["patient"]
        assert row["path"].split("/")[1] == row["label"]
        assert f"hospital-{row['patient'].split('-')[1]}" == row["path"].split("/")[0]
        labels_of.setdefault(row["patient"], set()).add(row["label"])
        place = (row["x"], row["y"], row["radius_px"])
        assert place == ("", "", "") if row["label"] == "notumor" else all(0 < float(value) < 32 for value in place)
    assert all(len(labels) == 1 for labels in labels_of.values())
    assert len(labels_of) < len(rows)  # some patients have several slices


def test_the_default_set_has_the_class_mix_its_story_needs() -> None:
    assert [sum(counts.values()) for counts in DEFAULT_COUNTS.values()] == [130, 110, 90]
    assert all(n >= 12 for counts in DEFAULT_COUNTS.values() for n in counts.values())
    assert [set(PHANTOM_CLASSES) - set(counts) for counts in DEFAULT_COUNTS.values()] == [set(), set(), {"notumor"}]


def test_one_hospitals_count_changes_no_other_hospitals_image(tmp_path: Path) -> None:
    before = write(tmp_path / "before")
    more = {"hospital-c": COUNTS["hospital-c"], "hospital-a": COUNTS["hospital-a"]}
    after = write(tmp_path / "after", counts=more | {"hospital-b": {"glioma": 9, "pituitary": 1}})
    for hospital in ("hospital-a", "hospital-c"):
        ours = {name: content for name, content in before.items() if name.startswith(hospital)}
        assert ours == {name: content for name, content in after.items() if name.startswith(hospital)}


def test_more_images_of_one_class_only_add_to_a_hospitals_images(tmp_path: Path) -> None:
    before = write(tmp_path / "before")
    after = write(tmp_path / "after", counts=COUNTS | {"hospital-a": COUNTS["hospital-a"] | {"glioma": 11}})
    for label in PHANTOM_CLASSES:
        folder = f"hospital-a/{label}/"
        ours = {content for name, content in before.items() if name.startswith(folder)}
        theirs = {content for name, content in after.items() if name.startswith(folder)}
        assert ours < theirs if label == "glioma" else ours == theirs  # patients are numbered anew, their images stay


@pytest.mark.parametrize("size_px", [64, 128])
@pytest.mark.parametrize("label", TUMOURS)
def test_the_lesion_lies_in_the_brain_and_is_what_makes_the_difference(label: str, size_px: int) -> None:
    brighter = []
    for number in range(12):
        patient = draw_patient(label, np.random.default_rng([1, number]))
        healthy = replace(patient, mass=None)
        ill, lesion = render_slice(patient, QUIET, size_px, np.random.default_rng([2, number]))
        well, nothing = render_slice(healthy, QUIET, size_px, np.random.default_rng([2, number]))
        assert lesion is not None
        assert nothing is None
        assert 0.04 < lesion.radius / size_px < 0.15

        assert patient.mass is not None
        across = patient.mass.x / BRAIN_HALF_WIDTH
        down = (patient.mass.y - BRAIN_Y) / BRAIN_HALF_HEIGHT
        assert np.hypot(across, down) < 1

        change = ill.astype(float) - well
        near, far = disc(lesion, size_px), ~disc(lesion, size_px, 3.5)
        assert np.abs(change[near]).mean() > 20
        assert np.abs(change[far]).mean() < 4
        assert np.abs(change[near]).mean() > 8 * np.abs(change[far]).mean()
        brighter.append(np.percentile(ill[near], 90) - np.percentile(well[near], 90))
    assert np.mean(brighter) > 15


def test_the_centre_of_the_change_is_where_the_lesion_is_said_to_be() -> None:
    for number in range(12):
        patient = draw_patient("pituitary", np.random.default_rng([1, number]))
        turned = replace(patient, rotation=0.5)  # a wrong sign in the turn would show
        ill, lesion = render_slice(turned, QUIET, 128, np.random.default_rng(number))
        well, _ = render_slice(replace(turned, mass=None), QUIET, 128, np.random.default_rng(number))
        assert lesion is not None
        change = np.clip(ill.astype(float) - well, 0, None)
        row, column = np.mgrid[:128, :128]
        where = (float((change * column).sum() / change.sum()), float((change * row).sum() / change.sum()))
        assert np.hypot(where[0] - lesion.x, where[1] - lesion.y) < max(0.5 * lesion.radius, 3)


def test_slices_of_one_patient_differ_little_and_their_head_not_with_the_label() -> None:
    heads = [replace(draw_patient(label, np.random.default_rng(5)), label="", mass=None) for label in PHANTOM_CLASSES]
    assert all(head == heads[0] for head in heads)
    patient = draw_patient("glioma", np.random.default_rng(5))
    first, second = (render_slice(patient, QUIET, 64, np.random.default_rng(n))[0].astype(float) for n in (1, 2))
    assert not np.array_equal(first, second)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.7


def test_no_lesion_where_there_is_no_tumour() -> None:
    for number in range(5):
        image, lesion = draw_slice("notumor", SCANNERS["hospital-b"], 64, np.random.default_rng(number))
        assert lesion is None
        assert (image.shape, image.dtype) == ((64, 64), np.uint8)


def test_every_scanner_has_its_own_look() -> None:
    means = {
        name: np.mean([draw_slice("notumor", scanner, 64, np.random.default_rng(n))[0] for n in range(6)])
        for name, scanner in SCANNERS.items()
    }
    looks = sorted(means.values())
    assert looks[1] - looks[0] > 2
    assert looks[2] - looks[1] > 2


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(n_written: int, n_images: int) -> None:
        if n_written > n_images // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "phantoms", seed=3, size_px=32, images_per_hospital=COUNTS, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_root_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.data.phantoms import write_phantoms\n"
        "kill = lambda done, total: done == 5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_phantoms(Path(sys.argv[1]), seed=3, size_px=32, progress=kill)"
    )
    root = tmp_path / "phantoms"
    project = Path(__file__).resolve().parent.parent
    ended = subprocess.run([sys.executable, "-c", code, str(root)], cwd=project, check=False)
    assert ended.returncode == -9
    assert not root.exists()
    write(root)
    assert len(rows_of(root)) == sum(sum(counts.values()) for counts in COUNTS.values())


def test_what_is_there_is_never_overwritten_and_strangers_are_named(tmp_path: Path) -> None:
    (tmp_path / "phantoms").mkdir()
    with pytest.raises(DataError, match="already there"):
        write(tmp_path / "phantoms")
    with pytest.raises(DataError, match="hospital-z"):
        write(tmp_path / "new", counts={"hospital-z": {"glioma": 1}})
    with pytest.raises(DataError, match="sarcoma"):
        write(tmp_path / "new", counts={"hospital-a": {"sarcoma": 1}})
    with pytest.raises(ValueError, match="sarcoma"):
        draw_patient("sarcoma", np.random.default_rng(0))
    assert not (tmp_path / "new").exists()
