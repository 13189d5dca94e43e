"""Federation files: what they may say, and in which words the rest is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.config import Federation, data_root, load_federation, require_data_root
from engine.errors import ConfigError, DataError
from engine.sections import ARMS

GOOD = """\
name = "Test"
classes = ["glioma", "notumor"]
intended_input = "slices"

[split]
seed = 4

[training]
rounds = 3

[[hospital]]
id = "north"
name = "North"
folder = "a"
aliases = { "brain glioma" = "glioma" }

[[hospital]]
id = "south"
name = "South"
folder = "b"
"""


def write(folder: Path, text: str = GOOD, name: str = "two-hospitals.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, "the test's own text no longer fits"
    return GOOD.replace(old, new)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_federation(write(folder, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_small_file_gets_the_documented_defaults(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path))
    assert federation.classes == ("glioma", "notumor")
    assert [hospital.id for hospital in federation.hospital] == ["north", "south"]
    assert (federation.split.train, federation.split.validation, federation.split.test) == (0.70, 0.15, 0.15)
    assert federation.split.seed == 4
    assert federation.arms == ARMS == ("federated", "local", "central")
    assert federation.training.rounds == 3
    assert federation.model.architecture == "resnet18"


@pytest.mark.parametrize(
    ("file", "data"), [("two-hospitals.toml", "two-hospitals"), ("My Brain_MRI.toml", "my-brain-mri")]
)
def test_the_data_key_defaults_to_the_files_name(tmp_path: Path, file: str, data: str) -> None:
    assert load_federation(write(tmp_path, name=file)).data == data


def test_a_given_data_key_wins_over_the_files_name(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path, 'data = "elsewhere"\n' + GOOD)).data == "elsewhere"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('nmae = "x"\n' + GOOD, 1, "nmae"),
        (changed("seed = 4", "sede = 4"), 6, "split.sede"),
        (changed("rounds = 3", "rounds = 3\nepochs = 2"), 10, "training.epochs"),
        (changed('folder = "b"', 'folder = "b"\nbeds = 80'), 21, "hospital.1.beds"),
        (changed("[training]", "[trainning]"), 8, "trainning"),
        (GOOD + "\n[training.augment]\nflipp = true\n", 23, "training.augment.flipp"),
    ],
)
def test_an_unknown_key_is_refused_with_file_line_and_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'two-hospitals.toml'}:{line}: unknown key '{key}'")


def test_an_unknown_key_comes_with_the_key_it_resembles(tmp_path: Path) -> None:
    assert refusal(tmp_path, changed("rounds = 3", "ronds = 3")).endswith("did you mean 'rounds'?")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (changed("rounds = 3", "rounds = 0"), 9, "training.rounds"),
        (changed("rounds = 3", 'rounds = "many"'), 9, "training.rounds"),
        (changed("rounds = 3", "learning_rate = inf"), 9, "training.learning_rate"),
        (changed("rounds = 3", "learning_rate = nan"), 9, "training.learning_rate"),
        (changed("seed = 4", "seed = -1"), 6, "split.seed"),
        (changed("seed = 4", "patient_pattern = '(p'"), 6, "split.patient_pattern"),
        (changed("seed = 4", r"patient_pattern = 'p\d+'"), 6, "split.patient_pattern"),
        (changed("seed = 4", r"patient_pattern = '(a)(b)'"), 6, "split.patient_pattern"),
        (changed('id = "south"', 'id = "South Side"'), 18, "hospital.1.id"),
        (changed('folder = "b"', 'folder = "../b"'), 20, "hospital.1.folder"),
        (changed('folder = "b"', 'folder = "/data/b"'), 20, "hospital.1.folder"),
        (changed('classes = ["glioma", "notumor"]', 'classes = ["glioma"]'), 2, "classes"),
        (GOOD + 'location = { place = "x", latitude = 91.0, longitude = 0.0 }\n', 21, "hospital.1.location.latitude"),
        ('arms = ["federated", "centrall"]\n' + GOOD, 1, "arms.1"),
    ],
)
def test_a_bad_value_is_refused_with_file_line_and_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'two-hospitals.toml'}:{line}: {key}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed("seed = 4", "train = 0.5"), "train + validation + test must be 1"),
        (changed('id = "south"', 'id = "north"'), "'north' stands twice"),
        (changed('name = "South"', 'name = "North"'), "'North' stands twice"),
        (changed('folder = "b"', 'folder = "a"'), "'a' stands twice"),
        (changed('["glioma", "notumor"]', '["Glioma", "notumor", "glioma"]'), "'glioma' stands twice"),
        (changed('id = "south"', 'id = "all"'), "hospital id 'all' means something else"),
        (changed('id = "south"', 'id = "pooled"'), "hospital id 'pooled' means something else"),
        (changed('["glioma", "notumor"]', '["glioma", "glioma"]'), "'glioma' stands twice"),
        ('arms = ["local", "local"]\n' + GOOD, "'local' stands twice"),
        ("arms = []\n" + GOOD, "name at least one of federated, local, central"),
        (
            changed('= "glioma" }', '= "tumour" }'),
            "alias 'brain glioma' means 'tumour', which is not among the classes",
        ),
        (changed("rounds = 3", "min_hospitals = 3"), "min_hospitals is 3, but there are 2 hospitals"),
        (GOOD + "\n[model]\nfreeze_backbone = true\n", "freeze_backbone needs weights"),
        (
            GOOD + '\n[model]\narchitecture = "compact-cnn"\nweights = "imagenet"\n',
            "exist for resnet18, resnet50 and efficientnet-lite0 only",
        ),
    ],
)
def test_settings_that_cannot_be_true_together_are_refused(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(str(tmp_path / "two-hospitals.toml"))
    assert words in message


@pytest.mark.parametrize("key", ["name", "classes", "intended_input"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    text = "".join(line for line in GOOD.splitlines(keepends=True)[:3] if not line.startswith(f"{key} "))
    assert refusal(tmp_path, text + GOOD.split("\n\n", 1)[1]).endswith(f"the key '{key}' is missing")


def test_text_that_is_no_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD + "what is this\n")
    assert "is not valid TOML" in message
    assert "line 21" in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_federation(path)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("override", "value"),
    [("training.rounds=5", 5), (" training.rounds =5", 5), ("training.rounds= 5", 5)],
)
def test_a_set_changes_one_setting_and_leaves_the_rest(tmp_path: Path, override: str, value: int) -> None:
    before = load_federation(write(tmp_path))
    after = load_federation(write(tmp_path), [override])
    assert after.training.rounds == value
    assert after.training.model_copy(update={"rounds": 3}) == before.training
    assert after.model_copy(update={"training": before.training}) == before


def test_a_set_value_without_quotes_is_taken_as_text(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path), ["model.architecture=compact-cnn"]).model.architecture == "compact-cnn"


def test_a_set_reaches_a_section_that_the_file_does_not_have(tmp_path: Path) -> None:
    augment = load_federation(write(tmp_path), ["training.augment.flip=false"]).training.augment
    assert (augment.flip, augment.rotation_degrees) == (False, 10.0)


def test_the_last_set_of_a_key_wins(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path), ["training.rounds=5", "training.rounds=6"]).training.rounds == 6


@pytest.mark.parametrize("override", ["training.rounds", "=5", "training..rounds=5", "", ".=1"])
def test_a_set_of_another_form_is_refused_with_an_example(tmp_path: Path, override: str) -> None:
    assert "write it as section.key=value, e.g. training.rounds=5" in refusal(tmp_path, GOOD, override)


@pytest.mark.parametrize("override", ["name.first=x", "hospital.north.name.first=x", "training.rounds.first=1"])
def test_a_set_below_something_that_is_no_section_is_refused(tmp_path: Path, override: str) -> None:
    message = refusal(tmp_path, GOOD, override)
    assert message.startswith(f"--set {override}: ")
    assert message.endswith("is no section")


def test_a_set_reaches_one_hospital_by_its_id(tmp_path: Path) -> None:
    north, south = load_federation(write(tmp_path), ["hospital.south.labelled_fraction=0.5"]).hospital
    assert (north.labelled_fraction, south.labelled_fraction) == (None, 0.5)


@pytest.mark.parametrize("override", ["hospital.0.name=x", "hospital.east.name=x", "hospital.north=x"])
def test_a_set_of_no_hospital_names_those_there_are(tmp_path: Path, override: str) -> None:
    message = refusal(tmp_path, GOOD, override)
    assert message == f"--set {override}: write it as hospital.ID.key=value; ID is one of north, south"


def test_a_bad_value_of_a_hospitals_set_is_blamed_on_it(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD, "hospital.south.labelled_fraction=2")
    assert "two-hospitals.toml with --set hospital.south.labelled_fraction: " in message


def test_a_set_of_an_unknown_key_names_the_key(tmp_path: Path) -> None:
    assert "unknown key 'training.roundz'; did you mean 'rounds'?" in refusal(tmp_path, GOOD, "training.roundz=5")


def test_a_bad_value_of_a_set_is_not_blamed_on_a_line_of_the_file(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD, "training.rounds=0")
    assert "training.rounds" in message
    assert ":9:" not in message  # that line says 3


def test_a_federation_cannot_be_changed(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path))
    with pytest.raises(ValidationError):
        federation.training.rounds = 9


def test_every_hospitals_name_says_simulated_in_a_simulated_federation(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path, 'simulated = "They took no part."\n' + GOOD))
    assert [federation.display_name(key) for key in ("north", "south")] == ["North (simulated)", "South (simulated)"]


def test_no_name_says_simulated_in_a_real_federation(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path)).display_name("north") == "North"


def with_aliases(folder: Path, north: str, south: str) -> Federation:
    text = changed('{ "brain glioma" = "glioma" }', north).replace('folder = "b"', f'folder = "b"\naliases = {south}')
    return load_federation(write(folder, text))


def test_the_aliases_of_all_hospitals_are_joined(tmp_path: Path) -> None:
    federation = with_aliases(tmp_path, '{ gl = "glioma", x = "notumor" }', '{ healthy = "notumor", gl = "glioma" }')
    assert federation.aliases == {"gl": "glioma", "x": "notumor", "healthy": "notumor"}


def test_an_alias_that_two_hospitals_use_differently_is_left_out(tmp_path: Path) -> None:
    federation = with_aliases(tmp_path, '{ t1 = "glioma", gl = "glioma" }', '{ t1 = "notumor" }')
    assert federation.aliases == {"gl": "glioma"}


def test_two_spellings_of_an_alias_that_hospitals_use_differently_are_left_out(tmp_path: Path) -> None:
    federation = with_aliases(tmp_path, '{ "Scan_T1" = "glioma", gl = "glioma" }', '{ "scan t1" = "notumor" }')
    assert federation.aliases == {"gl": "glioma"}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return load_federation(write(tmp_path))


def test_a_data_option_wins_over_the_environment(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", "/env")
    assert data_root(federation, Path("given")) == Path("given")


def test_the_environment_wins_over_the_working_folder(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", "/env")
    assert data_root(federation) == Path("/env/two-hospitals")


@pytest.mark.parametrize("value", [None, ""])
def test_without_an_environment_data_lies_in_data(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    else:
        monkeypatch.setenv("CONSILIUM_DATA", value)
    assert data_root(federation) == Path("data/two-hospitals")


def test_phantoms_absent_from_the_environments_folder_are_looked_for_in_data(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    phantoms = federation.model_copy(update={"phantom_seed": 1})
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    assert data_root(phantoms) == Path("data/two-hospitals")
    (tmp_path / "two-hospitals").mkdir()
    assert data_root(phantoms) == tmp_path / "two-hospitals"


def test_a_missing_data_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        require_data_root(tmp_path / "absent")
    assert str(caught.value).startswith(f"{tmp_path / 'absent'}: no such data folder; ")
    assert "--data DIR" in str(caught.value)
    assert "CONSILIUM_DATA" in str(caught.value)


def test_a_byte_order_mark_from_notepad_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_federation(path).name == "Test"


def test_model_keys_have_one_name_each(tmp_path: Path) -> None:
    federation = load_federation(write(tmp_path, 'simulated = "Invented."\n' + GOOD))
    names = [federation.model_name(model) for model in ("global", "local/north", "central")]
    assert names == ["Federated", "North (simulated)", "Pooled, for reference"]


def test_of_two_classes_the_last_is_the_positive_one_unless_named(tmp_path: Path) -> None:
    assert load_federation(write(tmp_path)).positive_class == "notumor"
    assert load_federation(write(tmp_path, 'positive = "glioma"\n' + GOOD)).positive_class == "glioma"
    assert "must be one of exactly two classes" in refusal(tmp_path, 'positive = "x"\n' + GOOD)
