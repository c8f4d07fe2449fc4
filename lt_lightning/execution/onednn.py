"""A defect of oneDNN that narrow layers meet on some processors, and how smaller networks stay clear of it.

In the backward pass of a strided 1x1 convolution of 2 to 7 inputs in channels_last, the kernels for AVX2 write past a
buffer (uxlfoundation/oneDNN, issue 6035; seen with PyTorch 2.13): the process dies, hangs, or goes on with wrong
gradients. A shortcut of a residual network becomes such a layer where few channels are left.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.network_graph.resizing import derived

_BLOCK = 8  # channels that AVX2's kernels compute together


def avoid_defect(network: nn.Module) -> None:
    """Let the layers of a network that have the defect on this machine skip pixels before they compute, in place.

    They compute the same, as convolutions without a stride, which do not have the defect. Nothing is done on processors
    without AVX2 or with AVX-512, nor where ONEDNN_MAX_CPU_ISA keeps oneDNN off AVX2. Layers of a dense network are
    not guarded: they are the user's own.
    """
    if uses_avx2():
        for module in network.modules():
            if is_affected(module):
                module.__class__ = derived(f"Skipping{type(module).__name__}", SkipsPixels, type(module))


def uses_avx2() -> bool:
    """Whether oneDNN computes with AVX2's kernels: the processor has nothing newer, or oneDNN may use nothing newer."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return allowed.startswith("AVX2") or (
        allowed not in ("SSE41", "AVX") and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


def is_affected(module: nn.Module) -> bool:
    """Whether a module is a convolution that has the defect, if its images are in channels_last.

    >>> [is_affected(nn.Conv2d(inputs, 16, 1, stride=2)) for inputs in (1, 2, 7, 8)]
    [False, True, True, False]
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and 1 < module.in_channels < _BLOCK
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and type(module)._conv_forward is nn.Conv2d._conv_forward
    )


class SkipsPixels(nn.Conv2d):
    """A 1x1 convolution that takes the pixels of its stride before it computes, where gradients are wanted."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            out: Tensor = super()._conv_forward(input, weight, bias)
            return out
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], weight, bias)
