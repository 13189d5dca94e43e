"""The networks that hospitals train. Each ends in global average pooling and one linear head, so that a class
activation map is exact: `feature_map` gives the last map, `classify` pools it and applies the head.
"""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from engine.sections import ModelConfig
from engine.training.torchvision_import import torchvision_models

Tensors = dict[str, Tensor]

_resnet = torchvision_models().resnet

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's weights expect these
IMAGENET_STD = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """Normalised float images (n, 3, side, side) -> logits (n, classes). `head_name` is its last layer."""

    n_classes: int
    head_name: str
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images as floats in 0..1 (n, 1 or 3, side, side) -> (n, 3, side, side), as this network was made for."""
        mean = pixels.new_tensor(self.mean).view(1, 3, 1, 1)
        std = pixels.new_tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std

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


class Bottleneck(_resnet.Bottleneck):  # type: ignore[misc, name-defined]
    """torchvision's bottleneck, not in place, as `Block`."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        result: Tensor = self.relu(self.bn3(self.conv3(out)) + identity)
        return result


class _ResNet(_resnet.ResNet, Network):  # type: ignore[misc, name-defined]
    """He et al., Deep Residual Learning, CVPR 2016; torchvision's keys, so its weights load."""

    block: type[nn.Module]
    depths: Sequence[int]  # blocks in each of the four stages
    head_name = "fc"
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
        super().__init__(self.block, self.depths, num_classes=n_classes)
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


class ResNet18(_ResNet):
    block = Block
    depths = (2, 2, 2, 2)


class ResNet50(_ResNet):
    block = Bottleneck
    depths = (3, 4, 6, 3)


class _PlainCNN(Network):
    """A stack of layers, dropout, one dense head."""

    head_name = "head"

    def __init__(self, layers: Sequence[nn.Module], width: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.backbone = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_classes)

    def feature_map(self, images: Tensor) -> Tensor:
        result: Tensor = self.backbone(images)
        return result

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(feature_map.mean((2, 3))))
        return logits


class CompactCNN(_PlainCNN):
    """Four convolutions with pooling. No BatchNorm: nothing but weights to average."""

    def __init__(self, n_classes: int, dropout: float) -> None:
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(layers, widths[-1], n_classes, dropout)


class PatchCNN(_PlainCNN):
    """Four convolutions with BatchNorm and pooling: a cell of the last map sees 46 x 46 pixels and nothing else.

    So a heatmap's cell speaks of its own part of the image (after Brendel & Bethge, Approximating CNNs with
    Bag-of-Local-Features Models Works Surprisingly Well on ImageNet, ICLR 2019); a ResNet18's cell sees all of it.
    """

    def __init__(self, n_classes: int, dropout: float) -> None:
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(layers, widths[-1], n_classes, dropout)


def with_group_norm(network: Network) -> Network:
    """GroupNorm of at most 32 groups in the place of every BatchNorm, whose scale and shift it can load."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                n_groups = math.gcd(32, child.num_features)
                setattr(module, name, nn.GroupNorm(n_groups, child.num_features, eps=child.eps))
    return network


def set_training_mode(network: Network, config: ModelConfig) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, so that its BatchNorm statistics stand still."""
    network.train()
    if config.freeze_backbone:
        network.eval()
        network.get_submodule("dropout").train()
