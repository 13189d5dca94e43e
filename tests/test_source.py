"""Pooled sources: a folder or a manifest, whose images are whose, and one clear line for whatever is wrong."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.scanner import apply_scanner
from engine.data.subgroups import subgroup_values
from engine.data.unpacked import unpack_once
from engine.errors import ConfigError, DataError
from engine.sections import Scanner
from tests.conftest import Command

HEAD = """\
name = "Pool"
classes = ["a", "b"]
intended_input = "slices"
simulated = "Invented."

[model]
architecture = "compact-cnn"
image_size_px = 32
"""
FOLDER = """
[source]
folder = "train"

[partition]
method = "dirichlet"
alpha = 0.7

[split]
patient_pattern = '(p[0-9]+)-'
"""
MANIFEST = """
[source]
manifest = "table.csv"
images = "images"
suffix = ".png"
columns = { image = "id", label = "dx", patient = "lesion", hospital = "taken_by" }
aliases = { alpha = "a" }
"""
HOSPITALS = """
[[hospital]]
id = "north"
name = "North"

[[hospital]]
id = "south"
name = "South"
"""
MANY = "".join(f'[[hospital]]\nid = "h{number}"\nname = "H{number}"\n' for number in range(11))
TAKEN = HOSPITALS.replace('name = "North"', 'name = "North"\nsource = ["n1", "n2"]').replace(
    'name = "South"', 'name = "South"\nsource = ["s"]'
)
ROWS = [
    {"id": f"i{n:02d}", "dx": ("alpha", "b")[n % 2], "lesion": f"l{n // 2}", "taken_by": ("n1", "n2", "s")[n % 3]}
    for n in range(24)
]


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).save(path)


def write_table(root: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = tuple(ROWS[0])) -> None:
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both kinds of source side by side: train/ and table.csv with images/."""
    folder = tmp_path / "data"
    for n in range(40):
        draw(folder / "train" / "AB"[n % 2] / "deep" / f"p{n // 4}-{n}.png", n)
    for n, row in enumerate(ROWS):
        draw(folder / "images" / f"{row['id']}.png", 100 + n)
    write_table(folder, ROWS)
    return folder


def federation(tmp_path: Path, text: str) -> Federation:
    file = tmp_path / "pool.toml"
    file.write_text(HEAD + text, encoding="utf-8")
    return load_federation(file)


def read(tmp_path: Path, root: Path, text: str) -> FederationData:
    return read_federation_data(federation(tmp_path, text), root)


def test_a_pooled_folder_is_dealt_whole(tmp_path: Path, root: Path) -> None:
    data = read(tmp_path, root, FOLDER + HOSPITALS)
    held = [image for holding in data.holdings for image in holding.images]
    assert len(held) == 40
    assert len({image.path for image in held}) == 40
    homes: dict[str, set[str]] = {}
    for image in held:
        homes.setdefault(str(image.patient), set()).add(image.hospital)
    assert len(homes) == 10
    assert all(len(hospitals) == 1 for hospitals in homes.values())
    stats = data.stats_json()["North"]
    assert stats["dataset_id"] == "train"
    assert 0 <= stats["class_divergence"] <= 1


def test_a_manifest_says_whose_the_images_are(tmp_path: Path, root: Path) -> None:
    data = read(tmp_path, root, MANIFEST + TAKEN)
    north, south = (holding.images for holding in data.holdings)
    assert [image.path for image in south] == [f"images/{row['id']}.png" for row in ROWS if row["taken_by"] == "s"]
    assert len(north) == 16
    assert {image.label for image in north} == {"a", "b"}
    assert data.stats_json()["North"]["dataset_id"] == "table.csv (n1, n2)"


def test_a_lesion_seen_at_two_hospitals_stays_at_both_and_on_one_side(tmp_path: Path, root: Path) -> None:
    splits = read(tmp_path, root, MANIFEST + TAKEN).splits
    lesions: dict[str, list[tuple[str, str]]] = {}
    for split in splits:
        lesions.setdefault(str(split.image.patient), []).append((split.image.hospital, split.part))
    spanning = [seen for seen in lesions.values() if len({hospital for hospital, _ in seen}) > 1]
    assert len(spanning) > 4
    assert all(len({part for _, part in seen}) == 1 for seen in lesions.values())


def test_rows_that_no_hospital_claims_are_left_out_and_said(tmp_path: Path, root: Path) -> None:
    data = read(tmp_path, root, MANIFEST + TAKEN.replace('["n1", "n2"]', '["n1"]'))
    assert sum(len(holding.images) for holding in data.holdings) == 16
    said = [finding.sentence for finding in data.audit.findings if finding.kind == "unowned-images"]
    assert said == ["8 images of 'n2' belong to no hospital here and are left out"]


def test_files_that_the_manifest_does_not_name_are_a_note(tmp_path: Path, root: Path) -> None:
    draw(root / "images" / "stray.png", 5)
    (note,) = [f for f in read(tmp_path, root, MANIFEST + TAKEN).audit.findings if f.kind == "ignored-files"]
    assert (note.severity, note.paths) == ("note", ("images/stray.png",))


def test_a_lesion_without_a_name_is_unknown(tmp_path: Path, root: Path) -> None:
    write_table(root, [{**row, "lesion": " "} for row in ROWS])
    data = read(tmp_path, root, MANIFEST + TAKEN)
    assert all(image.patient is None for holding in data.holdings for image in holding.images)


def test_a_manifest_without_hospitals_can_be_dealt(tmp_path: Path, root: Path) -> None:
    text = MANIFEST.replace(', hospital = "taken_by"', "") + '[partition]\nmethod = "iid"\n' + HOSPITALS
    data = read(tmp_path, root, text)
    assert [len(holding.images) for holding in data.holdings] == [12, 12]


def test_an_unmatched_folder_of_the_source_is_a_warning(tmp_path: Path, root: Path) -> None:
    draw(root / "train" / "as" / "x.png", 7)
    (finding,) = [f for f in read(tmp_path, root, FOLDER + HOSPITALS).audit.findings if f.kind == "unmatched-folder"]
    assert finding.sentence.startswith("the source's folder 'as' is no class and is left out; ")


BAD_ROWS = [
    (
        [{**ROWS[0], "id": "x1"}, *ROWS[1:], {**ROWS[0], "id": "x2"}],
        ":2: 'x1.png' is not in ", " (and 1 more row like it)",
    ),
    ([{**ROWS[0], "id": "../train/A/deep/p0-0"}, *ROWS[1:]], ":2: '../train/A/deep/p0-0.png' is not in ", ""),
    ([*ROWS, ROWS[3]], ":5: 'i03.png' stands in several rows", " (and 1 more row like it)"),
    ([*ROWS[:5], {**ROWS[5], "dx": "zz"}, *ROWS[6:]], ":7: 'zz' (column 'dx') is no class; ", ""),
    ([row for row in ROWS if row["dx"] == "b"], ": holds no image of 'a'; ", "or drop the class"),
    (
        [row for row in ROWS if row["taken_by"] != "s"],
        ": column 'taken_by' has no 's' (hospital south)", "; it has: n1, n2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "words", "end"), BAD_ROWS)
def test_a_bad_manifest_is_one_line_with_its_row(
    tmp_path: Path, root: Path, rows: list[dict[str, str]], words: str, end: str
) -> None:
    write_table(root, rows)
    with pytest.raises(DataError) as caught:
        read(tmp_path, root, MANIFEST + TAKEN)
    assert str(caught.value).startswith(f"{root / 'table.csv'}{words}")
    assert str(caught.value).endswith(end)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, root: Path) -> None:
    write_table(root, ROWS, ("id", "dx", "taken_by"))
    with pytest.raises(
        DataError, match=r"has no column 'lesion' \(source.columns.patient\); it has: id, dx, taken_by$"
    ):
        read(tmp_path, root, MANIFEST + TAKEN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; mend source.manifest"),
        (b"\xff\xfe\x00", "is no CSV in UTF-8"),
        (b"", "has no"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_line(
    tmp_path: Path, root: Path, content: bytes | None, words: str
) -> None:
    (root / "table.csv").unlink()
    if content is not None:
        (root / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path, root, MANIFEST + TAKEN)


CANNOT_BE = [
    (FOLDER.replace("alpha = 0.7", "alpha = 0") + HOSPITALS, ":15: partition.alpha: Input should be greater than 0"),
    (FOLDER.replace("alpha = 0.7", "alpha = -1") + HOSPITALS, ":15: partition.alpha: Input should be greater than 0"),
    (FOLDER.replace("alpha = 0.7", "alfa = 1") + HOSPITALS, ":15: unknown key 'partition.alfa'; did you mean 'alpha'?"),
    (FOLDER.replace("alpha = 0.7", "") + HOSPITALS, ":13: partition: method 'dirichlet' needs 'alpha'"),
    (FOLDER.replace("dirichlet", "iid") + HOSPITALS, ":13: partition: method 'iid' has no 'alpha'"),
    (FOLDER.replace('folder = "train"', "") + HOSPITALS, ":10: source: needs either 'folder' (one folder per class)"),
    (FOLDER.replace('"train"', '"../train"') + HOSPITALS, ":11: source.folder: must be a path inside"),
    (FOLDER.replace('"train"', '"train"\nsuffix = ".png"') + HOSPITALS, "'suffix' goes with a manifest"),
    (MANIFEST.replace('images = "images"\n', "") + TAKEN, ":10: source: a manifest also needs 'images'"),
    (MANIFEST.replace("image =", 'imag = "x", image =') + TAKEN, "unknown key 'source.columns.imag'"),
    (MANIFEST.replace('= "a"', '= "c"') + TAKEN, "source: alias 'alpha' means 'c', which is not among the classes"),
    (MANIFEST + HOSPITALS, "hospital north: needs 'source', its words in the hospital column"),
    (MANIFEST + TAKEN.replace('["s"]', '["s", "n1"]'), "hospital sources: 'n1' stands twice"),
    (MANIFEST + '[partition]\nmethod = "iid"\n' + TAKEN, "already says whose the images are; take [partition] away"),
    ('[source]\nfolder = "train"\n' + HOSPITALS, "[source] has no hospital column; add a [partition]"),
    ('[partition]\nmethod = "iid"\n' + HOSPITALS, "[partition] deals a [source], and there is none"),
    (HOSPITALS, "hospital north: needs a 'folder', because there is no [source]"),
    (FOLDER + HOSPITALS + 'folder = "x"\n', "hospital south: 'folder' belongs to [source]"),
    (FOLDER + HOSPITALS + 'source = ["x"]\n', "hospital south: 'source' needs source.columns.hospital"),
    (FOLDER + HOSPITALS.replace("north", "external"), "hospital id 'external' means something else"),
    (FOLDER + HOSPITALS + "[hospital.scanner]\nnoise = 2\n", ":28: hospital.1.scanner.noise: Input should be less"),
    (
        FOLDER + HOSPITALS.replace('name = "North"', 'name = "North"\n[hospital.scanner]\nnoise = 0.1')
        + "[hospital.scanner]\nnoise = 2\n", ":30: hospital.1.scanner.noise: ",
    ),
]  # fmt: skip
QUOTAS = '[source]\nfolder = "train"\n[partition]\nmethod = "quotas"\n[partition.quotas]\n'
CANNOT_BE += [
    (QUOTAS + "north = { a = 1, b = 1 }\n" + HOSPITALS, "hospital south has no part of any class"),
    (QUOTAS + "north = { a = 1 }\nsouth = { a = 1 }\n" + HOSPITALS, "nobody has a part of 'b'"),
    (QUOTAS + "north = { a = 1 }\nsuth = { b = 1 }\n" + HOSPITALS, "'suth' is no hospital's id"),
    (QUOTAS + "north = { a = 1 }\nsouth = { c = 1 }\n" + HOSPITALS, "quotas.south: 'c' is not among the classes"),
    (QUOTAS + "north = { a = 1 }\nsouth = { b = -1 }\n" + HOSPITALS, ":15: partition.quotas.south.b: Input"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), CANNOT_BE)
def test_settings_that_cannot_be_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        federation(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "pool.toml"))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        FOLDER + HOSPITALS,
        '[[hospital]]\nid = "n"\nname = "N"\nfolder = "x"\n[hospital.scanner]\nblur = 1.0\n',
    ],
)
def test_what_is_not_real_must_be_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(HEAD.replace('simulated = "Invented."', "") + text, encoding="utf-8")
    with pytest.raises(ConfigError, match="say so in 'simulated'"):
        load_federation(file)


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        (FOLDER.replace("alpha = 0.7", "alpha = 0") + HOSPITALS, None, "greater than 0"),
        (FOLDER.replace("alpha = 0.7", "alpha = -1") + HOSPITALS, None, "greater than 0"),
        (FOLDER.replace("alpha = 0.7", "alpha = nan") + HOSPITALS, None, "finite"),
        (FOLDER.replace("alpha = 0.7", "alpha = 1e-300") + HOSPITALS, None, "in 100 draws of alpha = 1e-300"),
        (FOLDER.replace("(p[0-9]+)-", "(p)") + HOSPITALS, None, "holds 1 group (patients"),
        (FOLDER + MANY, None, "holds 10 groups (patients with their copies) for 11 hospitals that need 2 each"),
        (FOLDER.replace('"train"', '"images"') + HOSPITALS, None, "holds no image of 'a'"),
        (MANIFEST.replace('{ alpha = "a" }', '{ alpha = "b" }') + TAKEN, None, "holds no image of 'a'"),
        (MANIFEST + TAKEN, "images/i00.png", "'i00.png' is not in"),
    ],
)
@pytest.mark.parametrize("command", ["audit", "train"])
def test_the_commands_end_with_2_and_one_line(
    command: str, text: str, change: str | None, words: str, tmp_path: Path, root: Path, engine: Command
) -> None:
    (tmp_path / "pool.toml").write_text(HEAD + text, encoding="utf-8")
    if change:
        (root / change).unlink()
    artifacts = ["--artifacts", tmp_path / "artifacts"] if command == "train" else []
    assert words in engine(command, tmp_path / "pool.toml", "--data", root, *artifacts).error
    assert not (tmp_path / "artifacts").exists()


def test_a_class_that_no_hospital_folder_holds_stops_a_training(tmp_path: Path, root: Path, engine: Command) -> None:
    """The audit goes on and names it, because it names everything that is wrong."""
    own = '[[hospital]]\nid = "n"\nname = "N"\nfolder = "train"\n'
    (tmp_path / "own.toml").write_text(HEAD.replace('["a", "b"]', '["a", "b", "c"]') + own, encoding="utf-8")
    arguments = [tmp_path / "own.toml", "--data", root]
    assert "no hospital holds an image of 'c'" in engine("train", *arguments, "--artifacts", tmp_path / "runs").error
    assert not (tmp_path / "runs").exists()
    assert "error: no hospital holds an image of 'c'" in engine("audit", *arguments).out


SHIFT = Scanner(noise=0.05, contrast=0.6, blur=1.0)
SHA = "ab" * 32


def gradient(channels: int = 0) -> np.ndarray:
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    return np.repeat(grey[:, :, None], channels, axis=2) if channels else grey


def test_a_scanner_shift_is_the_same_whenever_an_image_is_read() -> None:
    once, again = apply_scanner(gradient(), SHIFT, SHA), apply_scanner(gradient(), SHIFT, SHA)
    assert np.array_equal(once, again)
    assert once.dtype == np.uint8
    assert not np.array_equal(once, apply_scanner(gradient(), SHIFT, "cd" * 32))


def test_each_part_of_a_scanner_shift_does_its_own() -> None:
    plain = gradient().astype(float)
    noise = apply_scanner(np.full((200, 200), 128, np.uint8), Scanner(noise=0.05), SHA)
    assert noise.std() == pytest.approx(255 * 0.05, rel=0.03)
    flat = apply_scanner(gradient(), Scanner(contrast=0.5), SHA)
    assert flat.std() == pytest.approx(plain.std() / 2, rel=0.01)
    assert flat.mean() == pytest.approx(plain.mean(), abs=0.6)
    steps = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    assert apply_scanner(steps, Scanner(blur=2.0), SHA).std() < 0.9 * steps.std()
    assert np.array_equal(apply_scanner(steps, Scanner(), SHA), steps)


def test_a_grey_image_stays_grey_in_colour() -> None:
    shown = apply_scanner(gradient(3), SHIFT, SHA)
    assert shown.shape == (48, 64, 3)
    assert (shown.max(axis=2) == shown.min(axis=2)).all()
    assert np.abs(shown[:, :, 0].astype(int) - apply_scanner(gradient(), SHIFT, SHA)).max() <= 1


def test_a_scanner_changes_its_own_hospitals_pixels_alone_and_the_cache_knows(tmp_path: Path, root: Path) -> None:
    plain = read(tmp_path, root, MANIFEST + TAKEN)
    shifted_text = MANIFEST + TAKEN + "[hospital.scanner]\ncontrast = 0.3\n"
    for _ in range(2):  # decoded, then from the cache
        shifted = read(tmp_path, root, shifted_text)
        assert np.array_equal(shifted.holdings[0].pixels, plain.holdings[0].pixels)
        assert not np.array_equal(shifted.holdings[1].pixels, plain.holdings[1].pixels)
        assert shifted.holdings[1].pixels.std() < 0.5 * plain.holdings[1].pixels.std()
    again = read(tmp_path, root, MANIFEST + TAKEN)
    assert np.array_equal(again.holdings[1].pixels, plain.holdings[1].pixels)


def test_an_archive_is_unpacked_once_and_never_outside(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("train/cat/1.png", b"one")
        opened.writestr("train/dog/2.png", b"two")
    folder = unpack_once(archive, tmp_path / "cache")
    assert (folder / "train" / "cat" / "1.png").read_bytes() == b"one"
    (folder / "train" / "cat" / "1.png").write_bytes(b"kept")
    assert unpack_once(archive, tmp_path / "cache") == folder
    assert (folder / "train" / "cat" / "1.png").read_bytes() == b"kept", "not unpacked again"
    assert not list((tmp_path / "cache").glob(".*"))
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../out.png", b"out")
    with pytest.raises(DataError, match="leads out of it"):
        unpack_once(archive, tmp_path / "cache")
    with pytest.raises(DataError, match="no such archive"):
        unpack_once(tmp_path / "none.zip", tmp_path / "cache")


def aged(ages: list[str]) -> list[dict[str, str]]:
    return [row | {"age": age, "sex": ("f", "")[n % 2]} for n, (row, age) in enumerate(zip(ROWS, ages, strict=True))]


BANDS = MANIFEST + "subgroups = { age = [40, 60], sex = [] }\n" + TAKEN


def test_subgroups_are_bands_and_words_of_tested_images_alone(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.data.subgroups.FEWEST_PATIENTS", 2)
    ages = ["39.5", "40", "59", "60", "", "unknown"] * 4
    write_table(root, aged(ages), (*ROWS[0], "age", "sex"))
    data = read(tmp_path, root, BANDS)
    told = data.subgroups_json()
    tested = {split.image.path for split in data.splits if split.part != "train"}
    assert set(told["paths"]) == tested
    assert len(tested) < 24
    expected = ["below 40", "40 to below 60", "40 to below 60", "60 and above", "unknown", "unknown"] * 4
    number = [int(Path(path).stem[1:]) for path in told["paths"]]
    assert told["columns"] == {
        "age": [expected[n] for n in number],
        "sex": [("f", "unknown")[n % 2] for n in number],
    }


@pytest.mark.parametrize(
    ("subgroups", "ages", "said"),
    [
        ("{ lesion = [] }", ["1"] * 24, r"column 'lesion' says which image or patient it is; take it away"),
        ("{ age = [60, 40] }", ["1"] * 24, r"the edges of 'age' must rise"),
        ("{ weight = [] }", ["1"] * 24, r"has no column 'weight' \(source.subgroups.weight\)"),
        ("{ age = [40] }", ["old"] * 24, r"table.csv:2: 'old' \(column 'age'\) is no number"),
        ("{ age = [] }", [f"name {n}" for n in range(24)], r"has 24 different words, more than 20"),
        ("{ age = [] }", [str(n % 2) for n in range(24)], r"holds numbers alone: give it edges"),
        ("{ age = [] }", [f"name {n // 8}" for n in range(24)], r"has 3 different words of 4.0 patients each"),
        ("{ age = [30, 60] }", [str(30 * (n // 8)) for n in range(24)], r"of 4.0 patients each on average, fewer than"),
    ],
)
def test_subgroups_that_cannot_be_are_refused(
    tmp_path: Path, root: Path, subgroups: str, ages: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.data.subgroups.MAX_WORDS", 20)
    write_table(root, aged(ages), (*ROWS[0], "age", "sex"))
    with pytest.raises((ConfigError, DataError), match=said):
        read(tmp_path, root, MANIFEST + f"subgroups = {subgroups}\n" + TAKEN)


def test_bands_of_large_numbers_keep_their_edges_apart() -> None:
    rows = [(n, {"dose": str(1_000_000 + n)}) for n in range(30)]
    told = subgroup_values(Path("table.csv"), rows, {"dose": [1_000_010, 1_000_020]}, [None] * 30)
    assert list(dict.fromkeys(told)) == [("below 1000010",), ("1000010 to below 1000020",), ("1000020 and above",)]
