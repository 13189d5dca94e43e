"""An external test set: in no split, chosen by nothing, scored apart; and how pages and card show it and the skew."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from engine.config import EXTERNAL, Federation, load_federation
from engine.data.audit import require_trainable
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.images import read_image
from engine.data.looks import small_grey
from engine.data.phantoms import write_phantoms
from engine.data.scanner import apply_scanner
from engine.data.statistics import measure_statistics
from engine.errors import DataError
from engine.federation.training_run import start_run, train_run
from engine.inference.panel import read_calibration
from engine.publishing.publish import publish_run
from engine.results.published import PublishedVersion
from engine.results.run_folder import Run
from engine.terminal import print_opinions, print_scores
from tests.conftest import PROJECT
from tests.test_pages import open_page, words
from ui.examples import HeldOut, read_held_out

NAME = "Elsewhere General"
TOML = f"""\
name = "Dealt phantoms"
data = "dealt"
classes = ["meningioma", "notumor"]
positive = "meningioma"
intended_input = "synthetic slices"
simulated = "Invented."
licence = "CC BY-NC 4.0: non-commercial use only"
headline = "balanced_accuracy"
arms = ["federated", "central"]

[source]
folder = "hospital-a"

[partition]
method = "quantity"
alpha = 2.0

[external]
name = "{NAME}"
folder = "hospital-b"

[split]
patient_pattern = '(phantom-[abc]-p[0-9]+)'

[model]
architecture = "compact-cnn"
image_size_px = 32

[training]
rounds = 2
batch_size = 8

[[hospital]]
id = "north"
name = "North"

[[hospital]]
id = "south"
name = "South"

[hospital.scanner]
noise = 0.02
contrast = 0.7
"""
COUNTS = {
    "hospital-a": {"meningioma": 36, "notumor": 36},
    "hospital-b": {"meningioma": 9, "notumor": 12},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of the external folder are byte for byte in the pool."""
    folder = tmp_path_factory.mktemp("data") / "dealt"
    write_phantoms(folder, seed=5, size_px=48, images_per_hospital=COUNTS)
    for number, image in enumerate(sorted((folder / "hospital-a" / "notumor").iterdir())[:2]):
        shutil.copyfile(image, folder / "hospital-b" / "notumor" / f"copied-{number}.png")
    return folder


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    file = tmp_path_factory.mktemp("toml") / "dealt.toml"
    file.write_text(TOML, encoding="utf-8")
    return load_federation(file)


@pytest.fixture(scope="module")
def data(federation: Federation, root: Path) -> FederationData:
    return read_federation_data(federation, root)


@pytest.fixture(scope="module")
def run(data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(start_run(data, "dealt.toml", tmp_path_factory.mktemp("artifacts")), data)


def test_the_external_images_are_in_no_split(data: FederationData) -> None:
    written = data.splits_json()
    assert len(written["external"]) == 21
    assert not [row for row in written["images"] if row["path"].startswith("hospital-b/")]
    assert {row["hospital"] for row in written["images"]} == {"north", "south"}


def test_copies_of_the_pool_are_found_and_left_out(data: FederationData) -> None:
    (finding,) = [finding for finding in data.audit.findings if finding.kind == "external-copies"]
    assert finding.severity == "warning"
    assert finding.sentence == f"{NAME}: 2 images held by a hospital too, byte for byte; left out"
    assert finding.paths == ("hospital-b/notumor/copied-0.png", "hospital-b/notumor/copied-1.png")
    assert data.audit.external is not None
    assert data.audit.external.class_counts == {"meningioma": 9, "notumor": 12}


def resaved(source: Path, target: Path) -> None:
    """The same picture in other bytes."""
    Image.open(source).save(target, compress_level=0)


def test_patients_and_look_alikes_of_the_pool_are_left_out_too(
    federation: Federation, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "dealt")
    pool, outside = (tmp_path / "dealt" / name / "meningioma" for name in ("hospital-a", "hospital-b"))
    resaved(pool / "phantom-a-p001-s1.png", outside / "nameless.png")  # its patient is not known
    resaved(pool / "phantom-a-p005-s1.png", outside / "phantom-c-p900-s1.png")  # of somebody else
    (outside / "phantom-b-p001-s1.png").rename(outside / "phantom-a-p013-s9.png")  # one name, another picture
    data = read_federation_data(federation, tmp_path / "dealt")
    said = {finding.kind: finding for finding in data.audit.findings if finding.kind.startswith("external-")}
    assert {finding.severity for finding in said.values()} == {"warning"}
    assert {kind: (finding.sentence, finding.paths) for kind, finding in said.items() if "copies" not in kind} == {
        "external-patients": (
            f"{NAME}: 1 image of patients of whom a hospital holds images too; left out",
            ("hospital-b/meningioma/phantom-a-p013-s9.png",),
        ),
        "external-look-alikes": (
            f"{NAME}: 1 image looking like a hospital's; left out",
            ("hospital-b/meningioma/nameless.png",),
        ),
        "external-look-alikes-kept": (
            f"{NAME}: 1 image looking like another patient's at a hospital; kept",
            ("hospital-b/meningioma/phantom-c-p900-s1.png",),
        ),
    }
    assert data.audit.external is not None
    assert data.audit.external.class_counts == {"meningioma": 9, "notumor": 12}
    assert data.external is not None
    holding = data.external.holding
    kept = {image.path for image in holding.images}
    assert "hospital-b/meningioma/phantom-c-p900-s1.png" in kept
    assert not kept & {path for kind, finding in said.items() if "kept" not in kind for path in finding.paths}
    for image, grey in zip(holding.images, holding.decoded.greys, strict=True):  # each row is still its own image's
        assert np.array_equal(grey, small_grey(read_image(data.root / image.path, colour=True)))


def test_a_hospital_with_a_folder_of_its_own_names_its_own_patients(root: Path, tmp_path: Path) -> None:
    """As in the splits: one name at two such places is two patients."""
    shutil.copytree(root, tmp_path / "dealt")
    outside = tmp_path / "dealt" / "hospital-b" / "meningioma"
    (outside / "phantom-b-p001-s1.png").rename(outside / "phantom-a-p013-s9.png")
    own = TOML.replace('[source]\nfolder = "hospital-a"\n\n[partition]\nmethod = "quantity"\nalpha = 2.0\n', "")
    own = own[: own.index("[[hospital]]")] + '[[hospital]]\nid = "a"\nname = "A"\nfolder = "hospital-a"\n'
    (tmp_path / "own.toml").write_text(own, encoding="utf-8")
    data = read_federation_data(load_federation(tmp_path / "own.toml"), tmp_path / "dealt")
    assert data.external is not None
    assert data.external.same_patient == ()
    assert "hospital-b/meningioma/phantom-a-p013-s9.png" in {image.path for image in data.external.holding.images}


def test_every_model_is_scored_on_it_apart_with_intervals_over_patients(run: Run) -> None:
    predictions = run.predictions()
    outside = predictions[predictions["split"] == EXTERNAL]
    assert set(outside["hospital"]) == {EXTERNAL}
    assert outside["path"].str.startswith("hospital-b/").all()
    assert not predictions[predictions["split"] != EXTERNAL]["path"].str.startswith("hospital-b/").any()
    splits = run.read_json("evaluation.json")["splits"]
    assert set(splits) == {"validation", "test", EXTERNAL}
    assert set(splits[EXTERNAL]) == {"global", "central"}
    cell = splits[EXTERNAL]["global"]["all"]
    assert set(cell) == set(splits["test"]["global"]["all"])
    assert cell["n_images"] == 21
    patients = {Path(path).name.rsplit("-", 1)[0] for path in outside["path"]}
    assert cell["n_groups"] == len(patients) < 21
    assert set(cell["intervals"]) == set(splits["test"]["global"]["all"]["intervals"])


def test_validation_alone_chose_the_round(run: Run) -> None:
    seen = {line.hospital for line in run.rounds()}
    assert seen == {"north", "south", "all", "pooled"}


def test_the_same_training_without_the_external_set_is_the_same(
    federation: Federation, root: Path, run: Run, tmp_path: Path
) -> None:
    alone = federation.model_copy(update={"external": None})
    data = read_federation_data(alone, root)
    other = train_run(start_run(data, "dealt.toml", tmp_path), data)
    assert "external" not in other.read_json("dataset_splits.json")
    ours, theirs = (one.read_json("evaluation.json")["splits"]["test"]["global"]["all"] for one in (run, other))
    assert ours == theirs


def test_a_missing_external_folder_stops_a_training(federation: Federation, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "dealt")
    shutil.rmtree(tmp_path / "dealt" / "hospital-b")
    audit = read_federation_data(federation, tmp_path / "dealt").audit
    with pytest.raises(DataError, match=f"{NAME}: its folder 'hospital-b' is missing"):
        require_trainable(audit)


def test_a_class_that_the_external_set_lacks_is_a_warning(federation: Federation, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "dealt")
    shutil.rmtree(tmp_path / "dealt" / "hospital-b" / "meningioma")
    findings = read_federation_data(federation, tmp_path / "dealt").audit.findings
    assert f"{NAME}: holds no image of meningioma" in [finding.sentence for finding in findings]


def page(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(run.folder.parent))
    monkeypatch.setenv("CONSILIUM_MODELS", str(run.folder.parent / "models"))
    monkeypatch.chdir(PROJECT)
    app = open_page(name)
    assert not app.exception
    return app


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hospitals_says_how_unlike_they_are_in_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = words(page("1_Hospitals", run, monkeypatch))
    assert "Jensen-Shannon divergence 0.00 on average" in said
    assert "non-IID" not in said  # the mixes are alike, only the sizes differ
    assert "One pool was dealt to them in uneven amounts (quantity, alpha 2, seed 0)" in said
    assert f"Kept apart as an external test set: {NAME}, 21 images." in said
    assert "CC BY-NC 4.0: non-commercial use only" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_evaluation_leads_with_the_headline_and_offers_the_external_set(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = page("3_Evaluation", run, monkeypatch)
    assert "by balanced accuracy: the federated model" in words(app)
    split = next(control for control in app.segmented_control if control.key == "split")
    assert list(split.options) == ["test", "external", "validation"]
    said = words(split.set_value("external").run())
    assert f"On all 21 external images ({NAME})" in said
    assert "misses" in said
    assert "No model was trained on them, and none was chosen by them." in said
    assert [box.options for box in app.selectbox if box.key == "cell_hospital"] == [[NAME]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_leads_with_the_headline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page("2_Training", run, monkeypatch)
    assert "balanced accuracy **" in words(app)
    assert "Best balanced accuracy" in [metric.label for metric in app.metric]


def test_the_card_says_licence_headline_and_the_external_scores(run: Run, data: FederationData, tmp_path: Path) -> None:
    version = publish_run(run, "dealt", data, tmp_path)
    card = (version.folder / "card.md").read_text(encoding="utf-8")
    assert "Licence of the images: CC BY-NC 4.0: non-commercial use only" in card
    assert f"## Scores on the external test set, before quantisation: {NAME}" in card
    header = next(line for line in card.splitlines() if line.startswith("| Model |"))
    assert header == "| Model | Missed | False alarms | Balanced accuracy | Accuracy | Macro-F1 | Images |"
    assert json.loads((version.folder / "model_meta.json").read_text())["datasets"] == ["hospital-a", "hospital-a"]
    assert_gate_knows_what_the_scanners_showed(version, data)


def test_tables_of_the_terminal_say_the_licence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(run.federation, {}, title="scores")
    print_opinions(run.federation, [], calibrated=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Licence of the training images: CC BY-NC 4.0") == 2


def assert_gate_knows_what_the_scanners_showed(version: PublishedVersion, data: FederationData) -> None:
    """The gate's means over training images are those of the shifted ones."""
    scanners = {hospital.id: hospital.scanner for hospital in data.federation.hospital}
    plain, shown = [], []
    for split in data.splits:
        if split.part == "train":
            pixels = read_image(data.root / split.image.path, colour=True)
            scanner = scanners[split.image.hospital]
            plain.append(measure_statistics(pixels))
            shown.append(measure_statistics(apply_scanner(pixels, scanner, split.image.sha256)))
    calibration = read_calibration(version)
    assert calibration is not None
    mean = calibration.gate.mean.tolist()
    assert mean == pytest.approx(np.mean(shown, axis=0).tolist(), rel=1e-6)
    assert mean != pytest.approx(np.mean(plain, axis=0).tolist(), rel=1e-3)


def test_an_example_is_what_the_hospitals_models_were_shown(data: FederationData) -> None:
    split = next(split for split in data.splits if split.image.hospital == "south")
    path = data.root / split.image.path
    held_out = [HeldOut(path, "south", split.image.label, split.image.sha256)]
    content = read_held_out(data.federation, held_out, 0).content
    scanner = data.federation.hospital[1].scanner
    expected = apply_scanner(read_image(path, colour=False), scanner, split.image.sha256)
    assert np.array_equal(read_image(content, colour=False), expected)
    held_out = [HeldOut(path, "north", split.image.label, split.image.sha256)]
    assert read_held_out(data.federation, held_out, 0).content == path.read_bytes()
