"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016): pre-activation blocks, few and wide.

They count depth as 6n + 4, with the shortcut convolutions. The paper's "WRN-32-2 (1.86M)" has no such n; counted as
6n + 2, as for the CIFAR ResNets, it has n = 5 and 1,855,578 parameters with 10 classes. Both countings are taken here
(no depth is both). The released code of the paper trains another network under that name, a ResNet-32 of twice
the width without pre-activation: `cifar_resnet(32, width=32)`, 1,860,522 parameters, `model=resnet32x2`.
"""

from __future__ import annotations

from torch import Tensor, nn

from lt_lightning.models.common import conv, initialise, positive


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
