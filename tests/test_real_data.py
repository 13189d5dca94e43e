"""The real brain-MRI federation, as far as a test has time for it."""

import os
from pathlib import Path

import pytest

from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.federation.training_run import start_run, train_run
from engine.inference.evaluate import evaluate_folder
from engine.inference.panel import open_panel
from engine.publishing.publish import publish_run

PROJECT = Path(__file__).resolve().parent.parent
ROOT = Path(os.environ.get("CONSILIUM_DATA", "/nowhere")) / "brain-mri"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not ROOT.is_dir(), reason="the real images are not on this machine (CONSILIUM_DATA)"),
]


@pytest.fixture(scope="module")
def brain() -> Federation:
    changes = (
        "model.architecture='compact-cnn'",
        "model.image_size_px=32",
        "training.rounds=6",
        "training.learning_rate=4e-3",
    )
    return load_federation(PROJECT / "federations" / "brain-mri.toml", changes)


@pytest.fixture(scope="module")
def data(brain: Federation) -> FederationData:
    return read_federation_data(brain, ROOT)


def test_every_folder_finds_its_class(data: FederationData) -> None:
    counts = {hospital: found.class_counts for hospital, found in data.audit.hospitals.items()}
    assert counts == {
        "aiims-delhi": {"glioma": 215, "meningioma": 294, "notumor": 462, "pituitary": 226},
        "nimhans-bengaluru": {"glioma": 333, "meningioma": 190, "notumor": 0, "pituitary": 236},
        "tata-memorial-mumbai": {"glioma": 211, "meningioma": 352, "notumor": 0, "pituitary": 303},
    }


def test_the_audit_finds_the_copies_and_the_class_of_one_hospital(data: FederationData) -> None:
    assert {hospital: found.exact_duplicates for hospital, found in data.audit.hospitals.items()} == {
        "aiims-delhi": 228,
        "nimhans-bengaluru": 41,
        "tata-memorial-mumbai": 57,
    }
    confound = next(finding for finding in data.audit.findings if finding.kind == "one-hospital-class")
    assert confound.sentence.startswith("only AIIMS Delhi (simulated) holds notumor")


def test_the_whole_path_from_folders_to_served_scores(data: FederationData, tmp_path: Path) -> None:
    run = train_run(start_run(data, "federations/brain-mri.toml", tmp_path / "artifacts"), data)
    panel = open_panel(publish_run(run, "brain-mri", data, tmp_path / "models"))
    scores, left_out = evaluate_folder(panel, ROOT / "dataset-1")
    assert not left_out.folders
    assert not left_out.images
    assert set(scores) == {"global", "central", *(f"local/{hospital.id}" for hospital in data.federation.hospital)}
    assert all(score["n_images"] == 1197 for score in scores.values())
    assert scores["local/aiims-delhi"]["accuracy"] > 0.45, (
        "trained on most of these images, it must beat the largest class (0.386)"
    )
