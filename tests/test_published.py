"""The registry of published versions: exact, verified, and rolled back by name."""

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.inference.panel import open_panel
from engine.results.files import read_json, sha256_of
from engine.results.published import (
    PublishedVersion,
    current_version,
    exact_version,
    find_source,
    list_versions,
    models_folder,
    published_names,
    set_current,
)

MODELS = {"global", "central", "local/hospital-a", "local/hospital-b", "local/hospital-c"}
FILES = ["card.md", "label_map.json", "model_meta.json", "global.onnx", "central.onnx", "local-hospital-a.onnx"]


@pytest.fixture
def models(phantom_version: Path, tmp_path: Path) -> Path:
    """A copy of the registry, to damage; v1 is served."""
    return shutil.copytree(phantom_version, tmp_path / "models")


@pytest.fixture
def two(models: Path) -> Path:
    """The registry with v1 served and v2 and v10 beside it."""
    for version in ("v2", "v10"):
        shutil.copytree(models / "phantoms" / "v1", models / "phantoms" / version)
        change_json(models / "phantoms" / version / "manifest.json", version=version)
    return models


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes), encoding="utf-8")


def test_the_served_version_is_the_one_current_json_names(two: Path) -> None:
    assert current_version(two, "phantoms").version == "v1"
    change_json(two / "phantoms" / "current.json", version="v2")
    found = current_version(two, "phantoms")
    assert (found.name, found.version, found.manifest.version) == ("phantoms", "v2", "v2")


@pytest.mark.parametrize(("source", "version"), [("phantoms", "v1"), ("phantoms@v2", "v2"), ("phantoms@v10", "v10")])
def test_a_source_is_a_name_or_an_exact_version(two: Path, source: str, version: str) -> None:
    assert find_source(two, source).version == version


def test_versions_are_listed_by_number(two: Path) -> None:
    assert [version.version for version in list_versions(two, "phantoms")] == ["v1", "v2", "v10"]


def test_only_complete_versions_are_listed(two: Path) -> None:
    (two / "phantoms" / "v2" / "manifest.json").unlink()
    for name in ("v0", "v03", "vx", "v4-draft"):
        shutil.copytree(two / "phantoms" / "v1", two / "phantoms" / name)
    assert [version.version for version in list_versions(two, "phantoms")] == ["v1", "v10"]


def test_an_unknown_name_has_no_versions(models: Path) -> None:
    assert list_versions(models, "absent") == []


def test_names_are_those_with_a_served_version(models: Path) -> None:
    shutil.copytree(models / "phantoms", models / "another")
    (models / "unserved" / "v1").mkdir(parents=True)
    assert published_names(models) == ["another", "phantoms"]
    assert published_names(models / "absent") == []


@pytest.mark.parametrize("source", ["absent", "phantoms2"])
def test_an_unknown_name_says_which_there_are(models: Path, source: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_source(models, source)
    assert f"no published model '{source}' in {models} (there: phantoms)" in str(caught.value)


def test_a_version_that_is_not_there_is_refused_by_its_path(models: Path) -> None:
    with pytest.raises(ModelError, match=r"phantoms/v7: no such published version"):
        find_source(models, "phantoms@v7")


@pytest.mark.parametrize(
    "source", ["", "@v1", "phantoms@", "phantoms@1", "phantoms@v0", "phantoms@v01", "phantoms@latest", "phantoms@v1@v1"]
)
def test_what_is_no_source_is_refused(models: Path, source: str) -> None:
    with pytest.raises(ModelError, match=r"is no (model name|published version)"):
        find_source(models, source)


@pytest.mark.parametrize("source", ["../models/phantoms", "/etc", "Phantoms", "phantoms/v1", "phantoms\n", ".", ".."])
def test_a_name_that_is_a_path_is_refused(models: Path, source: str) -> None:
    with pytest.raises(ModelError, match="is no model name"):
        find_source(models, source)
    with pytest.raises(ModelError, match="is no published version"):
        exact_version(models, source, "v1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'"v1"', b"\xff\xfe"], ids=repr)
def test_a_damaged_current_json_says_how_to_mend_it(models: Path, content: bytes) -> None:
    path = models / "phantoms" / "current.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        current_version(models, "phantoms")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; set the served version with rollback phantoms VERSION")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [7, None, "../../elsewhere", "v0"])
def test_a_current_json_that_names_no_version_is_blamed_itself(models: Path, version: object) -> None:
    change_json(models / "phantoms" / "current.json", version=version)
    with pytest.raises(ModelError, match=r"current\.json"):
        current_version(models, "phantoms")


def test_a_current_json_of_a_newer_schema_is_refused(models: Path) -> None:
    change_json(models / "phantoms" / "current.json", schema_version=2)
    with pytest.raises(ModelError, match="schema"):
        current_version(models, "phantoms")


# --- verification --------------------------------------------------------------------------------------------------


def test_an_untouched_version_verifies_and_opens(models: Path) -> None:
    version = exact_version(models, "phantoms", "v1")
    version.verify()
    assert set(open_panel(version).models) == MODELS == set(version.manifest.models)


def test_the_manifest_holds_the_hash_of_every_file(models: Path) -> None:
    version = exact_version(models, "phantoms", "v1")
    present = {path.name for path in version.folder.iterdir()} - {"manifest.json"}
    assert set(version.manifest.files) == present
    assert present >= set(FILES)
    for name, entry in version.manifest.files.items():
        assert (entry.sha256, entry.bytes) == (sha256_of(version.folder / name), (version.folder / name).stat().st_size)


@pytest.mark.parametrize("name", FILES)
def test_a_tampered_file_is_refused_by_name(models: Path, name: str) -> None:
    path = models / "phantoms" / "v1" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        open_panel(exact_version(models, "phantoms", "v1"))
    assert str(caught.value).startswith(f"{path}: is not as it was published; ")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(models: Path, name: str) -> None:
    path = models / "phantoms" / "v1" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is not as it was published"):
        exact_version(models, "phantoms", "v1").verify()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(models: Path, name: str) -> None:
    (models / "phantoms" / "v1" / name).unlink()
    with pytest.raises(ModelError) as caught:
        exact_version(models, "phantoms", "v1").verify()
    assert str(caught.value).startswith(f"{models / 'phantoms' / 'v1' / name}: is missing; ")


def test_a_newer_schema_is_refused_with_its_number(models: Path) -> None:
    path = models / "phantoms" / "v1" / "manifest.json"
    change_json(path, schema_version=2, models={"global": {"shape": "unheard of"}})
    with pytest.raises(ModelError) as caught:
        exact_version(models, "phantoms", "v1").verify()
    assert str(caught.value).startswith(f"{path}: has schema 2, unknown to this program")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"schema_version": 1}'], ids=repr)
def test_a_damaged_manifest_is_refused_in_one_line(models: Path, content: bytes) -> None:
    path = models / "phantoms" / "v1" / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        exact_version(models, "phantoms", "v1").verify()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("restore the version or publish it anew")
    assert "\n" not in message
    assert ": :" not in message


# --- rollback ------------------------------------------------------------------------------------------------------


def test_a_rollback_serves_the_chosen_version_and_changes_no_version(two: Path) -> None:
    before = {path: sha256_of(path) for path in two.glob("phantoms/v*/*")}
    set_current(two, exact_version(two, "phantoms", "v10"))
    assert read_json(two / "phantoms" / "current.json") == {"schema_version": 1, "version": "v10"}
    assert current_version(two, "phantoms").version == "v10"
    assert {path: sha256_of(path) for path in two.glob("phantoms/v*/*")} == before


def test_a_rollback_mends_a_damaged_current_json(two: Path) -> None:
    (two / "phantoms" / "current.json").write_bytes(b"{")
    set_current(two, exact_version(two, "phantoms", "v2"))
    assert current_version(two, "phantoms").version == "v2"


def test_a_damaged_version_is_never_served(two: Path) -> None:
    (two / "phantoms" / "v2" / "global.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"v2/global\.onnx: is not as it was published"):
        set_current(two, PublishedVersion(two / "phantoms" / "v2"))
    assert current_version(two, "phantoms").version == "v1"


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [(Path("g"), "e", "g"), (None, "e", "e"), (None, "", "models"), (None, None, "models")],
)
def test_where_models_lie(
    monkeypatch: pytest.MonkeyPatch, given: Path | None, environment: str | None, expected: str
) -> None:
    monkeypatch.delenv("CONSILIUM_MODELS", raising=False)
    if environment is not None:
        monkeypatch.setenv("CONSILIUM_MODELS", environment)
    assert models_folder(given) == Path(expected)
