"""The report a clinician takes away: all of it on one page, the same in JSON, and nothing personal in either."""

import datetime
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpdf import FPDF
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pypdf import PdfReader

from engine.config import Federation, normalise
from engine.data.dicom import Window
from engine.data.images import FIT_RULE
from engine.data.phantoms import SCANNERS, draw_slice
from engine.errors import ModelError
from engine.inference.calibration import Calibration, ModelCalibration
from engine.inference.gate import Gate, Gaussian
from engine.inference.heatmap import Head
from engine.inference.panel import Opinion, Panel, Reading, open_panel
from engine.inference.report import NOT_CALIBRATED, build_report, report_json
from engine.inference.report_page import LEFT, MAX_MODELS, WARNING, WIDTH, latin, render_pdf
from engine.results.files import sha256_of, write_json
from engine.results.published import PublishedFile, PublishedVersion, VersionManifest, current_version
from engine.results.run_folder import FileEntry
from engine.results.words import DISCLAIMER
from engine.sections import Hospital, ModelConfig

MADE_AT = "2026-11-21T14:05:09+01:00"
FOUR = ("glioma", "meningioma", "notumor", "pituitary")
NAMES = ("AIIMS Delhi", "NIMHANS Bengaluru", "Tata Memorial Mumbai")
LONG = "Universitätsklinikum und Medizinische Hochschule Sankt Georgen an der Donau, Institut für Neuroradiologie"
POINTS_PER_MM = 72 / 25.4


def make_version(
    folder: Path,
    names: tuple[str, ...] = NAMES,
    classes: tuple[str, ...] = FOUR,
    *,
    calibrated: bool = True,
    **federation: Any,
) -> PublishedVersion:
    """A version of manifest and calibration alone: hospital-1 to -n, which has never seen the third class."""
    made = Federation(
        name="Brain MRI",
        data="brain-mri",
        classes=classes,
        model=ModelConfig(image_size_px=64),
        hospital=tuple(Hospital(id=f"hospital-{n}", name=name, folder=f"h{n}") for n, name in enumerate(names, 1)),
        **{
            "intended_input": "single T1-weighted brain MRI slices",
            "simulated": "The hospitals took no part.",
            **federation,
        },
    )
    models = ["global", *(f"local/{hospital.id}" for hospital in made.hospital), "central"]
    files = {model: model.replace("/", "-") + ".onnx" for model in models}
    version = folder / "brain-mri" / "v3"
    hashes = {file: FileEntry(sha256=f"{n:02x}" * 32, bytes=1) for n, file in enumerate(files.values(), 0xA0)}
    if calibrated:
        write_json(version / "calibration.json", make_calibration(models).model_dump(mode="json"))
        hashes["calibration.json"] = FileEntry(sha256="0" * 64, bytes=1)
    counts = {hospital.id: dict.fromkeys(classes, 10) for hospital in made.hospital}
    counts[made.hospital[-1].id][classes[2 % len(classes)]] = 0
    manifest = VersionManifest(
        name="brain-mri",
        version="v3",
        published_at="2026-11-20T10:00:00+00:00",
        run="run-007",
        run_manifest_sha256="0123456789abcdef" * 4,
        federation=made,
        class_counts=counts,
        models={
            model: PublishedFile(
                file=file, precision="int8", validation_images=90, accuracy_before=0.9, accuracy_after=0.9
            )
            for model, file in files.items()
        },
        files=hashes,
    )
    write_json(version / "manifest.json", manifest.model_dump(mode="json"))
    return PublishedVersion(version)


def make_calibration(models: list[str]) -> Calibration:
    one = np.ones((1, 2))
    shape = Gaussian(centres=one, directions=one, variances=np.ones(1), rest=1.0)
    gate = Gate(
        features=shape,
        statistics=shape,
        features_limit=3.25,
        statistics_limit=4.5,
        mean=np.zeros(2),
        deviation=np.ones(2),
        passed=0.95,
        n_images=321,
    )
    fitted = ModelCalibration(temperature=1.234, threshold=0.8765, hospitals=("hospital-1",), n_images=90)
    return Calibration(coverage=0.9, models=dict.fromkeys(models, fitted), gate=gate, measured={})


def make_reading(version: PublishedVersion, **changes: Any) -> Reading:
    """Every model says the last class, at 70% and more; the federated one's set holds the second class too."""
    classes = version.federation.classes
    rng = np.random.default_rng(5)
    opinions, maps = {}, {}
    for place, model in enumerate(reversed(version.manifest.models)):
        top = 0.7 + 0.2 * place / len(version.manifest.models)
        shares = dict.fromkeys(classes[:-1], (1 - top) / (len(classes) - 1)) | {classes[-1]: top}
        chosen = (classes[-1], classes[1]) if model == "global" else (classes[-1],)
        opinions[model] = Opinion(classes[-1], {label: shares[label] for label in classes}, chosen)
        maps[model] = rng.normal(size=(len(classes), 5, 5)).astype(np.float32)
    pixels = rng.integers(0, 256, (64, 64, 1), np.uint8)
    given = {"refused": False, "reasons": (), "remarks": (), "opinions": opinions, "maps": maps, **changes}
    return Reading(original=np.repeat(pixels, 3, axis=2), pixels=pixels, **given)


@pytest.fixture
def version(tmp_path: Path) -> PublishedVersion:
    return make_version(tmp_path)


def report_of(version: PublishedVersion, reading: Reading, **options: Any) -> dict[str, Any]:
    return build_report(reading, version, made_at=MADE_AT, **options)


def read_back(pdf: bytes) -> str:
    """The page's words with single spaces, so that a wrapped line reads as one."""
    pages = PdfReader(io.BytesIO(pdf)).pages
    assert len(pages) == 1
    return " ".join(pages[0].extract_text().split())


def images_in(pdf: bytes) -> int:
    return len(PdfReader(io.BytesIO(pdf)).pages[0].images)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_page_says_what_every_model_says(version: PublishedVersion) -> None:
    reading = make_reading(version, remarks=("It is darker than the training images.",))
    pdf = render_pdf(report_of(version, reading, own_reading="notumor"), reading)
    said = read_back(pdf)
    for model in version.manifest.models:
        assert version.federation.model_name(model) in said
    assert said.count("AIIMS Delhi (simulated)") == 2  # its row and its picture
    assert said.index("Federated") < said.index("AIIMS") < said.index("Tata Memorial") < said.index("Pooled")
    assert "pituitary or meningioma" in said
    assert "87.8%" not in said and "86.0%" in said  # the federated one's own, 0.7 + 0.2 * 4 / 5
    assert DISCLAIMER in said
    assert "notumor, noted before any opinion was shown" in said
    assert "It is darker than the training images." in said
    assert "The hospitals took no part." in said
    assert "Made for single T1-weighted brain MRI slices" in said
    assert "coarse: 5 x 5 cells" in said
    assert said.count("never trained on") == 1
    assert "Tata Memorial Mumbai (simulated) never trained on notumor" in said


def test_the_small_print_names_what_was_served(version: PublishedVersion) -> None:
    reading = make_reading(version)
    said = read_back(render_pdf(report_of(version, reading), reading))
    assert "brain-mri v3" in said
    assert "run-007 (manifest 0123456789ab)" in said
    assert "0123456789abc" not in said  # twelve digits, the whole stands in the JSON
    for entry in version.manifest.models.values():
        assert f"{entry.file} int8 {version.manifest.files[entry.file].sha256[:12]}, temperature 1.234" in said
    assert "set threshold 0.8765" in said
    assert FIT_RULE in said
    assert "64 x 64 px, grey" in said
    assert "3.25 (features) and 4.5 (image statistics)" in said
    assert "95.0% of 321 validation images" in said


def test_pictures_are_the_image_and_one_heatmap_per_model(version: PublishedVersion) -> None:
    reading = make_reading(version)
    assert images_in(render_pdf(report_of(version, reading), reading)) == 1 + len(version.manifest.models)


def test_a_map_without_evidence_says_so(version: PublishedVersion) -> None:
    reading = make_reading(version, maps={"global": np.full((4, 2, 3), -1, np.float32)})
    said = read_back(render_pdf(report_of(version, reading), reading))
    assert said.count("coarse: 3 x 2 cells, none for it") == 1


def test_a_real_federation_is_not_called_simulated(tmp_path: Path) -> None:
    version = make_version(tmp_path, simulated="")
    reading = make_reading(version)
    assert "imulated" not in read_back(render_pdf(report_of(version, reading), reading))


def test_a_licence_is_said_where_there_is_one(tmp_path: Path) -> None:
    version = make_version(tmp_path, licence="CC BY-NC 4.0: non-commercial use only")
    reading = make_reading(version)
    assert report_of(version, reading)["federation"]["licence"] == "CC BY-NC 4.0: non-commercial use only"
    assert "non-commercial use only" in read_back(render_pdf(report_of(version, reading), reading))
    plain = make_version(tmp_path / "plain")
    assert "icence" not in read_back(render_pdf(report_of(plain, reading), reading))


def test_a_version_without_calibration_says_so(tmp_path: Path) -> None:
    version = make_version(tmp_path, calibrated=False)
    reading = make_reading(version)
    report = report_of(version, reading)
    assert report["set_coverage"] is report["gate"] is None
    said = read_back(render_pdf(report, reading))
    assert NOT_CALIBRATED in said
    assert "calibrated probability" not in said
    assert "temperature" not in said


def test_a_damaged_calibration_is_one_clear_line(version: PublishedVersion) -> None:
    (version.folder / "calibration.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="calibrate the version anew"):
        report_of(version, make_reading(version))


# --- refused ---------------------------------------------------------------------------------------------------------

REASON = "Compared with the training images it is made of even areas, as drawings and screens are."


def test_a_refused_image_gets_no_opinion_even_if_the_reading_holds_some(version: PublishedVersion) -> None:
    reading = make_reading(version, refused=True, reasons=(REASON,))
    report = report_of(version, reading)
    assert report["refused"] and not report["insisted"] and report["opinions"] == {}
    pdf = render_pdf(report, reading)
    said = read_back(pdf)
    assert REASON in said
    assert not [label for label in FOUR if label in said]
    assert WARNING not in said
    assert DISCLAIMER in said
    assert images_in(pdf) == 1


def test_opinions_insisted_on_stand_under_a_warning(version: PublishedVersion) -> None:
    reading = make_reading(version, refused=True, reasons=(REASON,))
    report = report_of(version, reading, insisted=True)
    assert report["insisted"]
    said = read_back(render_pdf(report, reading))
    assert said.index(WARNING) < said.index(REASON) < said.index("pituitary")


def test_insisting_on_an_accepted_image_warns_of_nothing(version: PublishedVersion) -> None:
    reading = make_reading(version)
    report = report_of(version, reading, insisted=True)
    assert not report["insisted"]
    assert WARNING not in read_back(render_pdf(report, reading))


# --- the JSON --------------------------------------------------------------------------------------------------------


def test_the_json_holds_everything_whole(version: PublishedVersion) -> None:
    reading = make_reading(version, remarks=("It is darker than the training images.",))
    report = report_of(version, reading, own_reading="glioma", image_name="image 2")
    back = json.loads(report_json(report))
    assert back == report
    assert back["schema_version"] == 1
    assert (back["image"], back["own_reading"], back["refused"]) == ("image 2", "glioma", False)
    assert back["made_at"] == "2026-11-21T13:05:09+00:00"
    assert list(back["opinions"]) == ["global", *(f"local/hospital-{n}" for n in (1, 2, 3)), "central"]
    local = back["opinions"]["local/hospital-3"]
    assert local["name"] == "Tata Memorial Mumbai (simulated)"
    assert local["label"] == "pituitary"
    assert local["probabilities"] == reading.opinions["local/hospital-3"].probabilities
    assert local["never_trained_on"] == ["notumor"]
    assert back["opinions"]["global"]["prediction_set"] == ["pituitary", "meningioma"]
    assert back["opinions"]["global"]["never_trained_on"] == []
    published = back["published"]
    assert (published["name"], published["version"], published["run"]) == ("brain-mri", "v3", "run-007")
    assert published["run_manifest_sha256"] == "0123456789abcdef" * 4
    assert published["manifest_sha256"] == sha256_of(version.folder / "manifest.json")
    assert published["models"]["global"] == {
        "name": "Federated",
        "file": "global.onnx",
        "sha256": "a0" * 32,
        "precision": "int8",
        "temperature": 1.234,
        "set_threshold": 0.8765,
    }
    assert back["set_coverage"] == 0.9
    assert back["gate"] == {"features_limit": 3.25, "statistics_limit": 4.5, "passed": 0.95, "n_images": 321}
    assert back["preprocessing"] == {"rule": FIT_RULE, "side_px": 64, "colour": False}
    assert back["federation"]["simulated"] == "The hospitals took no part."
    assert back["disclaimer"] == DISCLAIMER


def test_equal_input_gives_equal_bytes_and_the_page_is_dated(version: PublishedVersion) -> None:
    reading = make_reading(version)
    first, second = (render_pdf(report_of(version, reading), reading) for _ in range(2))
    assert first == second
    told = PdfReader(io.BytesIO(first)).metadata
    assert told is not None
    assert told.title == "Consilium report on image 1"
    assert told.creation_date == datetime.datetime.fromisoformat(MADE_AT)
    assert told.author is None and told.subject is None


# --- nothing personal ------------------------------------------------------------------------------------------------


class Stub:
    """A scorer without weights."""

    head = Head(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(images)
        return np.tile(np.arange(4, dtype=np.float32), (n, 1)), np.ones((n, 4, 2, 2), np.float32)


def test_neither_file_names_nor_dicom_tags_reach_either_file(version: PublishedVersion, tmp_path: Path) -> None:
    path = tmp_path / "MUSTERMANN_ERIKA_1964.dcm"
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = "MUSTERMANN^ERIKA", "PID-4711", "Charite"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = np.arange(64 * 64).astype(np.uint8).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    reading = Panel(version.federation, {"global": Stub(), "central": Stub()}).read(path)
    report = report_of(version, reading)
    pdf = render_pdf(report, reading)
    everything = pdf + report_json(report) + read_back(pdf).encode()
    for stream in PdfReader(io.BytesIO(pdf)).pages[0].images:
        everything += stream.data
    for planted in (b"MUSTERMANN", b"ERIKA", b"4711", b"Charite", b".dcm", str(tmp_path).encode()):
        assert planted not in everything


def test_a_file_name_and_free_text_are_refused(version: PublishedVersion) -> None:
    reading = make_reading(version)
    for name in ("erika.png", "image 1.dcm", "image 0", "", "image \u0661"):
        with pytest.raises(ValueError, match="file names may name a patient"):
            report_of(version, reading, image_name=name)
    with pytest.raises(ValueError, match="free text may name a patient"):
        report_of(version, reading, own_reading="Erika's tumour")
    with pytest.raises(ValueError, match="time zone"):
        build_report(reading, version, made_at="2026-11-21T14:05:09")


# --- one page, whatever the names ------------------------------------------------------------------------------------


def boxes(pdf: bytes) -> list[tuple[float, float, float, float, str]]:
    """Every line of text as (left, right, bottom, top, words), in pt from the page's lower left."""
    measure = FPDF(unit="pt")
    found = []

    def visit(text: str, _: Any, at: list[float], font: Any, size: float) -> None:
        if text.strip():
            measure.set_font("Helvetica", "B" if "Bold" in font["/BaseFont"] else "", size)
            wide = measure.get_string_width(text.rstrip("\n"))
            found.append((at[4], at[4] + wide, at[5] - 0.1 * size, at[5] + 0.65 * size, text))

    PdfReader(io.BytesIO(pdf)).pages[0].extract_text(visitor_text=visit)
    return found


def assert_readable(pdf: bytes, smallest_pt: float = 0) -> None:
    """One page, everything inside its margins, no line over another."""
    read_back(pdf)
    placed = boxes(pdf)
    for left, right, bottom, _, words in placed:
        assert left >= LEFT * POINTS_PER_MM - 0.1 and right <= (LEFT + WIDTH) * POINTS_PER_MM + 0.1, words
        assert bottom >= 8 * POINTS_PER_MM, words
    for place, (left, right, bottom, top, words) in enumerate(placed):
        assert top - bottom >= 0.75 * smallest_pt - 0.01, words
        for other in placed[place + 1 :]:
            apart = right <= other[0] or other[1] <= left or top <= other[2] or other[3] <= bottom
            assert apart, f"{words!r} over {other[4]!r}"


def test_seven_long_hospitals_and_seven_classes_fit_one_page(tmp_path: Path) -> None:
    classes = tuple(f"a rare tumour of kind {n}" for n in range(7))
    version = make_version(tmp_path, tuple(f"{LONG} {n}" for n in range(7)), classes, synthetic="Drawn. " * 30)
    reading = make_reading(version, remarks=("It is darker than the training images.",) * 5)
    everything = {model: replace(opinion, prediction_set=classes) for model, opinion in reading.opinions.items()}
    reading = replace(reading, opinions=everything, refused=True, reasons=(REASON, REASON))
    pdf = render_pdf(report_of(version, reading, insisted=True, own_reading=classes[0]), reading)
    assert_readable(pdf, smallest_pt=4)
    said = read_back(pdf)
    for n in range(7):
        assert said.count(f"Neuroradiologie {n} (simulated)".split(maxsplit=1)[1]) == 2  # cut, but still told apart
    assert "any of the 7 classes" in said
    assert images_in(pdf) == 10


def test_a_set_of_six_in_seven_is_never_cut(tmp_path: Path) -> None:
    classes = tuple(f"a rare tumour of kind {n}" for n in range(7))
    version = make_version(tmp_path, NAMES, classes)
    reading = make_reading(version)
    most = {model: replace(opinion, prediction_set=classes[:6]) for model, opinion in reading.opinions.items()}
    pdf = render_pdf(report_of(version, replace(reading, opinions=most)), reading)
    assert_readable(pdf)
    assert read_back(pdf).count(f"{', '.join(classes[:5])} or {classes[5]}") == 5


def test_more_hospitals_than_a_page_holds_are_counted(tmp_path: Path) -> None:
    version = make_version(tmp_path, tuple(f"Hospital number {n}" for n in range(20)))
    reading = make_reading(version)
    report = report_of(version, reading)
    pdf = render_pdf(report, reading)
    assert_readable(pdf, smallest_pt=4)
    assert len(report["opinions"]) == 22
    assert f"{22 - MAX_MODELS} more opinions stand in this report's JSON alone." in read_back(pdf)


def test_letters_beyond_latin_1_are_told_apart(tmp_path: Path) -> None:
    names = ("Universitätsklinikum Łódź", "東京", "京都", "{nb}", "Žofia\u200b\u2019s\nclinic")
    classes = ("腫瘍", "膿瘍", "größer", "naïve")
    version = make_version(tmp_path, names, classes)
    reading = make_reading(version)
    told = {**reading.opinions, "global": replace(reading.opinions["global"], label="膿瘍", prediction_set=classes[:2])}
    reading = replace(reading, opinions=told)
    report = report_of(version, reading)
    said = read_back(render_pdf(report, reading))
    assert "Universitätsklinikum Lódz (simulated)" in said
    assert "hospital-2: ?? (simulated)" in said
    assert "hospital-3: ?? (simulated)" in said
    assert "{nb} (simulated)" in said
    assert "Zofia's clinic (simulated)" in said
    assert "class 1: ?? or class 2: ??" in said
    assert "naïve" in said
    assert "東京 (simulated)".encode() in report_json(report)


@given(st.text())
def test_latin_is_one_printable_line_of_latin_1(text: str) -> None:
    shown = latin(text)
    shown.encode("latin-1")
    assert shown == shown.strip()
    assert "\n" not in shown and all(letter.isprintable() for letter in shown)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=400), st.text(min_size=1, max_size=300))
@example("W" * 400, "M" * 300)
@example("東" * 400, "腫 " * 150)
def test_no_name_breaks_the_page(tmp_path: Path, name: str, sentence: str) -> None:
    assume(name != "Other" and normalise(sentence) != "other")
    version = make_version(tmp_path, (name, "Other"), (sentence, "other"), intended_input=sentence, synthetic=sentence)
    reading = make_reading(version, refused=True, reasons=(sentence,))
    report = report_of(version, reading, insisted=True, own_reading=sentence)
    assert_readable(render_pdf(report, reading))
    json.loads(report_json(report))


# --- a published version ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_version_gives_its_report(phantom_version: Path) -> None:
    version = current_version(phantom_version, "phantoms")
    pixels, _ = draw_slice("pituitary", SCANNERS["hospital-a"], 64, np.random.default_rng(1))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    reading = open_panel(version).read(stream.getvalue(), insist=True)
    report = report_of(version, reading, insisted=True)
    pdf = render_pdf(report, reading)
    assert_readable(pdf)
    said = read_back(pdf)
    for model, entry in version.manifest.models.items():
        assert report["published"]["models"][model]["sha256"] == sha256_of(version.folder / entry.file)
        assert version.federation.model_name(model) in said
        assert reading.opinions[model].label in said
    assert "never trained on notumor" in said
    assert "Every image is drawn by a program" in said


def test_a_report_says_what_was_chosen_of_the_file_and_what_the_image_is(phantom_version: Path) -> None:
    version = current_version(phantom_version, "phantoms")
    plain = build_report(make_reading(version), version, made_at=MADE_AT)
    assert (plain["frame"], plain["window"], plain["example"]) == (None, None, "")
    reading = replace(make_reading(version), frame=2, window=Window(40, 80))
    report = build_report(reading, version, made_at=MADE_AT, example="Composite, not a patient: an average.")
    assert (report["frame"], report["window"]) == (3, {"centre": 40, "width": 80})
    text = " ".join(PdfReader(io.BytesIO(render_pdf(report, reading))).pages[0].extract_text().split())
    assert "Composite, not a patient: an average." in text
    assert "frame 3; the reader's window, centre 40 and width 80" in text
