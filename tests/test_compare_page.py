"""Home and Compare: nothing published, one version, a damaged one, no torch; and the sentences Compare says."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from engine.cli import ENGINE_ONLY
from engine.config import Federation
from engine.inference.panel import Opinion
from engine.results.published import current_version
from ui.examples import draw_example, example_labels
from ui.opinions import SHARED_IMAGES, agreement, answer, never_seen, opinion_rows, probability_table
from ui.words import percent

PROJECT = Path(__file__).resolve().parent.parent
COMPARE, HOME = "pages/4_Compare.py", "app.py"
COUNTS = {
    "hospital-a": {"glioma": 3, "meningioma": 3, "notumor": 3, "pituitary": 3},
    "hospital-b": {"glioma": 3, "meningioma": 3, "notumor": 3, "pituitary": 3},
    "hospital-c": {"glioma": 3, "meningioma": 3, "notumor": 0, "pituitary": 3},
}


def opinion(label: str, probability: float = 0.94) -> Opinion:
    others = [name for name in ("glioma", "meningioma", "notumor", "pituitary") if name != label]
    rest = dict.fromkeys(others, (1 - probability) / 3)
    return Opinion(label, {label: probability, **rest}, (label,))


def opinions(federated: str, a: str, b: str, c: str, pooled: str) -> dict[str, Opinion]:
    """Pooled stands first, so that order is seen to be made."""
    keys = ("central", "local/hospital-c", "local/hospital-a", "local/hospital-b", "global")
    return {key: opinion(label) for key, label in zip(keys, (pooled, c, a, b, federated), strict=True)}


def open_page(page: str) -> AppTest:
    return AppTest.from_file(str(PROJECT / page), default_timeout=60).run()


def words(page: AppTest) -> str:
    parts = [*page.markdown, *page.caption, *page.subheader, *page.html, *page.error, *page.info, *page.code]
    return "\n".join(str(part.value) for part in parts)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def use(models: Path) -> None:
        monkeypatch.setenv("CONSILIUM_MODELS", str(models))
        monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(tmp_path / "no-artifacts"))

    return use


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


# --- the words -----------------------------------------------------------------------------------------------------


def test_agreement_names_who_says_otherwise(tiny_federation: Federation) -> None:
    said = agreement(tiny_federation, opinions("notumor", "notumor", "notumor", "glioma", "notumor"), COUNTS)
    assert said == (
        f"4 of 5 models agree. Phantom Valley (simulated), never trained on notumor, says glioma. {SHARED_IMAGES}"
    )


def test_agreement_of_all_and_of_none(tiny_federation: Federation) -> None:
    assert agreement(tiny_federation, opinions(*["glioma"] * 5), COUNTS) == f"All 5 models agree. {SHARED_IMAGES}"
    said = agreement(tiny_federation, opinions("glioma", *["pituitary"] * 3, "notumor"), COUNTS)
    assert said.startswith("No other model agrees.")
    assert "Phantom North (simulated), Phantom Coast (simulated) and Phantom Valley (simulated) say pituitary." in said
    assert "The pooled model says notumor." in said


def test_agreement_of_one_model_alone_claims_nothing(tiny_federation: Federation) -> None:
    assert "agree" not in agreement(tiny_federation, {"global": opinion("glioma")}, COUNTS)


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


def test_rows_escape_what_they_are_given(tiny_federation: Federation) -> None:
    nasty = Opinion("<script>", {"<script>": 0.9, "b&": 0.1}, ("<script>",))
    rows = opinion_rows(tiny_federation, {"global": nasty}, {})
    assert "<script>" not in rows
    assert "&lt;script&gt;" in rows


def test_never_seen(tiny_federation: Federation) -> None:
    assert never_seen(tiny_federation, COUNTS) == {"hospital-c": ["notumor"]}


def test_examples_are_drawn_the_same_again_and_only_for_phantoms(tiny_federation: Federation) -> None:
    first = draw_example(tiny_federation, "glioma", 4)
    assert first == draw_example(tiny_federation, "glioma", 4)
    assert first.content != draw_example(tiny_federation, "glioma", 7).content
    assert "Synthetic" in first.caption
    assert "(simulated)" in first.caption
    assert example_labels(tiny_federation.model_copy(update={"phantom_seed": None})) == []


def test_home_shows_the_interval_that_the_run_recorded(phantom_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    metrics = json.loads((phantom_version / "phantoms" / "v1" / "model_meta.json").read_text())["metrics"]
    low, high = metrics["intervals"]["macro_f1"]
    said = " ".join(
        caption.value for caption in AppTest.from_file(str(PROJECT / HOME), default_timeout=60).run().caption
    )
    assert f"{percent(metrics['avg_f1'])} ({100 * low:.1f}-{100 * high:.1f})" in said


# --- the pages -----------------------------------------------------------------------------------------------------


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
    page = open_page(COMPARE)
    page.file_uploader(key="upload").set_value(("slice.png", slice_png, "image/png")).run()
    assert not page.exception
    assert page.subheader[0].value.startswith("Federated: ")
    said = words(page)
    assert "agree" in said
    assert "no independent evidence" in said
    assert "not calibrated yet" in said
    for name in ("Federated", "Phantom North (simulated)", "Phantom Coast (simulated)", "Pooled, for reference"):
        assert name in said

    page.toggle(key="as_table").set_value(True).run()
    table: pd.DataFrame = page.table[0].value
    assert table.shape == (5, 4)

    page.file_uploader(key="upload").set_value(None).run()
    assert not page.exception
    assert "Who will answer" in page.subheader[0].value


def test_compare_keeps_no_image(serve: Any, phantom_version: Path, slice_png: bytes, tmp_path: Path) -> None:
    """Neither in the session beside the uploader's own, nor in a cache, nor on disk below the working folders."""
    serve(phantom_version)
    before = set(phantom_version.rglob("*"))
    page = open_page(COMPARE)
    page.file_uploader(key="upload").set_value(("slice.png", slice_png, "image/png")).run()
    page.file_uploader(key="upload").set_value(None).run()
    kept = {key: page.session_state[key] for key in page.session_state}
    assert kept["upload"] is None
    assert not [value for value in kept.values() if not isinstance(value, str | int | None)]
    assert set(phantom_version.rglob("*")) == before


def test_compare_tries_an_example_and_another(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    page = open_page(COMPARE)
    page.pills(key="example").set_value("notumor").run()
    assert not page.exception
    assert "Federated: " in page.subheader[0].value
    next(button for button in page.button if button.label == "Draw another").click().run()
    assert not page.exception
    assert page.session_state["example_number"] == 1


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n truncated", b"\0" * 128 + b"DICM junk"]
)
def test_compare_says_calmly_that_it_cannot_read(serve: Any, phantom_version: Path, content: bytes) -> None:
    serve(phantom_version)
    page = open_page(COMPARE)
    page.file_uploader(key="upload").set_value(("slice.png", content, "image/png")).run()
    assert not page.exception
    assert len(page.error) == 1
    assert page.error[0].value.startswith("This image cannot be read")


def test_compare_reads_a_colour_jpeg_of_another_shape(serve: Any, phantom_version: Path) -> None:
    serve(phantom_version)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 120, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG")
    page = open_page(COMPARE)
    page.file_uploader(key="upload").set_value(("photo.jpg", content.getvalue(), "image/jpeg")).run()
    assert not page.exception
    assert page.subheader[0].value.startswith("Federated: ")


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
page.pills(key="example").set_value("glioma").run()
assert not page.exception
assert page.subheader[0].value.startswith("Federated: "), page.subheader
"""
    environment = {**os.environ, "CONSILIUM_MODELS": str(phantom_version), "CONSILIUM_ARTIFACTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
