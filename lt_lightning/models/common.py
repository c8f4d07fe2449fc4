"""What the families of networks share: the convolution, the initialisation and a check."""

from __future__ import annotations

import math

from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the image size (divided by `stride`); no bias, as normalisation follows.

    >>> conv(3, 8, kernel=3)
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def initialise(network: nn.Module) -> None:
    """Initialise every convolution by Kaiming's normal distribution (He et al., ICCV 2015): variance 2 / fan-out.

    The fan-out is the true one, per group: 9 for a 3x3 depthwise convolution. Normalisation layers (1 and 0) and
    the classifier keep PyTorch's own initialisation.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def positive(**values: int) -> None:
    """Check that sizes are positive whole numbers.

    Raises:
        ValueError: if one is not; names the first.
    """
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a positive whole number")
