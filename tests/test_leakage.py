"""What leaks: a loss attack that finds what was memorised and nothing else, an inversion that noise stops, and files
without a pixel of any patient."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from engine.data.federation_data import FederationData
from engine.federation.arms import image_sets
from engine.federation.inversion import gradient_of, invert, private_gradient_of
from engine.federation.inversion_targets import Batch, choose_targets
from engine.federation.leakage import measure_leakage, start_network
from engine.federation.membership import Losses, attack_by_loss, cross_entropies, measure_membership, plan_membership
from engine.federation.similarity import WINDOW_PX, peak_signal_to_noise, structural_similarity
from engine.results.bootstrap import separation, weighted_hits
from engine.results.files import sha256_of, write_json
from engine.results.leakage import ENOUGH, MAX_FALSE, Leakage, leakage_file, pictures_file, read_leakage
from engine.results.run_folder import Run
from engine.training.networks import Network
from engine.training.private import Noise, private_steps
from tests.conftest import Command

CPU = torch.device("cpu")


class Pixels(Network):
    """Remembers whatever it is shown: a linear layer on every pixel, behind one convolution if `width`."""

    head_name = "head"

    def __init__(self, side: int, n_classes: int, width: int = 0) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.backbone = (
            nn.Sequential(nn.Conv2d(3, width, 5, stride=2, padding=2), nn.Sigmoid()) if width else nn.Flatten()
        )
        self.head = nn.Linear(width * (side // 2) ** 2 if width else 3 * side**2, n_classes)

    def feature_map(self, images: Tensor) -> Tensor:
        result: Tensor = self.backbone(images)
        return result

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self.head(feature_map.flatten(1))
        return logits


def blobs(n_images: int, side: int, seed: int) -> Tensor:
    """Smooth grey images, no two alike."""
    coarse = torch.rand((n_images, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


# --- membership ----------------------------------------------------------------------------------------------------


def asked(network: Network, pixels: Tensor, labels: Tensor, n_members: int) -> dict[str, Any]:
    with torch.no_grad():
        logits = network(network.normalise(pixels)).numpy()
    member = np.arange(len(labels)) < n_members
    groups = tuple(f"patient-{place}" for place in range(len(labels)))
    return attack_by_loss(Losses(cross_entropies(logits, labels.numpy()), member, groups))


def test_the_loss_finds_what_was_memorised_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand((400, 1, 8, 8), generator=generator)
    labels = torch.randint(0, 2, (400,), generator=generator)  # nothing to learn, only to remember
    torch.manual_seed(2)
    network = Pixels(8, 2)
    before = asked(network, pixels, labels, 200)
    assert 0.4 < before["auc"]["value"] < 0.6
    assert before["auc"]["low"] < 0.5 < before["auc"]["high"]
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        functional.cross_entropy(network(network.normalise(pixels[:30])), labels[:30]).backward()
        optimizer.step()
    after = asked(network, torch.cat([pixels[:30], pixels[200:]]), torch.cat([labels[:30], labels[200:]]), 30)
    assert after["auc"]["low"] > 0.6
    assert after["loss_members"] < after["loss_others"]
    assert after["tpr"] is not None


def test_the_auc_and_the_share_at_few_false_alarms_are_the_naive_ones() -> None:
    generator = np.random.default_rng(0)
    member = np.arange(500) < 250
    scores = np.round(generator.normal(0, 1, 500) + member, 1)  # with ties
    auc, hits = separation(scores, member, [str(place) for place in range(500)], MAX_FALSE)
    assert auc.value == pytest.approx(roc_auc_score(member, scores))
    naive = [
        (scores[member] >= threshold).mean()
        for threshold in np.unique(scores)
        if (scores[~member] >= threshold).mean() <= MAX_FALSE
    ]
    assert hits.value == pytest.approx(max(naive, default=0))
    assert auc.low < auc.value < auc.high
    assert hits.low <= hits.value <= hits.high
    assert np.isnan(weighted_hits(scores[:9], member[:9], np.ones((1, 9)), MAX_FALSE)[0]), "nobody to take for one"


def test_losses_are_torchs_and_never_flatten_to_nothing() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(20) % 4
    expected = functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
    np.testing.assert_allclose(cross_entropies(logits.numpy(), labels.numpy()), expected, rtol=1e-9)
    sure = np.array([[60.0, 0.0], [50.0, 0.0]], np.float32)
    first, second = cross_entropies(sure, np.array([0, 0]))
    assert 0 < first < second


def test_every_model_is_asked_about_what_it_saw_and_one_about_what_it_did_not(
    phantom_run: Path, tiny_data: FederationData
) -> None:
    run = Run(phantom_run / "run-001")
    plan = plan_membership(run, tiny_data)
    saw = {(model, hospital) for model, row in plan.items() for hospital, seen in row.items() if seen}
    ids = [hospital.id for hospital in tiny_data.federation.hospital]
    assert saw == {(m, h) for m in ("global", "central") for h in ids} | {(f"local/{h}", h) for h in ids}
    controls = {(model, hospital) for model, row in plan.items() for hospital, seen in row.items() if not seen}
    assert {hospital for _, hospital in controls} == set(ids)
    assert all(model.startswith("local/") and model != f"local/{hospital}" for model, hospital in controls)
    rows = list(measure_membership(run, tiny_data, {"global": plan["global"]}, CPU))
    assert [row["hospital"] for row in rows] == ["all", *ids]
    sizes = {part: sum(map(len, image_sets(tiny_data, part).values())) for part in ("train", "test")}
    assert (rows[0]["n_members"], rows[0]["n_others"]) == (sizes["train"], sizes["test"])
    assert all(row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"] for row in rows)
    assert all((row["tpr"] is None) == (row["n_others"] < ENOUGH) for row in rows)


# --- similarity ----------------------------------------------------------------------------------------------------


def test_structural_similarity_is_the_papers() -> None:
    one, other = blobs(3, 16, 0), blobs(3, 16, 9)
    assert structural_similarity(one, one).tolist() == pytest.approx([1, 1, 1])
    grey, dark = torch.full((1, 1, 9, 9), 0.6), torch.full((1, 1, 9, 9), 0.2)
    closed = (2 * 0.6 * 0.2 + 1e-4) / (0.6**2 + 0.2**2 + 1e-4)  # of flat images luminance is all there is
    assert float(structural_similarity(grey, dark)) == pytest.approx(closed, rel=1e-5)
    pattern = (torch.arange(14) % 2).float().expand(14, 14)[None, None]
    flipped = float(structural_similarity(pattern, 1 - pattern))
    assert flipped < -0.9, "what is bright in one is dark in the other"
    torch.testing.assert_close(structural_similarity(one, other), structural_similarity(other, one))
    values = []
    for top in range(16 - WINDOW_PX + 1):
        for left in range(16 - WINDOW_PX + 1):
            a, b = (
                image[0, 0, top : top + WINDOW_PX, left : left + WINDOW_PX].double().numpy() for image in (one, other)
            )
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            luminance = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (a.var() + b.var() + 9e-4))
    assert float(structural_similarity(one, other)[0]) == pytest.approx(np.mean(values), rel=1e-9)


def test_the_noise_ratio_of_a_known_error() -> None:
    black = torch.zeros((2, 1, 8, 8))
    assert peak_signal_to_noise(black, black + 0.1).tolist() == pytest.approx([20, 20])
    assert peak_signal_to_noise(black, black).tolist() == [100, 100]


# --- inversion -----------------------------------------------------------------------------------------------------


def test_one_image_comes_back_out_of_its_gradient_but_not_through_noise() -> None:
    torch.manual_seed(3)
    network = Pixels(16, 4, width=8).eval()
    pixels, labels = blobs(6, 16, 5), torch.arange(6) % 4
    target, label = pixels[:1], labels[:1]
    plain = gradient_of(network, target, label)
    noised = private_gradient_of(network, target, label, multiplier=1.0, max_grad_norm=1.0, seed=0)
    shape = target.shape[1:]
    clear, hidden = (
        float(structural_similarity(invert(network, seen, label, shape, n_steps=250, seed=0), target))
        for seen in (plain, noised)
    )
    guess = float(structural_similarity(pixels.mean(0, keepdim=True), target))
    assert clear > 0.8
    assert clear > guess + 0.2
    assert hidden < guess


def test_what_noise_does_is_what_training_does() -> None:
    """The mean of clipped gradients, as Opacus makes it; with noise, that much of it."""
    torch.manual_seed(0)
    network = Pixels(16, 4, width=4)
    pixels, labels = blobs(5, 16, 0), torch.arange(5) % 4
    norm = float(torch.cat([part.flatten() for part in gradient_of(network, pixels[:1], labels[:1])]).norm())
    ours = private_gradient_of(network, pixels, labels, 0.0, norm / 2, seed=0)
    theirs: list[Tensor] = []

    def take() -> None:
        theirs.extend(parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None)

    def score(positions: Tensor) -> tuple[Tensor, Tensor]:
        loss = functional.cross_entropy(network(network.normalise(pixels[positions])), labels[positions])
        return loss, torch.zeros(())

    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    with private_steps(network, optimizer, Noise(1.0, 0.0, norm / 2, 0), 5, take) as step:
        step(torch.arange(5), score)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)
    noised = private_gradient_of(network, pixels, labels, 2.0, 0.5, seed=0)
    clean = private_gradient_of(network, pixels, labels, 0.0, 0.5, seed=0)
    noise = torch.cat([(one - other).flatten() for one, other in zip(noised, clean, strict=True)])
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 5, rel=0.1)


def test_all_hospitals_images_as_one_batch_are_the_weighted_sum(phantom_run: Path, tiny_data: FederationData) -> None:
    """What a coordinator sees of masked updates: FedAvg's sum, each hospital weighted by its images."""
    network = start_network(Run(phantom_run / "run-001"))
    targets = choose_targets(tiny_data, 8, 32, CPU)
    together = gradient_of(network, *_pair(targets.seen(0, 8, of_all=True)))
    sizes = [len(batch.labels) for batch in targets.batches.values()]
    expected = [torch.zeros_like(part) for part in together]
    for batch, size in zip(targets.batches.values(), sizes, strict=True):
        for sum_, part in zip(expected, gradient_of(network, batch.pixels, batch.labels), strict=True):
            sum_.add_(part, alpha=size / sum(sizes))
    for mine, other in zip(together, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.pixels, batch.labels


def test_the_run_begins_where_the_attack_does(phantom_run: Path, tiny_data: FederationData) -> None:
    """Two networks of one run's start are equal, and are not its end."""
    run = Run(phantom_run / "run-001")
    one, other = (start_network(run).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert not one["head.bias"].requires_grad


def test_guesses_are_of_the_same_class_and_of_nobody_in_the_update(tiny_data: FederationData) -> None:
    targets = choose_targets(tiny_data, 8, 32, CPU)
    assert targets.hospital == tiny_data.federation.hospital[0].id
    own = targets.batches[targets.hospital]
    for place, others in enumerate(targets.others):
        assert len(others)
        assert float(structural_similarity(others, own.pixels[place].expand_as(others)).max()) < 0.999
    small = choose_targets(tiny_data, 8, 16, CPU)
    assert small.mean.shape[-2:] == small.others[0].shape[-2:] == small.batches[small.hospital].pixels.shape[-2:]
    assert small.mean.shape[-1] == 16


# --- the file and the command --------------------------------------------------------------------------------------


@pytest.fixture
def own_run(phantom_run: Path, tmp_path: Path) -> Path:
    """An artifacts folder with a copy of run-001 that may be damaged."""
    shutil.copytree(phantom_run / "run-001", tmp_path / "artifacts" / "run-001")
    return tmp_path / "artifacts"


def change_federation(artifacts: Path, **changes: Any) -> None:
    """As if the run had been trained with other settings."""
    folder = artifacts / "run-001"
    config = json.loads((folder / "config.json").read_text())
    config["federation"] |= changes
    write_json(folder / "config.json", config)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": sha256_of(folder / "config.json"), "bytes": (folder / "config.json").stat().st_size}
    manifest["files"]["config.json"] |= entry
    write_json(folder / "manifest.json", {**manifest, "audit_log": None})
    (folder / "audit-log.jsonl").unlink()


def test_the_command_writes_what_the_page_reads(engine: Command, own_run: Path, phantom_root: Path) -> None:
    out = engine("leakage", "run-001", "--steps", 1, "--artifacts", own_run, "--data", phantom_root).success
    assert "As if only the sum of 3 hospitals were seen" in out
    assert "As if with noise (multiplier 1, norm 1)" in out
    assert "Phantom North (simulated)" in out
    found = read_leakage(leakage_file(own_run, "run-001"))
    assert found.run_manifest_sha256 == sha256_of(own_run / "run-001" / "manifest.json")
    assert found.inversion is not None
    kinds = [(attack.variant, attack.batch_size, len(attack.images)) for attack in found.inversion.attacks]
    assert kinds == [(v, *size) for size in ((1, 4), (8, 8)) for v in ("plain", "private", "masked")]
    assert [attack.images[0].n_candidates for attack in found.inversion.attacks] == [1, 1, 3, 8, 8, 24]
    pictures = pictures_file(own_run, "run-001")
    assert found.inversion.pictures_sha256 == sha256_of(pictures), "drawn: the federation is synthetic"
    with Image.open(io.BytesIO(pictures.read_bytes())) as sheet:
        assert sheet.size == (4 * 32, 7 * 32)


def test_of_real_images_no_pixel_is_written(
    engine: Command, own_run: Path, phantom_root: Path, tiny_data: FederationData
) -> None:
    change_federation(own_run, synthetic="")
    old = pictures_file(own_run, "run-001")
    old.parent.mkdir()
    Image.new("L", (8, 8)).save(old)  # of a run that had this name and was synthetic
    before = {path for path in own_run.rglob("*") if path.is_file()}
    engine("leakage", "run-001", "--steps", 1, "--artifacts", own_run, "--data", phantom_root).success  # noqa: B018
    after = {path for path in own_run.rglob("*") if path.is_file()}
    file = leakage_file(own_run, "run-001")
    assert after - before == {file}
    assert before - after == {old}
    found = json.loads(file.read_text())
    assert found["inversion"]["pictures_sha256"] is None
    assert longest_list(found) < 20, "a row of numbers for each image and no more"
    assert not any(split.image.path in file.read_text() for split in tiny_data.splits)


def longest_list(content: Any) -> int:
    if isinstance(content, dict):
        return max(map(longest_list, content.values()), default=0)
    return max([len(content), *map(longest_list, content)]) if isinstance(content, list) else 0


def test_without_steps_or_federated_arm_the_file_says_why_nothing_was_attacked(
    engine: Command, own_run: Path, phantom_root: Path, tiny_data: FederationData
) -> None:
    engine("leakage", "run-001", "--steps", 0, "--artifacts", own_run, "--data", phantom_root).success  # noqa: B018
    found = read_leakage(leakage_file(own_run, "run-001"))
    assert found.inversion is None
    assert any("--steps 0" in note for note in found.notes)
    assert not pictures_file(own_run, "run-001").exists()
    change_federation(own_run, arms=["local", "central"])
    result, pictures = measure_leakage(Run(own_run / "run-001"), tiny_data, 1, 32)
    assert pictures is None
    assert any("no hospital sent any" in note for note in Leakage.model_validate(result).notes)


def stop_training(artifacts: Path) -> None:
    (artifacts / "run-001" / "manifest.json").unlink()


def lose_weights(artifacts: Path) -> None:
    (artifacts / "run-001" / "weights" / "local-hospital-b.safetensors").unlink()


def unlabel(artifacts: Path) -> None:
    change_federation(artifacts, pretext={"objective": "simclr", "projection": 16})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (stop_training, "is not finished"),
        (lose_weights, "these weights are not on this machine"),
        (unlabel, "learned without labels"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    damage: Callable[[Path], None], words: str, engine: Command, own_run: Path, phantom_root: Path
) -> None:
    damage(own_run)
    assert words in engine("leakage", "run-001", "--artifacts", own_run, "--data", phantom_root).error
    assert not leakage_file(own_run, "run-001").exists()


def test_other_images_or_none_are_one_line(
    engine: Command, phantom_run: Path, phantom_root: Path, tmp_path: Path
) -> None:
    nowhere = engine("leakage", "run-001", "--artifacts", phantom_run, "--data", tmp_path / "nowhere").error
    assert "no such data folder" in nowhere
    shutil.copytree(phantom_root, tmp_path / "other")
    next((tmp_path / "other").rglob("*.png")).unlink()
    other = engine("leakage", "run-001", "--artifacts", phantom_run, "--data", tmp_path / "other").error
    assert "the images are not those it was trained on" in other
    assert "'nobody' is no run" in engine("leakage", "nobody").error
    assert "steps" in engine("leakage", "run-001", "--steps", -1).error
