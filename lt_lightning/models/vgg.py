"""VGG (Simonyan and Zisserman, ICLR 2015) for small images: BatchNorm after every convolution, one linear layer.

Convolutions have no bias (BatchNorm has one): with it VGG-16 would have 14,728,266 parameters, where the paper
counts 14.72 million. Max pooling stands between stages only, so that 32x32 images end at 2x2, and the global average
takes the rest; odd sizes round up, so that images of any size pass.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lt_lightning.models.common import conv, initialise, positive

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, global average, linear classifier; 14.72 million parameters at depth 16.

    Args:
        depth: number of layers with weights, 11, 13, 16 or 19, counted with the original's two further linear layers.
        classes: number of outputs.
        channels: number of channels of the image.
        width: number of channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Raises:
        ValueError: if `depth` is none of these, or a size is not positive.

    >>> sum(p.numel() for p in VGG(16, classes=10).parameters())
    14724042
    """

    def __init__(self, depth: int, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        positive(classes=classes, channels=channels, width=width)
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"depth={depth!r}: must be one of {', '.join(map(str, _CONVOLUTIONS))}")
        self.stages = nn.Sequential()
        features = channels
        for stage, (count, factor) in enumerate(zip(_CONVOLUTIONS[depth], _WIDTHS, strict=True)):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if stage > 0:
                layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)
            for index in range(1, count + 1):
                layers[f"conv{index}"] = conv(features, factor * width, 3)
                layers[f"bn{index}"] = nn.BatchNorm2d(factor * width)
                layers[f"relu{index}"] = nn.ReLU()
                features = factor * width
            self.stages.append(nn.Sequential(layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, h, w) to logits (n, classes)."""
        logits: Tensor = self.classifier(self.pool(self.stages(images)).flatten(1))
        return logits
