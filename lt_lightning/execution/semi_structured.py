"""Layers of 2:4 weights, which PyTorch's semi-structured kernels compute in inference on CUDA."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

SPARSE = "semi_structured"


class _Compressed:
    """A weight matrix in the 2:4 format, made anew whenever the weight has changed."""

    def __init__(self) -> None:
        self._made_from: tuple[object, ...] = ()
        self._matrix: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        made_from = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._matrix is None or self._made_from != made_from:
            self._matrix = to_sparse_semi_structured(weight.detach().flatten(1).contiguous())
            self._made_from = made_from
        return self._matrix

    def __deepcopy__(self, memo: object) -> _Compressed:
        return _Compressed()


def runs_sparse(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernels suit this call: on CUDA, in half precision, without gradients."""
    half = weight.dtype == x.dtype and x.dtype in (torch.float16, torch.bfloat16)
    return x.is_cuda and half and not torch.is_grad_enabled()


class SemiStructuredLinear(nn.Linear):
    """A linear layer whose weight is 2:4, compressed where the call `runs_sparse`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = copy.deepcopy(layer.weight), copy.deepcopy(layer.bias)
        self._compressed = _Compressed()

    def forward(self, input: Tensor) -> Tensor:
        if not runs_sparse(input, self.weight):
            return super().forward(input)
        return F.linear(input, self._compressed.of(self.weight), self.bias)


class SemiStructuredConv1x1(nn.Conv2d):
    """A 1x1 convolution whose weight is 2:4, a compressed matrix where the call `runs_sparse`."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels, layer.out_channels, 1, _pair(layer), bias=layer.bias is not None, device="meta"
        )
        self.weight, self.bias = copy.deepcopy(layer.weight), copy.deepcopy(layer.bias)
        self._compressed = _Compressed()

    def forward(self, input: Tensor) -> Tensor:
        if not runs_sparse(input, self.weight):
            return super().forward(input)
        return by_matrix(input, self._compressed.of(self.weight), self.bias, _pair(self))


def _pair(convolution: nn.Conv2d) -> tuple[int, int]:
    return convolution.stride[0], convolution.stride[1]


def by_matrix(x: Tensor, matrix: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """Compute a 1x1 convolution as a product with a matrix; in channels_last nothing is copied.

    Args:
        x: images (n, inputs, h, w).
        matrix: weight (outputs, inputs).
        bias: bias (outputs,).
        stride: stride of the convolution.

    Returns:
        Images (n, outputs, h / stride, w / stride), in channels_last.
    """
    pixels = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
    outputs = F.linear(pixels.reshape(-1, x.shape[1]), matrix, bias)
    return outputs.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def semi_structured_forms(layer: nn.Module) -> Mapping[str, nn.Module]:
    """Return what computes a layer of 2:4 weights (`computes_two_of_four`), with copies of its values, by form."""
    match layer:
        case nn.Linear():
            return {SPARSE: SemiStructuredLinear(layer)}
        case nn.Conv2d():
            return {SPARSE: SemiStructuredConv1x1(layer)}
        case _:
            return {}
