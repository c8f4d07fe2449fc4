"""MobileNet (Howard et al., 2017, arXiv 1704.04861) for small images: depthwise separable convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lt_lightning.models.common import conv, initialise, positive

# Output channels over `width` and stride of every block; with a stem of stride 1, 32x32 images end at 2x2.
_BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))


class SeparableBlock(nn.Module):
    """A 3x3 convolution of every channel on its own, then a 1x1 convolution across channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = conv(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        spatial = self.relu(self.bn1(self.depthwise(x)))
        out: Tensor = self.relu(self.bn2(self.pointwise(spatial)))
        return out


class MobileNet(nn.Module):
    """Stem, 13 separable blocks, global average, linear classifier; 3.2 million parameters with 10 classes.

    Args:
        classes: number of outputs.
        channels: number of channels of the image.
        width: number of channels of the stem, to which all others are proportional.

    Raises:
        ValueError: if a size is not positive.

    >>> sum(p.numel() for p in MobileNet(classes=10).parameters())
    3217226
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        positive(classes=classes, channels=channels, width=width)
        self.stem = nn.Sequential(
            OrderedDict(conv=conv(channels, width, 3), bn=nn.BatchNorm2d(width), relu=nn.ReLU()),
        )
        self.blocks = nn.Sequential()
        features = width
        for factor, stride in _BLOCKS:
            self.blocks.append(SeparableBlock(features, factor * width, stride))
            features = factor * width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to logits (n, classes)."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(images))).flatten(1))
        return logits
