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
from engine.results.published import current_version
from engine.results.run_folder import find_run

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
        "model.weights='none'",
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


def test_the_published_version_answers_as_its_run_says(data: FederationData) -> None:
    """models/brain-mri on the run's own test images: int8 and fp16 may differ from the run on few of them."""
    version = current_version(PROJECT / "models", "brain-mri")
    run = find_run(PROJECT / "artifacts", version.manifest.run)
    run.verify()
    panel = open_panel(version)
    files = [ROOT / row["path"] for row in run.read_json("dataset_splits.json")["images"] if row["split"] == "test"]
    labels = [row["label"] for row in run.read_json("dataset_splits.json")["images"] if row["split"] == "test"]
    recorded = run.read_json("evaluation.json")["splits"]["test"]["global"]["all"]["accuracy"]
    readings = [panel.read(file, insist=True) for file in files]
    right = [reading.opinions["global"].label == label for reading, label in zip(readings, labels, strict=True)]
    assert abs(sum(right) / len(right) - recorded) < 0.02
    assert sum(reading.refused for reading in readings) <= 0.05 * len(readings)
