"""The networks that hospitals train. Each ends in global average pooling and one linear head, so that a class
activation map is exact: `feature_map` gives the last map, `classify` pools it and applies the head.
"""

import itertools
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.training.device import seeded
from engine.training.torchvision_import import torchvision_models

Tensors = dict[str, Tensor]

_resnet = torchvision_models().resnet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = {"resnet18": "fc", "compact-cnn": "head"}


class Network(nn.Module):
    """Normalised float images (n, 3, side, side) -> logits (n, classes)."""

    n_classes: int

    def feature_map(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def classify(self, feature_map: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.feature_map(images))


class Block(_resnet.BasicBlock):  # type: ignore[misc, name-defined]  # torchvision comes without types here
    """torchvision's basic block, its addition and activations not in place: per-sample gradients need their inputs."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(out + identity)
        return result


class ResNet18(_resnet.ResNet, Network):  # type: ignore[misc, name-defined]
    """He et al., Deep Residual Learning, CVPR 2016; torchvision's keys, so its weights load."""

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    fc: nn.Module

    def __init__(self, n_classes: int, dropout: float) -> None:
        super().__init__(Block, [2, 2, 2, 2], num_classes=n_classes)
        self.n_classes = n_classes
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def feature_map(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        result: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.dropout(feature_map.mean((2, 3))))
        return logits

    forward = Network.forward


class CompactCNN(Network):
    """Four convolutions with pooling, dropout, one dense head. No BatchNorm: nothing but weights to average."""

    def __init__(self, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.n_classes = n_classes
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.backbone = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], n_classes)

    def feature_map(self, images: Tensor) -> Tensor:
        result: Tensor = self.backbone(images)
        return result

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(feature_map.mean((2, 3))))
        return logits


def build_network(config: ModelConfig, n_classes: int, seed: int) -> Network:
    """A network with its starting weights, channels-last. The same seed gives the same weights."""
    with seeded(seed):
        network: Network = (
            ResNet18(n_classes, config.dropout)
            if config.architecture == "resnet18"
            else CompactCNN(n_classes, config.dropout)
        )
    if config.weights != "none":
        _load_start(network, config)
    if config.freeze_backbone:
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith(HEADS[config.architecture] + ".")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return network


def set_training_mode(network: Network, config: ModelConfig) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, so that its BatchNorm statistics stand still."""
    network.train()
    if config.freeze_backbone:
        network.eval()
        network.get_submodule("dropout").train()


def network_input(pixels: Tensor) -> Tensor:
    """Images as floats in 0..1 (n, 1 or 3, side, side) -> normalised (n, 3, side, side), ImageNet's mean and std."""
    mean = pixels.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = pixels.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (pixels - mean) / std


def read_weights(path: Path) -> Tensors:
    """Named tensors of a .safetensors file, or of a .pth state dict (read with weights_only, so no pickle runs)."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such weights file") from None
    except Exception as error:  # torch and safetensors raise many kinds on foreign bytes; all mean the same here
        raise ConfigError(f"{path}: is no readable weights file ({type(error).__name__}: {error})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"{path}: is no state dict (names -> tensors)")
    return loaded


def _load_start(network: Network, config: ModelConfig) -> None:
    """Load starting weights; a head of another size (other classes) stays at its random start."""
    if config.weights == "imagenet":
        try:
            tensors = dict(torchvision_models().ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True))
        except OSError as error:  # urllib's URLError is one
            raise ConfigError(
                f"model.weights = 'imagenet': torchvision could not download them ({error}); put resnet18-f37072fd.pth "
                f"into {torch.hub.get_dir()}/checkpoints, give a weights file, or train from scratch with 'none'"
            ) from None
    else:
        tensors = read_weights(Path(config.weights))
    own = network.state_dict()
    head = HEADS[config.architecture] + "."
    usable = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    missing = [name for name in own if name not in usable and not name.startswith(head)]
    if missing:
        raise ConfigError(
            f"model.weights = '{config.weights}': lacks {missing[0]}"
            f" and {len(missing) - 1} other tensors of {config.architecture}"
        )
    network.load_state_dict(usable, strict=False)
