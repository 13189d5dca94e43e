"""What the audit says about hospital folders: each fault on its own, in words, at the right severity."""

import re
from pathlib import Path

import pytest
from PIL import Image

from engine.config import Federation
from engine.data.audit import Audit, Finding, audit_federation, require_trainable
from engine.data.federation_data import FederationData
from engine.data.hospitals import load_hospital
from engine.errors import DataError

CLASSES = ("glioma", "notumor")


class Folders:
    """Two hospitals whose folders a test fills; every image has bytes of its own unless a shade is given twice."""

    def __init__(self, root: Path) -> None:
        self.root = root / "data"
        self.simulated = ""
        self.patient_pattern: str | None = r"([^/]+)\.png"
        self._shade = 0
        for hospital in ("north", "south"):
            for label in CLASSES:
                self.draw(f"{hospital}/{label}/own.png")

    def draw(self, path: str, shade: int | None = None) -> None:
        if shade is None:
            self._shade += 1
            shade = self._shade
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(file)

    def remove(self, *paths: str) -> None:
        for path in paths:
            (self.root / path).unlink()

    def audit(self) -> Audit:
        federation = Federation.model_validate(
            {
                "name": "Test",
                "data": "test",
                "classes": CLASSES,
                "intended_input": "slices",
                "simulated": self.simulated,
                "model": {"image_size_px": 32},
                "split": {"patient_pattern": self.patient_pattern},
                "hospital": [{"id": name, "name": name.title(), "folder": name} for name in ("north", "south")],
            }
        )
        cache = self.root.parent / "cache"
        holdings = [load_hospital(federation, hospital, self.root, cache) for hospital in federation.hospital]
        return audit_federation(federation, holdings)

    def finding(self) -> Finding:
        """The only finding there is."""
        (finding,) = self.audit().findings
        return finding


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_clean_folders_have_counts_and_no_findings(folders: Folders) -> None:
    audit = folders.audit()
    assert audit.findings == ()
    assert list(audit.hospitals) == ["north", "south"]
    assert audit.hospitals["north"].model_dump(exclude={"looks"}) == {
        "n_images": 2,
        "class_counts": {"glioma": 1, "notumor": 1},
        "unreadable": 0,
        "exact_duplicates": 0,
    }
    require_trainable(audit)


def test_a_missing_folder_is_an_error_that_names_it(folders: Folders) -> None:
    (folders.root / "south").rename(folders.root / "elsewhere")
    errors = [finding for finding in folders.audit().findings if finding.severity == "error"]
    assert [(finding.kind, finding.hospital) for finding in errors] == [("missing-folder", "south")]
    assert "South: its folder 'south' is missing" in errors[0].sentence


def test_a_hospital_without_any_image_is_an_error(folders: Folders) -> None:
    folders.remove("south/glioma/own.png", "south/notumor/own.png")
    assert ("error", "no-images", "south") in [(f.severity, f.kind, f.hospital) for f in folders.audit().findings]


def test_a_class_that_nobody_holds_is_an_error(folders: Folders) -> None:
    folders.remove("north/glioma/own.png", "south/glioma/own.png")
    errors = folders.audit().errors
    assert [(finding.kind, finding.hospital) for finding in errors] == [("absent-class", None)]
    assert "no hospital holds an image of 'glioma'" in errors[0].sentence


def test_a_class_that_one_hospital_alone_holds_is_a_warning(folders: Folders) -> None:
    (folders.root / "south/glioma/own.png").unlink()
    (folders.root / "south/glioma").rmdir()
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.hospital) == ("warning", "one-hospital-class", "north")
    assert finding.sentence.startswith("only North holds glioma")


def test_an_unmatched_folder_is_a_warning_that_names_the_nearest_class(folders: Folders) -> None:
    folders.draw("north/gliomas/x.png")
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.hospital) == ("warning", "unmatched-folder", "north")
    assert finding.sentence == "North: folder 'gliomas' is no class and is left out; if it means glioma, add an alias"


def test_an_unmatched_folder_like_no_class_has_no_guess(folders: Folders) -> None:
    folders.draw("north/xyz/x.png")
    assert folders.finding().sentence.endswith("; add an alias or take the folder away")


def test_an_empty_class_folder_is_a_warning(folders: Folders) -> None:
    folders.draw("south/Glioma/x.png")
    folders.remove("south/Glioma/x.png")
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.hospital) == ("warning", "empty-folder", "south")
    assert finding.sentence == "South: folder 'Glioma' holds no images"


def test_unreadable_images_are_one_warning_that_lists_them(folders: Folders) -> None:
    for name in ("a.png", "b.png"):
        (folders.root / "north" / "glioma" / name).write_text("no image", encoding="utf-8")
    finding = folders.finding()
    assert (finding.severity, finding.kind) == ("warning", "unreadable")
    assert finding.paths == ("north/glioma/a.png", "north/glioma/b.png")
    assert finding.sentence.startswith("North: 2 images cannot be read and left out, e.g. north/glioma/a.png: ")
    counts = folders.audit().hospitals["north"]
    assert (counts.n_images, counts.unreadable) == (2, 2)


def test_ignored_files_are_a_note(folders: Folders) -> None:
    (folders.root / "north" / "glioma" / "notes.txt").write_text("x", encoding="utf-8")
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.paths) == ("note", "ignored-files", ("north/glioma/notes.txt",))


def test_copies_inside_a_hospital_are_counted_without_the_first(folders: Folders) -> None:
    for name in ("x.png", "y.png", "z.png"):
        folders.draw(f"north/glioma/{name}", shade=200)
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.hospital) == ("warning", "duplicates", "north")
    assert finding.sentence.startswith("North: 2 exact copies of other images")
    assert finding.paths == ("north/glioma/x.png", "north/glioma/y.png", "north/glioma/z.png")
    hospitals = folders.audit().hospitals
    assert (hospitals["north"].exact_duplicates, hospitals["south"].exact_duplicates) == (2, 0)


def test_an_image_at_two_hospitals_is_a_warning_about_both(folders: Folders) -> None:
    folders.draw("north/glioma/x.png", shade=200)
    folders.draw("south/glioma/y.png", shade=200)
    finding = folders.finding()
    assert (finding.severity, finding.kind, finding.hospital) == ("warning", "shared-images", None)
    assert finding.paths == ("north/glioma/x.png", "south/glioma/y.png")
    assert finding.sentence.startswith("1 image at more than one hospital")
    assert folders.audit().hospitals["north"].exact_duplicates == 0


def test_copies_with_two_labels_are_a_warning_of_their_own(folders: Folders) -> None:
    folders.draw("north/glioma/x.png", shade=200)
    folders.draw("north/notumor/y.png", shade=200)
    kinds = [finding.kind for finding in folders.audit().findings]
    assert kinds == ["duplicates", "contradicting-labels"]
    assert folders.audit().findings[1].paths == ("north/glioma/x.png", "north/notumor/y.png")


def test_the_worst_findings_come_first(folders: Folders) -> None:
    (folders.root / "north" / "glioma" / "notes.txt").write_text("x", encoding="utf-8")
    folders.draw("north/xyz/x.png")
    folders.remove("south/glioma/own.png", "south/notumor/own.png")
    severities = [finding.severity for finding in folders.audit().findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_warnings_alone_do_not_stop_a_training(folders: Folders) -> None:
    folders.draw("north/xyz/x.png")
    require_trainable(folders.audit())


def test_an_error_stops_a_training_with_its_sentence(folders: Folders) -> None:
    folders.remove("north/glioma/own.png", "south/glioma/own.png")
    with pytest.raises(DataError, match=r"^no hospital holds an image of 'glioma'"):
        require_trainable(folders.audit())


def test_several_errors_are_counted_in_the_one_line(folders: Folders) -> None:
    (folders.root / "north").rename(folders.root / "n")
    (folders.root / "south").rename(folders.root / "s")
    with pytest.raises(DataError, match=r"North: .* is missing.*\(and 3 more; see the audit\)$"):
        require_trainable(folders.audit())


def test_every_hospital_named_in_a_simulated_federation_is_called_simulated(folders: Folders) -> None:
    folders.simulated = "They took no part."
    folders.draw("north/xyz/x.png")
    (folders.root / "north/glioma/bad.png").touch()
    folders.draw("south/Glioma/x.png", shade=200)
    folders.draw("south/glioma/y.png", shade=200)
    (folders.root / "north/glioma/own.png").unlink()
    sentences = [finding.sentence for finding in folders.audit().findings]
    assert len(sentences) == 4
    for sentence in sentences:
        assert re.search(r"\b(North|South)\b(?! \(simulated\))", sentence) is None
        assert "(simulated)" in sentence


def test_an_audit_survives_its_file(folders: Folders) -> None:
    folders.draw("north/xyz/x.png")
    audit = folders.audit()
    assert Audit.model_validate_json(audit.model_dump_json()) == audit
    assert audit.model_dump()["schema_version"] == 1


def test_the_phantoms_audit_knows_their_counts_and_the_class_one_hospital_lacks(tiny_data: FederationData) -> None:
    audit = tiny_data.audit
    assert audit.hospitals["hospital-b"].class_counts == {
        "glioma": 12,
        "meningioma": 18,
        "notumor": 12,
        "pituitary": 12,
    }
    assert audit.hospitals["hospital-c"].class_counts["notumor"] == 0
    assert [finding for finding in audit.findings if finding.severity == "error"] == []
