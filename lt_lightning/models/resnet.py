"""Residual networks: for small images, for large ones, and wide ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from lt_lightning.models.common import conv, initialise, positive

Stem = Literal["cifar", "stride2", "imagenet"]


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the way round a block; an empty sequence is the identity, and leaves no node in a traced graph."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(
        OrderedDict(conv=conv(inputs, outputs, 1, stride), bn=nn.BatchNorm2d(outputs)),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, `inputs` to `width` channels."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(inputs, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, width, h / stride, w / stride)."""
        branch = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(branch)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, `inputs` to 4 `width` channels; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, 4 width, h / stride, w / stride)."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        out: Tensor = self.relu(self.bn3(self.conv3(branch)) + self.shortcut(x))
        return out


def make_stem(kind: Stem, channels: int, width: int) -> nn.Sequential:
    """Return the first layers, from `channels` of the image to `width` channels.

    Args:
        kind: `cifar` (3x3, stride 1), `stride2` (3x3, stride 2: a quarter of the work) or `imagenet` (7x7, stride
            2, and 3x3 max pooling of stride 2).
        channels: number of channels of the image.
        width: number of channels of the result.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in get_args(Stem):
        raise ValueError(f"stem={kind!r}: must be one of {', '.join(get_args(Stem))}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=conv(channels, width, 7 if kind == "imagenet" else 3, stride=1 if kind == "cifar" else 2),
        bn=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    if kind == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


class ResNet(nn.Module):
    """Stem, stages of residual blocks that double the width and halve the image, global average, linear classifier.

    Args:
        block: kind of block of which the stages are made.
        blocks: number of blocks of each stage.
        width: number of channels of the stem and of the first stage.
        classes: number of outputs.
        channels: number of channels of the image.
        stem: see `make_stem`.

    Raises:
        ValueError: if a size is not positive, or there is no such stem.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        width: int,
        classes: int,
        channels: int = 3,
        stem: Stem = "cifar",
    ) -> None:
        super().__init__()
        positive(width=width, classes=classes, channels=channels)
        self.stem = make_stem(stem, channels, width)
        self.stages = nn.Sequential()
        features = width
        for stage, count in enumerate(blocks):
            layers = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(features, width * 2**stage, stride))
                features = block.expansion * width * 2**stage
            self.stages.append(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to logits (n, classes)."""
        features = self.pool(self.stages(self.stem(images)))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def cifar_resnet(depth: int, classes: int, channels: int = 3, width: int = 16, stem: Stem = "cifar") -> ResNet:
    """Return a ResNet of three stages of n basic blocks; 0.27 million parameters at depth 20.

    Args:
        depth: number of layers on the main path, 6n + 2: 8, 14, 20, 32, ...
        classes: number of outputs.
        channels: number of channels of the image.
        width: number of channels of the stem and the first stage.
        stem: see `make_stem`.

    Raises:
        ValueError: if `depth` is not 6n + 2, or for the reasons of `ResNet`.

    >>> sum(p.numel() for p in cifar_resnet(8, classes=10).parameters())
    78042
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth!r}: must be 6n + 2 (8, 14, 20, 26, 32, ...)")
    return ResNet(BasicBlock, [depth // 6] * 3, width, classes, channels, stem)


def resnet18(classes: int, channels: int = 3, width: int = 64, stem: Stem = "cifar") -> ResNet:
    """Return ResNet-18; 11.2 million parameters. Raises what `ResNet` does."""
    return ResNet(BasicBlock, [2, 2, 2, 2], width, classes, channels, stem)


def resnet50(classes: int, channels: int = 3, width: int = 64, stem: Stem = "imagenet") -> ResNet:
    """Return ResNet-50; 25.6 million parameters with 1000 classes. Raises what `ResNet` does."""
    return ResNet(Bottleneck, [3, 4, 6, 3], width, classes, channels, stem)


# Wide residual networks (Zagoruyko and Komodakis, BMVC 2016): pre-activation blocks, few and wide.
#
# They count depth as 6n + 4, with the shortcut convolutions. The paper's "WRN-32-2 (1.86M)" has no such n; counted as
# 6n + 2, as for the CIFAR ResNets, it has n = 5 and 1,855,578 parameters with 10 classes. Both countings are taken here
# (no depth is both). The released code of the paper trains another network under that name, a ResNet-32 of twice
# the width without pre-activation: `cifar_resnet(32, width=32)`, 1,860,522 parameters, `model=resnet32x2`.


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU; a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.relu = nn.ReLU()
        projects = stride != 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, 1, stride) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        active = self.relu(self.bn1(x))
        # The projection reads the activated input, the identity the raw one.
        around = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active)))) + around
        return out


class WideResNet(nn.Module):
    """Stem of `width` channels, three stages of n blocks of 1, 2 and 4 times `widen` as many, linear classifier.

    Args:
        depth: number of layers, 6n + 4 as in the original (16, 22, 28, 40) or 6n + 2 (14, 20, 26, 32).
        widen: factor of the width.
        classes: number of outputs.
        channels: number of channels of the image.
        width: number of channels of the stem.

    Raises:
        ValueError: if `depth` is of neither form, or a size is not positive.

    >>> sum(p.numel() for p in WideResNet(32, 2, classes=10).parameters())
    1855578
    """

    def __init__(self, depth: int, widen: int, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        positive(widen=widen, classes=classes, channels=channels, width=width)
        if depth < 8 or depth % 6 not in (2, 4):
            raise ValueError(
                f"depth={depth!r}: must be 6n + 4 (10, 16, 22, 28, ...) or 6n + 2 (8, 14, 20, 26, 32, ...)"
            )
        self.stem = conv(channels, width, 3)
        self.stages = nn.Sequential()
        features = width
        for stage in range(3):
            layers = nn.Sequential()
            for index in range(depth // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(PreActivationBlock(features, width * widen * 2**stage, stride))
                features = width * widen * 2**stage
            self.stages.append(layers)
        self.bn = nn.BatchNorm2d(features)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to logits (n, classes)."""
        features = self.pool(self.relu(self.bn(self.stages(self.stem(images)))))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits
