"""The residual network of nine layers with which CIFAR-10 is trained in seconds on a GPU."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lt_lightning.models.common import conv, initialise, positive

SCALE = 0.125
"""Factor of the logits: the largest values of the features, which the classifier reads, are larger than their means."""


class Residual(nn.Module):
    """Two 3x3 convolutions, whose result is added to what they are given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        out: Tensor = x + self.second(self.first(x))
        return out


class ResNet9(nn.Module):
    """Four 3x3 convolutions, poolings and residual blocks between them, the global maximum, and a linear classifier.

    Source: D. Page, "How to train your ResNet" (2018-2019), whose network reached 94 % on CIFAR-10 in 24 epochs; 6.57
    million parameters.

    Args:
        classes: number of outputs.
        channels: number of channels of the image.
        width: number of channels of the first convolution; the others have 2, 4 and 8 times as many.

    Raises:
        ValueError: if a size is not positive.

    >>> sum(parameter.numel() for parameter in ResNet9(classes=10).parameters())
    6573120
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        positive(classes=classes, channels=channels, width=width)
        self.stem = _convolution(channels, width)
        self.stage1 = nn.Sequential(*_pooled(width, 2 * width), Residual(2 * width))
        self.stage2 = nn.Sequential(*_pooled(2 * width, 4 * width))
        self.stage3 = nn.Sequential(*_pooled(4 * width, 8 * width), Residual(8 * width))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(8 * width, classes, bias=False)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w), of at least 8 pixels a side, to logits (n, classes)."""
        features = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.classifier(self.pool(features).flatten(1)) * SCALE
        return logits


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    parts = OrderedDict(conv=conv(inputs, outputs, 3), bn=nn.BatchNorm2d(outputs), relu=nn.ReLU())
    return nn.Sequential(parts)


def _pooled(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return _convolution(inputs, outputs), nn.MaxPool2d(2)
