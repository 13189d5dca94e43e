"""Composites: an average of many, nobody's image, shipped only where the gate takes it for a scan."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import Federation
from engine.data.federation_data import FederationData
from engine.data.images import read_image
from engine.inference.panel import Panel, open_panel
from engine.publishing import composites
from engine.publishing.composites import N_IMAGES, make_composites
from engine.publishing.publish import calibrate_version, publish_run
from engine.results.published import Composite, PublishedVersion, current_version
from engine.results.run_folder import find_run
from ui.examples import REFUSED, example_choices, make_example


@pytest.fixture
def panel(phantom_version: Path) -> Panel:
    return open_panel(current_version(phantom_version, "phantoms"))


@pytest.fixture
def open_gate(panel: Panel) -> Panel:
    """The panel with a gate that lets everything pass: tiny phantoms' averages may well be refused."""
    assert panel.calibration is not None
    gate = panel.calibration.gate.model_copy(update={"features_limit": 1e9, "statistics_limit": 1e9})
    return with_gate(panel, gate)


def with_gate(panel: Panel, gate: object) -> Panel:
    assert panel.calibration is not None
    calibration = panel.calibration.model_copy(update={"gate": gate})
    return Panel(panel.federation, panel._scorers, calibration)


def test_a_version_gets_at_most_eight_of_many_patients_each(tiny_data: FederationData, open_gate: Panel) -> None:
    made = list(make_composites(tiny_data, open_gate))
    labels = [composite.label for _, composite in made]
    assert set(labels) <= set(tiny_data.federation.classes)
    assert labels and len(labels) <= 8 and max(labels.count(label) for label in labels) <= 2
    for content, composite in made:
        assert composite.n_images == N_IMAGES
        size = Image.open(io.BytesIO(content)).size
        assert 128 < min(size) <= max(size) <= 256, "what a shift brought in is cut off"


def test_members_are_training_images_of_different_patients(
    tiny_data: FederationData, open_gate: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = {(split.image.hospital, split.image.path): split for split in tiny_data.splits}
    seen = []
    average = composites._average

    def spy(data, candidates, members):  # type: ignore[no-untyped-def]
        seen.append([candidates.images[member] for member in members])
        return average(data, candidates, members)

    monkeypatch.setattr(composites, "_average", spy)
    list(make_composites(tiny_data, open_gate))
    assert seen
    for images in seen:
        splits = [part[image.hospital, image.path] for image in images]
        assert {split.part for split in splits} == {"train"}
        assert len({split.group for split in splits}) == N_IMAGES
    everybody = [image.path for images in seen for image in images]
    assert len(everybody) == len(set(everybody))


def test_no_two_unknown_patients_of_a_composite_look_alike(
    tiny_data: FederationData, open_gate: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phantom heads are all alike: without known patients nothing may be averaged."""
    holdings = tuple(
        replace(holding, images=tuple(replace(image, patient=None) for image in holding.images))
        for holding in tiny_data.holdings
    )
    unknown = replace(tiny_data, holdings=holdings)
    monkeypatch.setattr(composites, "TOO_ALIKE", 0.5)
    assert list(make_composites(unknown, open_gate)) == []
    monkeypatch.setattr(composites, "TOO_ALIKE", 1.1)
    assert list(make_composites(unknown, open_gate))


def test_what_the_gate_refuses_is_not_shipped(tiny_data: FederationData, panel: Panel) -> None:
    assert panel.calibration is not None
    shut = panel.calibration.gate.model_copy(update={"features_limit": 1e-9})
    assert list(make_composites(tiny_data, with_gate(panel, shut))) == []


def test_shifted_images_are_laid_over_each_other(tiny_data: FederationData) -> None:
    grey = read_image(tiny_data.root / tiny_data.holdings[0].images[0].path, colour=False)
    small = np.asarray(Image.fromarray(grey).resize((64, 64)), np.float64)
    moved = np.roll(small, (3, -4), axis=(0, 1))
    alike, shift = composites._align(np.stack([small, moved]))
    assert alike[0, 1] == pytest.approx(1)
    assert shift[0, 1].tolist() == [-3, 4]


def test_published_listed_offered_and_renewed(
    tiny_federation: Federation,
    tiny_data: FederationData,
    phantom_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny phantoms pass for a real federation here: only those get composites."""
    made = Composite(label="glioma", n_images=8, hospitals=("hospital-a",))
    monkeypatch.setattr("engine.publishing.publish.make_composites", lambda data, panel: [(b"first", made)] * 2)
    real = replace(tiny_data, federation=tiny_federation.model_copy(update={"phantom_seed": None}))
    run = find_run(phantom_run, "run-001")
    assert publish_run(run, "phantoms", tiny_data, tmp_path / "drawn").manifest.composites == {}
    version = publish_run(run, "brain", real, tmp_path)
    version.verify()
    assert version.manifest.composites == {"composite-1.png": made, "composite-2.png": made}
    assert (version.folder / "composite-2.png").read_bytes() == b"first"

    monkeypatch.setattr("engine.publishing.publish.make_composites", lambda data, panel: [(b"second", made)])
    graphs = {path.name: path.stat().st_mtime_ns for path in version.folder.glob("*.onnx")}
    (version.folder / "composite-7.png").write_bytes(b"left by a calibration that was killed")
    calibrate_version(version, run, real)
    renewed = PublishedVersion(version.folder)
    renewed.verify()
    assert list(renewed.manifest.composites) == ["composite-1.png"]
    assert (version.folder / "composite-1.png").read_bytes() == b"second"
    assert {path.name: path.stat().st_mtime_ns for path in version.folder.glob("*.onnx")} == graphs


def test_a_composite_says_what_it_is(phantom_version: Path, tmp_path: Path) -> None:
    served = current_version(phantom_version, "phantoms")
    made = {
        f"composite-{number}.png": Composite(label="glioma", n_images=8, hospitals=("hospital-a",)) for number in (1, 2)
    }
    federation = served.federation.model_copy(update={"phantom_seed": None, "data": "not-here"})
    version = PublishedVersion(served.folder)
    version.__dict__["manifest"] = served.manifest.model_copy(update={"composites": made, "federation": federation})
    assert example_choices(version.manifest, tested=False) == ["glioma", REFUSED]
    version.folder = tmp_path
    for name in made:
        (tmp_path / name).write_bytes(name.encode())
    shown = [make_example(version, "glioma", number, tested=False) for number in range(3)]
    assert [example.content for example in shown] == [b"composite-1.png", b"composite-2.png", b"composite-1.png"]
    assert shown[0].caption == "Composite, not a patient: the aligned average of 8 training images labelled glioma."
