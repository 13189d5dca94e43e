"""Home and Compare: nothing published, one version, a damaged one, no torch; and the sentences Compare says."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage
from streamlit.testing.v1 import AppTest

from engine.cli import ENGINE_ONLY
from engine.config import Federation
from engine.data.dicom import Window
from engine.data.images import fit, read_image
from engine.errors import ImageError, RunError
from engine.inference.panel import Opinion, Reading
from engine.results.files import sha256_of
from engine.results.published import PublishedFile, PublishedVersion, VersionManifest, current_version
from engine.results.run_folder import FileEntry
from engine.results.words import SHARED_IMAGES, percent
from ui.batch import batch_csv, batch_table, line_of, summary, unreadable
from ui.examples import REFUSED, draw_example, draw_scene, example_labels, pick_held_out, read_held_out
from ui.forgetting import drop_downloads, drop_stale_downloads
from ui.heatmaps import Why, lay_over, legend, strongest_place, why_sentences
from ui.opinions import (
    OWN_KIND,
    agreement,
    answer,
    calibrated_sentence,
    never_seen,
    opinion_rows,
    said_beside,
    set_words,
    stance,
)
from ui.probabilities import operating_words, probability_table
from ui.read_first import TOO_LATE, agreement_with_reader
from ui.refusal import HEADING
from ui.report_buttons import report_makers
from ui.viewing import BURNED_IN, OWN_WINDOW, crop, first_frame, has_colours, header_sentences, invert, without_padding

PROJECT = Path(__file__).resolve().parent.parent
COMPARE, HOME = "pages/4_Compare.py", "app.py"
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
MODELS = ("central", "local/hospital-c", "local/hospital-a", "local/hospital-b", "global")
COUNTS = {
    "hospital-a": {"glioma": 3, "meningioma": 3, "notumor": 3, "pituitary": 3},
    "hospital-b": {"glioma": 3, "meningioma": 3, "notumor": 3, "pituitary": 3},
    "hospital-c": {"glioma": 3, "meningioma": 3, "notumor": 0, "pituitary": 3},
}
SENSITIVE = {"sensitivity": 0.912, "specificity": 0.973, "n_cases": 34, "n_others": 102}


def opinion(label: str, probability: float = 0.94, kept: tuple[str, ...] = ()) -> Opinion:
    others = [name for name in CLASSES if name != label]
    rest = dict.fromkeys(others, (1 - probability) / 3)
    return Opinion(label, {label: probability, **rest}, kept or (label,))


def opinions(federated: str, a: str, b: str, c: str, pooled: str) -> dict[str, Opinion]:
    """Pooled stands first, so that order is seen to be made."""
    return {key: opinion(label) for key, label in zip(MODELS, (pooled, c, a, b, federated), strict=True)}


def reading(said: dict[str, Opinion], *, reasons: tuple[str, ...] = (), remarks: tuple[str, ...] = ()) -> Reading:
    """Made by hand; every map's evidence lies in the upper left cell."""
    maps = {model: np.array([[[3, 1], [0, -2]]] * len(CLASSES), np.float32) for model in said}
    pixels = np.full((32, 32, 1), 90, np.uint8)
    return Reading(np.repeat(pixels, 3, axis=2), pixels, bool(reasons), reasons, remarks, said, maps)


def wide() -> dict[str, Opinion]:
    """The federated model leaves two classes open, one hospital says a third."""
    said = opinions("pituitary", "pituitary", "pituitary", "glioma", "pituitary")
    return {**said, "global": opinion("pituitary", 0.6, ("pituitary", "meningioma"))}


class MadeUpPanel:
    """Answers by what it is given; keeps how it was asked, never what."""

    def __init__(self, federation: Federation, *, calibrated: bool) -> None:
        self.federation, self.models = federation, MODELS
        operating = {model: dict.fromkeys(CLASSES, SENSITIVE) for model in MODELS}
        self.calibration = SimpleNamespace(coverage=0.9, measured={"operating": operating}) if calibrated else None
        self.answers: dict[bytes, Reading] = {}
        self.asked: list[dict[str, Any]] = []

    def read(self, source: bytes, *, frame: Any = None, window: Any = None, insist: bool = False) -> Reading:
        read_image(source, colour=False, frame=frame, window=window)  # raises as the real one does
        self.asked.append({"frame": frame, "window": window, "insist": insist})
        found = self.answers.get(source) or reading(wide())
        return replace(found, opinions={}, maps={}) if found.refused and not insist else found


def open_page(page: str) -> AppTest:
    return AppTest.from_file(str(PROJECT / page), default_timeout=60).run()


def button(page: AppTest, label: str) -> Any:
    return next(button for button in page.button if button.label == label)


def start(page: AppTest | None = None) -> AppTest:
    """Compare, with the note understood."""
    return button(page or open_page(COMPARE), "I understand").click().run()


def upload(page: AppTest, *contents: bytes, suffix: str = "png") -> AppTest:
    files = [(f"jane-doe-{number}.{suffix}", content, "image/png") for number, content in enumerate(contents)]
    page.file_uploader(key="upload").set_value(files).run()
    assert not page.exception
    return page


def insist(page: AppTest) -> AppTest:
    """A tiny model's gate may refuse anything; the opinions are wanted all the same."""
    for toggle in page.toggle:
        if toggle.label == "Show the opinions anyway":
            return toggle.set_value(True).run()
    return page


def words(page: AppTest) -> str:
    parts = [*page.markdown, *page.caption, *page.subheader, *page.html, *page.error, *page.info, *page.code]
    return "\n".join(str(part.value) for part in [*parts, *page.warning])


def dicom(frames: np.ndarray[Any, Any], **tags: object) -> bytes:
    """Grey uint16 (frames, h, w) as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    _, dataset.Rows, dataset.Columns = frames.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = frames.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def use(models: Path) -> None:
        monkeypatch.setenv("CONSILIUM_MODELS", str(models))
        monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(tmp_path / "no-artifacts"))

    return use


@pytest.fixture
def made_up(
    serve: Any, tiny_federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MadeUpPanel]:
    """A published version of an empty file, whose panel says what a test tells it to."""

    def install(federation: Federation = tiny_federation, *, calibrated: bool = True) -> MadeUpPanel:
        folder = tmp_path / "models" / "phantoms" / "v1"
        folder.mkdir(parents=True)
        (folder / "none.onnx").touch()
        entry = PublishedFile(
            file="none.onnx", precision="int8", validation_images=1, accuracy_before=1.0, accuracy_after=1.0
        )
        manifest = VersionManifest(
            name="phantoms",
            version="v1",
            published_at="2026-01-01T00:00:00+00:00",
            run="run-001",
            run_manifest_sha256="0" * 64,
            federation=federation,
            class_counts=COUNTS,
            models=dict.fromkeys(MODELS, entry),
            files={"none.onnx": FileEntry(sha256=sha256_of(folder / "none.onnx"), bytes=0)},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        (folder.parent / "current.json").write_text('{"schema_version": 1, "version": "v1"}')
        panel = MadeUpPanel(federation, calibrated=calibrated)
        monkeypatch.setattr("ui.loaders.open_panel", lambda version: panel)
        serve(tmp_path / "models")
        return panel

    return install


@pytest.fixture
def damaged(phantom_version: Path, tmp_path: Path) -> Path:
    """The published folder with one byte of the federated model changed."""
    models = tmp_path / "models"
    shutil.copytree(phantom_version, models)
    file = current_version(models, "phantoms").folder / "global.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return models


@pytest.fixture
def slice_png(tiny_federation: Federation) -> bytes:
    return draw_example(tiny_federation, "pituitary", 0).content


@pytest.fixture
def other_png(tiny_federation: Federation) -> bytes:
    return draw_example(tiny_federation, "glioma", 1).content


# --- the words -----------------------------------------------------------------------------------------------------


def test_agreement_leads_with_who_says_otherwise(tiny_federation: Federation) -> None:
    said = agreement(tiny_federation, opinions("notumor", "notumor", "notumor", "glioma", "notumor"), COUNTS)
    assert said == (
        "Phantom Valley (simulated), never trained on notumor, says glioma. "
        f"The other 4 of 5 models agree. {SHARED_IMAGES}"
    )


def test_agreement_of_all_and_of_none(tiny_federation: Federation) -> None:
    assert agreement(tiny_federation, opinions(*["glioma"] * 5), COUNTS) == f"All 5 models agree. {SHARED_IMAGES}"
    said = agreement(tiny_federation, opinions("glioma", *["pituitary"] * 3, "notumor"), COUNTS)
    assert "No other model agrees with Federated." in said
    assert "Phantom North (simulated), Phantom Coast (simulated) and Phantom Valley (simulated) say pituitary." in said
    assert "The pooled model says notumor." in said


def test_agreement_tells_a_wider_set_from_another_answer(tiny_federation: Federation) -> None:
    said = opinions("pituitary", "pituitary", "pituitary", "glioma", "pituitary")
    said["central"] = opinion("pituitary", 0.5, ("pituitary", "meningioma"))
    sentence = agreement(tiny_federation, said, COUNTS)
    assert sentence.startswith("Phantom Valley (simulated) says glioma. The pooled model is less sure and says ")
    assert "says pituitary or meningioma. The other 3 of 5 models agree." in sentence
    assert agreement(tiny_federation, wide(), COUNTS).count("are surer and say pituitary") == 1


def test_agreement_of_one_model_alone_claims_nothing(tiny_federation: Federation) -> None:
    assert "agree" not in agreement(tiny_federation, {"global": opinion("glioma")}, COUNTS)


def test_stances() -> None:
    two = opinion("glioma", 0.5, ("glioma", "notumor"))
    assert stance(opinion("glioma", 0.5, ("notumor", "glioma")), two) == "agrees"
    assert stance(opinion("notumor", 0.5, ("notumor", "glioma")), two) == "otherwise"
    assert said_beside(opinion("notumor", 0.5, ("notumor", "glioma")), two, 4) == "notumor or glioma, notumor first"
    assert said_beside(opinion("notumor"), two, 4) == "notumor"
    assert stance(opinion("glioma"), two) == "surer"
    assert stance(two, opinion("glioma")) == "less sure"
    assert stance(opinion("glioma", 0.5, ("glioma", "pituitary")), two) == "otherwise"


def test_sets_in_words(tiny_federation: Federation) -> None:
    assert set_words(opinion("glioma"), 4) == "glioma"
    assert set_words(opinion("glioma", 0.5, ("glioma", "notumor")), 4) == "glioma or notumor"
    assert set_words(opinion("glioma", 0.3, CLASSES), 4) == "any of the 4 classes"
    assert answer(tiny_federation, wide()) == "Federated: pituitary or meningioma"


def test_the_federated_opinion_is_the_answer(tiny_federation: Federation) -> None:
    several = opinions("pituitary", "glioma", "glioma", "glioma", "glioma")
    assert answer(tiny_federation, several) == "Federated: pituitary, 94.0%"
    names = list(probability_table(tiny_federation, several).index)
    assert names[0] == "Federated"
    assert names[-1] == "Pooled, for reference"
    assert all(name.endswith("(simulated)") for name in names[1:-1])


def test_rows_say_every_figure_in_words(tiny_federation: Federation) -> None:
    rows = opinion_rows(tiny_federation, opinions("pituitary", "glioma", "glioma", "glioma", "glioma"), COUNTS)
    assert rows.count("<li") == 5
    assert rows.count('aria-hidden="true">') >= 5
    assert rows.index("Federated") < rows.index("Phantom North (simulated)") < rows.index("Pooled, for reference")
    assert rows.count("94.0%") == 5
    assert rows.count("2.0%") >= 15
    assert rows.count("never trained on notumor") == 1
    assert "chip" not in rows
    assert OWN_KIND not in rows


def test_calibrated_rows_hold_the_set_as_chips(tiny_federation: Federation) -> None:
    rows = opinion_rows(tiny_federation, wide(), COUNTS, calibrated=True)
    assert '<b class="chip">pituitary</b> or <b class="chip">meningioma</b></span>' in rows
    assert "pituitary 60.0%, glioma 13.3%, meningioma 13.3%" in rows  # what stands beside no chip stands below
    assert rows.count('class="chip"') == 6
    assert rows.count(OWN_KIND) == 3


def test_rows_escape_what_they_are_given(tiny_federation: Federation) -> None:
    nasty = Opinion("<script>", {"<script>": 0.9, "b&": 0.1}, ("<script>",))
    for calibrated in (False, True):
        rows = opinion_rows(tiny_federation, {"global": nasty}, {}, calibrated=calibrated)
        assert "<script>" not in rows
        assert "&lt;script&gt;" in rows


def test_probabilities_stand_beside_what_was_measured(tiny_federation: Federation) -> None:
    operating = {"global": {"glioma": SENSITIVE, "notumor": {**SENSITIVE, "sensitivity": None, "n_cases": 0}}}
    table = probability_table(tiny_federation, opinions(*["glioma"] * 5), operating)
    table = table.replace("\N{NO-BREAK SPACE}", " ", regex=True)
    assert table.loc["Federated", "glioma"] == "94.0% :small[sens. 91.2% (n = 34), spec. 97.3% (n = 102)]"
    assert table.loc["Federated", "notumor"] == "2.0% :small[spec. 97.3% (n = 102)]"
    assert table.loc["Federated", "pituitary"] == "2.0%"
    assert operating_words({}) == ""


def test_never_seen(tiny_federation: Federation) -> None:
    assert never_seen(tiny_federation, COUNTS) == {"hospital-c": ["notumor"]}


def test_what_calibration_promises() -> None:
    assert "true class for 90% of images" in calibrated_sentence(0.9)


def test_the_reader_is_told_who_agrees(tiny_federation: Federation) -> None:
    said = agreement_with_reader(tiny_federation, wide(), "pituitary")
    assert said == (
        "You said pituitary. Federated holds it possible. Of 5 models, 3 agree, 1 holds it possible and 1 disagrees."
    )
    assert "Federated disagrees. Of 5 models, 5 disagree." in agreement_with_reader(
        tiny_federation, opinions(*["glioma"] * 5), "notumor"
    )


# --- looking -------------------------------------------------------------------------------------------------------


def test_crop_and_invert() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(crop(pixels, 1), pixels)
    assert np.array_equal(crop(pixels, 2), pixels[2:6, 2:6])
    assert np.array_equal(crop(pixels, 4, across=1.0, down=0.0), pixels[:2, 6:])
    assert crop(pixels[:1, :3], 4).shape == (1, 1)
    assert np.array_equal(invert(invert(pixels)), pixels)


@pytest.mark.parametrize("shape", [(50, 120), (120, 50, 3), (33, 33), (1, 40)])
def test_padding_is_taken_off_again(shape: tuple[int, ...]) -> None:
    fitted = fit(np.full(shape, 200, np.uint8), 96)
    inner = without_padding(fitted, *shape[:2])
    assert inner.min() == 200
    assert max(inner.shape[:2]) == 96
    assert inner.size == (fitted == 200).sum()


def test_colours_are_seen() -> None:
    grey = np.full((2, 2, 3), 7, np.uint8)
    assert not has_colours(grey)
    assert not has_colours(grey[..., 0])
    assert has_colours(np.array([[[1, 2, 3]]], np.uint8))


def test_what_the_header_held() -> None:
    assert header_sentences(()) == ""
    said = header_sentences(("patient name", "birth date"))
    assert said == "The file also held: patient name, birth date. None of it is shown, stored or sent on."
    assert "None of it" not in header_sentences((BURNED_IN,))
    assert first_frame(b"no image").reading_arguments() == {}


def test_a_map_lies_over_the_whole_image_and_nothing_else(tiny_federation: Federation) -> None:
    image = np.full((40, 80), 100, np.uint8)
    why = Why("glioma", "global", None, 0.6)
    laid = lay_over(image, reading(opinions(*["glioma"] * 5)), tiny_federation, why)
    assert laid.shape == (256, 512, 3)
    assert not np.array_equal(laid[0, 0], [100, 100, 100])
    assert np.array_equal(laid[-1, -1], [100, 100, 100])  # there the map speaks against the class
    same = lay_over(image, reading(opinions(*["glioma"] * 5)), tiny_federation, replace(why, other="central"))
    assert (same == 100).all()  # two models that look at the same place differ nowhere


def test_what_a_map_shows_is_said_in_words(tiny_federation: Federation) -> None:
    several = reading(opinions(*["glioma"] * 5))
    why = Why("glioma", "global", None, 0.6)
    said = why_sentences(tiny_federation, several, why)
    assert "Federated saw evidence for glioma, most of it in the upper left." in said
    assert "only 2 x 2 cells, so it shows a region, not an outline" in said
    assert "no evidence" in legend(tiny_federation, why)
    against = replace(several, maps={"global": np.full((4, 5, 5), -1, np.float32)})
    assert "found no evidence for glioma" in why_sentences(tiny_federation, against, why)
    less = replace(why, other="local/hospital-a")
    assert "Phantom North (simulated) more" in legend(tiny_federation, less)
    assert "Phantom North (simulated) does not" in why_sentences(tiny_federation, several, less)
    assert strongest_place(np.eye(3, dtype=np.float32)[::-1]) == "in the upper right"
    assert strongest_place(np.pad(np.ones((1, 1), np.float32), 1)) == "in the centre"


# --- several images ------------------------------------------------------------------------------------------------


def test_a_batch_in_lines(tiny_federation: Federation) -> None:
    lines = [
        line_of(tiny_federation, "image 1", reading(wide())),
        line_of(tiny_federation, "image 2", reading(wide(), reasons=("It is no scan.",))),
        unreadable("image 3", ImageError("is damaged")),
    ]
    assert summary(lines) == "1 of 3 images read, 1 refused, 1 unreadable."
    table = batch_table(lines, "Federated")
    assert list(table["Federated"]) == ["pituitary or meningioma", "refused", "cannot be read"]
    assert list(table["First choice"]) == ["pituitary 60.0%", "", ""]
    assert "Phantom Valley (simulated): glioma" in table.iloc[0, 2]
    assert table.iloc[1, 2] == "It is no scan."
    hidden = batch_table(lines, "Federated", {"image 1"})
    assert "pituitary" not in hidden.to_string()
    assert hidden.iloc[1, 0] == "refused"
    frame = pd.read_csv(io.BytesIO(batch_csv(lines, "phantoms@v1")))
    assert list(frame["image"]) == ["image 1", "image 2", "image 3"]
    assert list(frame["outcome"]) == ["read", "refused", "unreadable"]
    assert frame["first_choice"][0] == "pituitary"
    assert frame["probability"][0] == pytest.approx(0.6)


# --- examples ------------------------------------------------------------------------------------------------------


def test_examples_are_drawn_the_same_again_and_only_for_phantoms(tiny_federation: Federation) -> None:
    first = draw_example(tiny_federation, "glioma", 4)
    assert first == draw_example(tiny_federation, "glioma", 4)
    assert first.content != draw_example(tiny_federation, "glioma", 7).content
    assert "Synthetic" in first.caption
    assert "(simulated)" in first.caption
    assert example_labels(tiny_federation.model_copy(update={"phantom_seed": None})) == []


def test_the_scene_is_colourful_and_announced() -> None:
    scene = draw_scene(0)
    assert scene == draw_scene(0)
    assert has_colours(read_image(scene.content, colour=True))
    assert "the gate should refuse" in scene.caption


def test_held_out_images_come_from_the_test_split_alone(tiny_federation: Federation, tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        content = png(np.full((4, 4), number, np.uint8))
        (tmp_path / f"{number}.png").write_bytes(content)
        split, hospital = ("train", "test")[number % 2], f"hospital-{'ab'[number // 6]}"
        sha = sha256_of(tmp_path / f"{number}.png")
        rows.append({"path": f"{number}.png", "split": split, "hospital": hospital, "label": "glioma", "sha256": sha})
    rows.append({**rows[1], "path": "away.png", "label": "notumor"})
    found = pick_held_out(rows, tmp_path)
    assert [image.path.stem for image in found["glioma"]] == ["1", "7", "3", "9", "5", "11"]
    assert found["notumor"] == []
    example = read_held_out(tiny_federation, found["glioma"], 0)
    assert example.caption == "From Phantom North (simulated), test split, labelled glioma:"
    (tmp_path / "1.png").write_bytes(b"another")
    assert "Phantom Coast" in read_held_out(tiny_federation, found["glioma"], 0).caption
    with pytest.raises(RunError, match="not those of the run"):
        read_held_out(tiny_federation, found["glioma"][:1], 0)


def test_reports_are_made_only_when_asked(made_up: Callable[..., MadeUpPanel], tmp_path: Path) -> None:
    made_up()
    version = PublishedVersion(tmp_path / "models" / "phantoms" / "v1")
    pdf, as_json = report_makers(
        reading(wide()), version, image_name="image 1", insisted=False, own_reading="pituitary"
    )
    assert json.loads(as_json())["own_reading"] == "pituitary"
    assert pdf().startswith(b"%PDF")


def test_downloads_are_forgotten_with_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    files = MediaFileManager(MemoryMediaFileStorage("/media"))
    running = SimpleNamespace(exists=lambda: True, get_instance=lambda: SimpleNamespace(media_file_mgr=files))
    monkeypatch.setattr("ui.forgetting.runtime", running)
    stale, used = (files.add_deferred(lambda: b"a patient", "text/plain", "one place") for _ in range(2))
    drop_stale_downloads()
    assert set(files._deferred_callables) == {used}
    assert stale != used
    files.execute_deferred(used)
    assert files._file_metadata
    drop_downloads()
    assert not files._deferred_callables
    assert not files._file_metadata


# --- Compare, with a panel that says what it is told ----------------------------------------------------------------


def test_nothing_is_read_before_the_note_is_understood(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    panel = made_up()
    page = upload(open_page(COMPARE), slice_png)
    said = words(page)
    for expected in ("not for diagnosis", "this server's memory", "no disk, no cache and no log", "Remove names"):
        assert expected in said
    assert not panel.asked
    assert "Who will answer" in page.subheader[0].value
    start(page)
    assert page.subheader[0].value == "Federated: pituitary or meningioma"
    assert not [found for found in page.button if found.label == "I understand"]


def test_a_calibrated_reading(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    panel = made_up()
    panel.answers[slice_png] = reading(wide(), remarks=("It is darker than the training images.",))
    page = upload(start(), slice_png)
    said = words(page)
    for expected in (
        "Phantom Valley (simulated) says glioma.",
        "no independent evidence",
        "Bars are calibrated",
        "It is darker than the training images.",
        "never trained on notumor",
        OWN_KIND,
    ):
        assert expected in said
    assert "not calibrated" not in said
    page.toggle(key="as_table").set_value(True).run()
    table: pd.DataFrame = page.table[0].value
    assert table.shape == (5, 4)
    assert "sens.\N{NO-BREAK SPACE}91.2%" in table.to_string()
    assert "Spec., specificity" in words(page)
    assert panel.asked[-1] == {"frame": None, "window": None, "insist": False}


def test_a_version_without_calibration_says_so(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    panel = made_up(calibrated=False)
    panel.answers[slice_png] = reading(opinions(*["glioma"] * 5))
    page = upload(start(), slice_png)
    assert "not calibrated yet" in words(page)
    assert 'class="chip"' not in "".join(part.value for part in page.html)


def test_a_refused_image_gets_no_label_until_somebody_insists(
    made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes
) -> None:
    panel = made_up()
    for content in (slice_png, other_png):
        panel.answers[content] = reading(wide(), reasons=("It is more colourful.",))
    page = upload(start(), slice_png)
    assert page.subheader[0].value == HEADING
    said = words(page)
    assert "It is more colourful." in said
    assert not any(label in said for label in CLASSES)
    assert not page.radio
    assert not any(asked["insist"] for asked in panel.asked)

    insist(page)
    assert "Do not rely on it" in page.warning[0].value
    assert page.subheader[1].value == "Federated: pituitary or meningioma"
    assert panel.asked[-1]["insist"]
    upload(page, other_png)
    assert len(page.subheader) == 1, "insisting on one image is not insisting on the next"


def test_why_is_drawn_when_asked_for(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    made_up()
    page = upload(start(), slice_png)
    plain = page.get("image")[0].proto if page.get("image") else page.get("imgs")[0].proto
    page.radio(key="why").set_value("One model's heatmap").run()
    assert not page.exception
    assert "most of it in the upper left" in words(page)
    page.selectbox(key="why_model").set_value("local/hospital-c").run()
    assert "Where Phantom Valley (simulated) saw evidence for glioma" in words(page)
    page.slider(key="why_opacity").set_value(20).run()
    page.radio(key="why").set_value("Difference").run()
    assert not page.exception
    assert list(page.selectbox(key="why_other").options) == [
        "Phantom North (simulated)",
        "Phantom Coast (simulated)",
        "Phantom Valley (simulated)",
    ]
    assert "alike" in words(page)
    page.radio(key="why").set_value("Image alone").run()
    assert (page.get("image") or page.get("imgs"))[0].proto == plain


def test_the_next_image_is_shown_as_the_last_was(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    made_up()
    page = upload(start(), slice_png)
    page.radio(key="why").set_value("One model's heatmap").run()
    page.file_uploader(key="upload").set_value(None).run()
    assert "most of it in the upper left" not in words(page)
    upload(page, slice_png)
    assert not page.exception
    assert "most of it in the upper left" in words(page)


def test_looking_closer_is_for_the_eyes_alone(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    panel = made_up()
    page = upload(start(), slice_png)
    page.toggle(key="adjust").set_value(True).run()
    page.toggle(key="invert").set_value(True).run()
    page.radio(key="zoom").set_value(4).run()
    page.slider(key="across").set_value(90).run()
    page.radio(key="why").set_value("One model's heatmap").run()
    assert not page.exception
    assert all(asked == {"frame": None, "window": None, "insist": False} for asked in panel.asked)


def test_a_dicom_film_with_its_window_and_header(made_up: Callable[..., MadeUpPanel]) -> None:
    """Frame and window are what the models read; who it shows is said by kind alone."""
    panel = made_up()
    values = np.linspace(0, 1000, 3 * 8 * 8).astype(np.uint16).reshape(3, 8, 8)
    tags = {"NumberOfFrames": 3, "PatientName": "Doe^Jane", "WindowCenter": 400, "WindowWidth": 800}
    page = upload(start(), dicom(values, **tags), suffix="dcm")
    assert panel.asked[-1] == {"frame": 0, "window": None, "insist": False}
    said = words(page)
    assert "The file also held: patient name" in said
    assert "Doe" not in said
    next(slider for slider in page.slider if slider.label == "Frame, of 3").set_value(3).run()
    page.toggle(key="adjust").set_value(True).run()
    assert panel.asked[-1] == {"frame": 2, "window": None, "insist": False}
    next(slider for slider in page.slider if slider.label == "Window width").set_value(240.0).run()
    assert not page.exception
    assert panel.asked[-1] == {"frame": 2, "window": Window(400.0, 240.0), "insist": False}
    assert OWN_WINDOW in words(page)


def test_several_images_one_line_each(made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes) -> None:
    panel = made_up()
    panel.answers[other_png] = reading(wide(), reasons=("It is no scan.",))
    page = upload(start(), slice_png, b"no image", other_png)
    assert "1 of 3 images read, 1 refused, 1 unreadable." in words(page)
    table: pd.DataFrame = page.table[0].value
    assert list(table["Federated"]) == ["pituitary or meningioma", "cannot be read", "refused"]
    assert "jane-doe" not in words(page) + table.to_string()
    assert next(found.label for found in page.download_button) == "Table as CSV"
    assert page.selectbox(key="chosen_image").options == ["image 1", "image 2, unreadable", "image 3, refused"]
    assert page.subheader[0].value == "Federated: pituitary or meningioma"
    n_asked = len(panel.asked)
    page.selectbox(key="chosen_image").set_value(2).run()
    assert page.subheader[0].value == HEADING
    assert len(panel.asked) == n_asked + 1, "the table's lines are not read again"
    page.selectbox(key="chosen_image").set_value(1).run()
    assert page.error[0].value.startswith("This image cannot be read")


def test_the_reader_may_go_first(made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes) -> None:
    made_up()
    page = start()
    page.toggle(key="read_first").set_value(True).run()
    upload(page, slice_png, other_png)
    assert page.subheader[0].value == "Your reading of image 1"
    assert "Federated: " not in words(page)
    assert "pituitary" not in page.table[0].value.to_string()
    assert not page.download_button
    assert button(page, "Show the opinions").disabled
    next(radio for radio in page.radio if radio.label == "What do you see?").set_value("glioma").run()
    button(page, "Show the opinions").click().run()
    assert not page.exception
    assert page.subheader[0].value == "Federated: pituitary or meningioma"
    assert "You said glioma. Federated disagrees." in words(page)
    assert list(page.session_state["own_readings"].values()) == ["glioma"]
    upload(page, other_png)
    assert page.session_state["own_readings"] == {}


def test_a_label_after_the_opinions_is_not_the_readers_own(
    made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes
) -> None:
    """A report says that the label came first; so where it cannot have, none is taken."""
    made_up()
    page = upload(start(), slice_png)
    assert page.subheader[0].value == "Federated: pituitary or meningioma"
    page.toggle(key="read_first").set_value(True).run()
    assert TOO_LATE in words(page)
    assert page.subheader[0].value == "Federated: pituitary or meningioma"
    assert not [radio for radio in page.radio if radio.label == "What do you see?"]
    upload(page, other_png)
    assert page.subheader[0].value == "Your reading of image 1"
    assert TOO_LATE not in words(page)


def test_a_line_of_the_table_counts_as_shown(
    made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes
) -> None:
    made_up()
    page = upload(start(), slice_png, other_png)
    page.toggle(key="read_first").set_value(True).run()
    page.selectbox(key="chosen_image").set_value(1).run()
    assert TOO_LATE in words(page)


@pytest.mark.parametrize("window", [(1e308, 1e308), (1e17, 1), (40, 0), (40, -1)])
def test_a_hostile_window_breaks_no_slider(made_up: Callable[..., MadeUpPanel], window: tuple[float, float]) -> None:
    made_up()
    values = np.linspace(0, 1000, 64).astype(np.uint16).reshape(1, 8, 8)
    page = upload(start(), dicom(values, WindowCenter=window[0], WindowWidth=window[1]), suffix="dcm")
    page.toggle(key="adjust").set_value(True).run()
    assert not page.exception
    assert not page.error
    assert page.subheader[0].value == "Federated: pituitary or meningioma"


def test_reports_are_offered(made_up: Callable[..., MadeUpPanel], slice_png: bytes) -> None:
    made_up()
    page = upload(start(), slice_png)
    assert [found.label for found in page.download_button] == ["Report as PDF", "Report as JSON"]


def test_an_example_to_be_refused_is_announced(made_up: Callable[..., MadeUpPanel]) -> None:
    panel = made_up()
    panel.answers[draw_scene(0).content] = reading(wide(), reasons=("It is more colourful.",))
    page = start()
    assert page.pills(key="example").options == [*CLASSES, REFUSED]
    page.pills(key="example").set_value(REFUSED).run()
    assert not page.exception
    assert page.subheader[0].value == HEADING


def test_a_federation_without_its_data_here_has_one_example(
    made_up: Callable[..., MadeUpPanel], tiny_federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    made_up(tiny_federation.model_copy(update={"phantom_seed": None}))
    assert start().pills(key="example").options == [REFUSED]


def test_the_session_keeps_no_image(made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes) -> None:
    """Beside the uploader's own: ids, labels and lines of the table, and with the images they go too."""
    made_up()
    page = upload(start(), slice_png, other_png)

    def kept() -> str:
        return repr({key: page.session_state[key] for key in page.session_state if key != "upload"})

    assert "bytes" not in kept()
    assert "PNG" not in kept()
    assert "array" not in kept()
    assert "image 2" in kept()
    page.file_uploader(key="upload").set_value(None).run()
    assert not page.exception
    assert page.session_state["upload"] == []
    assert "image" not in kept()
    assert "Who will answer" in page.subheader[0].value


def test_every_control_has_a_name(made_up: Callable[..., MadeUpPanel], slice_png: bytes, other_png: bytes) -> None:
    made_up()
    page = upload(start(), slice_png, other_png)
    page.toggle(key="adjust").set_value(True).run()
    page.radio(key="zoom").set_value(2).run()
    page.radio(key="why").set_value("Difference").run()
    controls = [*page.button, *page.toggle, *page.radio, *page.selectbox, *page.slider, *page.file_uploader]
    assert len(controls) > 10
    assert all(control.label for control in controls)


# --- the pages, with trained models ---------------------------------------------------------------------------------


def test_home_shows_the_interval_that_the_run_recorded(phantom_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    metrics = json.loads((phantom_version / "phantoms" / "v1" / "model_meta.json").read_text())["metrics"]
    low, high = metrics["intervals"]["macro_f1"]
    said = " ".join(
        caption.value for caption in AppTest.from_file(str(PROJECT / HOME), default_timeout=60).run().caption
    )
    assert f"{percent(metrics['avg_f1'])} ({100 * low:.1f}-{100 * high:.1f})" in said


def test_nothing_published(serve: Any, tmp_path: Path) -> None:
    serve(tmp_path / "nowhere")
    for page in (HOME, COMPARE):
        opened = open_page(page)
        assert not opened.exception
        assert "python -m engine publish" in words(opened)
    assert "python -m engine train federations/phantoms.toml" in words(open_page(HOME))


def test_home_shows_what_is_published(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    home = open_page(HOME)
    assert not home.exception
    meta = current_version(phantom_version, "phantoms").read_json("model_meta.json")
    assert [metric.label for metric in home.metric] == ["Macro-F1", "Hospitals", "Images"]
    assert [metric.value for metric in home.metric][1:] == ["3", f"{meta['total_samples']:,}"]
    said = words(home)
    assert f"n = {meta['test_samples']} test images" in said
    assert "not for diagnosis" in said
    assert "synthetic" in said
    assert "simulated" in said


def test_compare_without_an_image_says_who_will_answer(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    page = open_page(COMPARE)
    assert not page.exception
    said = words(page)
    for expected in ("single slices of the synthetic", "Remove names", "never on notumor", "5 models"):
        assert expected in said
    assert "probability" not in said


def test_compare_reads_an_upload(serve: Any, phantom_version: Path, slice_png: bytes) -> None:
    serve(phantom_version)
    page = insist(upload(start(), slice_png))
    assert not page.exception
    assert any(heading.value.startswith("Federated: ") for heading in page.subheader)
    said = words(page)
    assert "agree" in said
    assert "no independent evidence" in said
    for name in ("Federated", "Phantom North (simulated)", "Phantom Coast (simulated)", "Pooled, for reference"):
        assert name in said

    page.toggle(key="as_table").set_value(True).run()
    table: pd.DataFrame = page.table[0].value
    assert table.shape == (5, 4)
    page.radio(key="why").set_value("Difference").run()
    assert not page.exception

    page.file_uploader(key="upload").set_value(None).run()
    assert not page.exception
    assert "Who will answer" in page.subheader[0].value


def test_compare_keeps_no_file(serve: Any, phantom_version: Path, slice_png: bytes) -> None:
    """Neither on disk below the working folders, nor after the uploader has let go of it."""
    serve(phantom_version)
    before = set(phantom_version.rglob("*"))
    page = upload(start(), slice_png)
    page.file_uploader(key="upload").set_value(None).run()
    assert page.session_state["upload"] == []
    assert set(phantom_version.rglob("*")) == before


def test_compare_tries_an_example_and_another(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    page = start()
    page.pills(key="example").set_value("notumor").run()
    assert not page.exception
    assert "Who will answer" not in page.subheader[0].value
    button(page, "Draw another").click().run()
    assert not page.exception
    assert page.session_state["example_number"] == 1


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n truncated", b"\0" * 128 + b"DICM junk"]
)
def test_compare_says_calmly_that_it_cannot_read(serve: Any, phantom_version: Path, content: bytes) -> None:
    serve(phantom_version)
    page = upload(start(), content)
    assert len(page.error) == 1
    assert page.error[0].value.startswith("This image cannot be read")


def test_compare_reads_a_colour_jpeg_of_another_shape(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 120, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG")
    page = insist(upload(start(), content.getvalue(), suffix="jpg"))
    assert not page.exception
    assert any(heading.value.startswith("Federated: ") for heading in page.subheader)


def test_a_damaged_version_is_refused_in_one_sentence(serve: Any, damaged: Path) -> None:
    serve(damaged)
    for page in (HOME, COMPARE):
        opened = open_page(page)
        assert not opened.exception
        assert len(opened.error) == 1
        assert "not as it was published" in opened.error[0].value
    assert not open_page(COMPARE).file_uploader


def test_home_and_compare_need_no_torch(phantom_version: Path, tmp_path: Path) -> None:
    """In a process of its own where importing torch fails, an example is read from start to end."""
    script = f"""
import sys
for name in {ENGINE_ONLY!r}:
    sys.modules[name] = None
from streamlit.testing.v1 import AppTest
assert not AppTest.from_file("app.py", default_timeout=60).run().exception
page = AppTest.from_file("pages/4_Compare.py", default_timeout=60).run()
next(button for button in page.button if button.label == "I understand").click().run()
page.pills(key="example").set_value("glioma").run()
assert not page.exception
assert page.subheader[0].value.startswith(("Federated: ", "Refused")), page.subheader
"""
    environment = {**os.environ, "CONSILIUM_MODELS": str(phantom_version), "CONSILIUM_ARTIFACTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
