"""A hospital's folder -> its labelled images, with everything else kept by name."""

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import Federation
from engine.data.cache import default_cache
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.hospitals import HospitalImages, load_hospital, patient_of
from engine.data.labels import match_label, nearest_class
from engine.errors import DataError
from engine.results.files import sha256_of

SIDE = 32


def a_federation(**changes: object) -> Federation:
    hospital = {"id": "north", "name": "North", "folder": "north", "aliases": {"pituitary tumor": "pituitary"}}
    return Federation.model_validate(
        {
            "name": "Test",
            "data": "test",
            "classes": ["glioma", "notumor", "pituitary"],
            "intended_input": "slices",
            "model": {"image_size_px": SIDE},
            "hospital": [hospital],
            **changes,
        }
    )


def draw(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (SIDE, SIDE), shade).save(path)
    return path


def load(root: Path, cache: Path, federation: Federation | None = None) -> HospitalImages:
    federation = federation or a_federation()
    return load_hospital(federation, federation.hospital[0], root, cache)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    draw(folder / "north" / "glioma" / "b.png", 20)
    draw(folder / "north" / "glioma" / "a.png", 10)
    draw(folder / "north" / "notumor" / "c.png", 30)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_images_come_in_order_with_path_label_hash_and_pixels(root: Path, cache: Path) -> None:
    found = load(root, cache)
    assert [(image.path, image.label) for image in found.images] == [
        ("north/glioma/a.png", "glioma"),
        ("north/glioma/b.png", "glioma"),
        ("north/notumor/c.png", "notumor"),
    ]
    assert [image.sha256 for image in found.images] == [sha256_of(root / image.path) for image in found.images]
    assert {image.hospital for image in found.images} == {"north"}
    assert found.pixels.shape == (3, SIDE, SIDE, 1)
    assert found.pixels.dtype == np.uint8
    assert found.pixels.mean(axis=(1, 2, 3)).tolist() == [10, 20, 30]


def test_a_clean_folder_has_nothing_to_report(root: Path, cache: Path) -> None:
    found = load(root, cache)
    reported = (found.unreadable, found.unmatched_folders, found.empty_folders, found.ignored_files)
    assert reported == ((), (), (), ())
    assert not found.folder_missing


def test_a_colour_federation_gets_three_channels(root: Path, cache: Path) -> None:
    federation = a_federation(model={"image_size_px": SIDE, "colour": True})
    assert load(root, cache, federation).pixels.shape == (3, SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("No_Tumor", "notumor"),
        ("NO TUMOR", "notumor"),
        ("no-tumor", "notumor"),
        ("Pituitary_Tumor", "pituitary"),
        ("pituitary", "pituitary"),
    ],
)
def test_a_folder_is_matched_whatever_its_spelling(root: Path, cache: Path, folder: str, label: str) -> None:
    draw(root / "north" / folder / "z.png")
    by_path = {image.path: image.label for image in load(root, cache).images}
    assert by_path[f"north/{folder}/z.png"] == label


def test_two_folders_of_one_class_are_both_read(root: Path, cache: Path) -> None:
    draw(root / "north" / "Glioma" / "a.png")
    labels = [image.label for image in load(root, cache).images]
    assert labels.count("glioma") == 3


def test_an_alias_never_takes_a_classs_own_name_away() -> None:
    assert match_label("glioma", ["glioma", "notumor"], {"Glioma": "notumor"}) == "glioma"


@pytest.mark.parametrize("folder", ["gliomas", "glio", "tumor", "", "glioma2"])
def test_a_folder_that_only_resembles_a_class_is_no_match(folder: str) -> None:
    assert match_label(folder, ["glioma", "notumor"], {}) is None


@pytest.mark.parametrize(
    ("folder", "nearest"),
    [("gliomas", "glioma"), ("brain_glioma_tumor", "glioma"), ("gloima", "glioma"), ("xyz", None)]
    + [(name, None) for name in ("tumor", "brain_tumor", "Tumour", "other", "no glioma", "not_glioma")],
)
def test_the_nearest_class_is_a_hint(folder: str, nearest: str | None) -> None:
    assert nearest_class(folder, ["glioma", "notumor"]) == nearest


def test_a_hint_never_turns_a_disease_into_its_absence() -> None:
    assert nearest_class("abnormal", ["normal", "pneumonia"]) is None
    assert nearest_class("chest normal", ["normal", "pneumonia"]) == "normal"


def test_an_unmatched_folder_is_named_and_its_images_left_out(root: Path, cache: Path) -> None:
    draw(root / "north" / "scans" / "z.png")
    found = load(root, cache)
    assert found.unmatched_folders == ("scans",)
    assert len(found.images) == len(found.pixels) == 3


def test_an_empty_class_folder_is_named(root: Path, cache: Path) -> None:
    (root / "north" / "pituitary").mkdir()
    assert load(root, cache).empty_folders == ("pituitary",)


def test_a_class_folder_of_other_files_is_empty_and_names_them(root: Path, cache: Path) -> None:
    (root / "north" / "pituitary").mkdir()
    (root / "north" / "pituitary" / "notes.txt").write_text("x", encoding="utf-8")
    found = load(root, cache)
    assert found.empty_folders == ("pituitary",)
    assert found.ignored_files == ("north/pituitary/notes.txt",)


def test_images_deeper_in_a_class_folder_are_found(root: Path, cache: Path) -> None:
    draw(root / "north" / "glioma" / "patient-1" / "s.png")
    assert "north/glioma/patient-1/s.png" in [image.path for image in load(root, cache).images]


@pytest.mark.parametrize("name", ["X.PNG", "x.Jpg", "x.jpeg"])
def test_a_suffix_in_capitals_is_an_image_too(root: Path, cache: Path, name: str) -> None:
    draw(root / "north" / "pituitary" / name)
    assert f"north/pituitary/{name}" in [image.path for image in load(root, cache).images]


def test_an_image_outside_every_class_folder_is_named(root: Path, cache: Path) -> None:
    draw(root / "north" / "loose.png")
    found = load(root, cache)
    assert len(found.images) == 3
    assert "north/loose.png" in found.ignored_files


def test_an_unreadable_image_is_named_with_its_reason_and_left_out(root: Path, cache: Path) -> None:
    (root / "north" / "glioma" / "aa.png").write_text("a letter", encoding="utf-8")
    (root / "north" / "glioma" / "empty.png").touch()
    found = load(root, cache)
    assert found.unreadable == (
        ("north/glioma/aa.png", "is no PNG, JPEG or DICOM image"),
        ("north/glioma/empty.png", "the file is empty"),
    )
    assert [image.path[6:] for image in found.images] == ["glioma/a.png", "glioma/b.png", "notumor/c.png"]
    assert found.pixels.mean(axis=(1, 2, 3)).tolist() == [10, 20, 30]


def test_unreadable_images_are_named_from_the_cache_too(root: Path, cache: Path) -> None:
    (root / "north" / "glioma" / "aa.png").write_text("a letter", encoding="utf-8")
    first, second = load(root, cache), load(root, cache)
    assert second.unreadable == first.unreadable != ()
    assert second.images == first.images


def test_a_hospital_of_unreadable_images_alone_loads_twice(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "north" / "glioma").mkdir(parents=True)
    (tmp_path / "north" / "glioma" / "a.png").write_text("a letter", encoding="utf-8")
    for _ in range(2):
        found = load(tmp_path, cache)
        assert found.images == ()
        assert found.pixels.shape == (0, SIDE, SIDE, 1)
        assert [path for path, _ in found.unreadable] == ["north/glioma/a.png"]


def test_a_missing_hospital_folder_is_told_and_holds_nothing(tmp_path: Path, cache: Path) -> None:
    found = load(tmp_path, cache)
    assert found.folder_missing
    assert found.images == ()
    assert found.pixels.shape == (0, SIDE, SIDE, 1)


def test_a_file_where_the_folder_should_be_counts_as_missing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "north").write_text("x", encoding="utf-8")
    assert load(tmp_path, cache).folder_missing


# --- patients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "pattern", "patient"),
    [
        ("north/glioma/p12-s3.png", r"(p\d+)-s", "p12"),
        ("north/glioma/other.png", r"(p\d+)-s", None),
        ("north/glioma/p12-s3.png", None, None),
        ("north/glioma/patient-7/s.png", r"/(patient-\d+)/", "patient-7"),
    ],
)
def test_the_pattern_names_the_patient(path: str, pattern: str | None, patient: str | None) -> None:
    assert patient_of(path, pattern) == patient


def test_every_image_carries_its_patient(root: Path, cache: Path) -> None:
    federation = a_federation(split={"patient_pattern": r"/([ab])\.png"})
    assert [image.patient for image in load(root, cache, federation).images] == ["a", "b", None]


# --- the cache -----------------------------------------------------------------------------------------------------


def test_the_second_load_reads_the_cache_instead_of_the_files(root: Path, cache: Path) -> None:
    load(root, cache)
    (stored,) = cache.glob("*.pixels.npy")
    pixels = np.load(stored)
    pixels[:] = 7
    np.save(stored, pixels)
    assert np.unique(load(root, cache).pixels).tolist() == [7]


def test_progress_is_told_on_the_first_load_alone(root: Path, cache: Path) -> None:
    federation = a_federation()
    for expected in ([(1, 3), (2, 3), (3, 3)], []):
        heard: list[tuple[int, int]] = []
        load_hospital(federation, federation.hospital[0], root, cache, lambda done, of, to=heard: to.append((done, of)))
        assert heard == expected


def test_the_cache_is_for_its_owner_alone(root: Path, cache: Path) -> None:
    load(root, cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_cache_that_was_open_to_others_is_closed(root: Path, cache: Path) -> None:
    cache.mkdir(mode=0o755)
    load(root, cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_no_half_written_file_stays_in_the_cache(root: Path, cache: Path) -> None:
    load(root, cache)
    names = sorted(path.name.partition(".")[2] for path in cache.iterdir())
    assert names == ["greys.npy", "json", "looks.npy", "pixels.npy"]


def test_changed_bytes_give_new_pixels(root: Path, cache: Path) -> None:
    load(root, cache)
    draw(root / "north" / "glioma" / "a.png", 200)
    assert load(root, cache).pixels.mean(axis=(1, 2, 3)).tolist() == [200, 20, 30]


def test_another_image_size_gives_new_pixels(root: Path, cache: Path) -> None:
    load(root, cache)
    bigger = load(root, cache, a_federation(model={"image_size_px": 48}))
    assert bigger.pixels.shape == (3, 48, 48, 1)


def test_an_added_and_a_removed_file_are_noticed(root: Path, cache: Path) -> None:
    load(root, cache)
    draw(root / "north" / "pituitary" / "d.png", 40)
    (root / "north" / "glioma" / "a.png").unlink()
    found = load(root, cache)
    assert [image.path[6:] for image in found.images] == ["glioma/b.png", "notumor/c.png", "pituitary/d.png"]
    assert found.pixels.mean(axis=(1, 2, 3)).tolist() == [20, 30, 40]


@pytest.mark.parametrize("suffix", [".pixels.npy", ".greys.npy", ".looks.npy", ".json"])
def test_a_damaged_cache_is_decoded_anew(root: Path, cache: Path, suffix: str) -> None:
    load(root, cache)
    (stored,) = cache.glob(f"*{suffix}")
    stored.write_bytes(stored.read_bytes()[:-10])
    assert load(root, cache).pixels.mean(axis=(1, 2, 3)).tolist() == [10, 20, 30]


def test_a_cache_that_cannot_be_written_says_what_to_set(root: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(DataError) as caught:
        load(root, in_the_way / "cache")
    assert "set CONSILIUM_CACHE" in str(caught.value)


@pytest.mark.parametrize(
    ("consilium", "xdg", "expected"),
    [
        ("/c", "/x", "/c/images"),
        (None, "/x", "/x/consilium/images"),
        (None, None, "/h/.cache/consilium/images"),
        ("", "", "/h/.cache/consilium/images"),
    ],
)
def test_where_the_cache_lies(
    monkeypatch: pytest.MonkeyPatch, consilium: str | None, xdg: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/h")
    for name, value in (("CONSILIUM_CACHE", consilium), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)


# --- a whole federation --------------------------------------------------------------------------------------------


def test_a_missing_data_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data folder"):
        read_federation_data(a_federation(), tmp_path / "absent")


def test_every_phantom_is_read_and_split_once(tiny_data: FederationData) -> None:
    assert [len(holding.images) for holding in tiny_data.holdings] == [56, 54, 42]
    held = [(image.hospital, image.path) for holding in tiny_data.holdings for image in holding.images]
    assert [(split.image.hospital, split.image.path) for split in tiny_data.splits] == held


def test_the_splits_file_names_every_image_once_by_relative_path_and_hash(tiny_data: FederationData) -> None:
    written = tiny_data.splits_json()
    assert (written["schema_version"], written["seed"]) == (1, 0)
    assert len({entry["path"] for entry in written["images"]}) == len(written["images"]) == 152
    for entry in written["images"]:
        assert list(entry) == ["hospital", "path", "label", "split", "group", "sha256"]
        assert entry["path"].startswith(f"{entry['hospital']}/{entry['label']}/")
        assert entry["split"] in {"train", "validation", "test"}
    first = written["images"][0]
    assert first["sha256"] == sha256_of(tiny_data.root / first["path"])


def test_the_statistics_have_the_reference_systems_keys(tiny_data: FederationData) -> None:
    assert list(tiny_data.stats_json()) == ["Phantom North", "Phantom Coast", "Phantom Valley"]
    assert tiny_data.stats_json()["Phantom Valley"] == {
        "total_samples": 42,
        "class_distribution": {"glioma": 14, "meningioma": 12, "notumor": 0, "pituitary": 16},
        "class_divergence": pytest.approx(0.09455, abs=1e-5),
        "location": "Innsbruck (invented)",
        "specialty": "oncology referral",
        "dataset_id": "hospital-c",
        "unmatched_folders": [],
    }


def test_a_data_folder_that_lacks_a_hospital_is_not_drawn_over(
    tiny_federation: Federation, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom_root, tmp_path / "data" / "phantoms")
    shutil.rmtree(tmp_path / "data" / "phantoms" / "hospital-c")
    found = read_federation_data(tiny_federation)
    assert [holding.folder_missing for holding in found.holdings] == [False, False, True]
