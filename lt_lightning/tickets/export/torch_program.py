"""Networks in operators that every runtime has, and as `torch.export` programs for any number of images."""

from __future__ import annotations

import copy
import io
import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear


def block_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers that run our own operator, `lt_lightning::block_conv2d`."""
    ours = RegroupedConv2d | RegroupedLinear
    names = {name for name, module in network.named_modules() if isinstance(module, ours)}
    return sorted(name for name in names if name.rpartition(".")[0] not in names)  # a linear one has a convolution


def for_inference(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode and PyTorch's standard memory format."""
    copied = copy.deepcopy(network).cpu().eval()
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def in_standard_operators(network: nn.Module) -> nn.Module:
    """Return a copy for inference (`for_inference`) without operators of our own.

    Layers whose blocks are of single kernel positions run dense, with zeros outside the blocks: no standard operator
    computes such blocks, and every formulation by several is slower than the dense convolution.
    """
    standard = for_inference(network)
    swaps: dict[str, nn.Module] = {name: _dense(standard.get_submodule(name)) for name in block_layers(standard)}
    for name, module in swaps.items():
        if not name:
            return module.eval()
        standard.set_submodule(name, module.eval())
    return standard


def _dense(layer: nn.Module) -> nn.Conv2d | nn.Linear:
    """Return the ordinary layer that computes what one of ours does."""
    conv = layer.conv if isinstance(layer, RegroupedLinear) else layer
    assert isinstance(conv, RegroupedConv2d)
    weight = conv.weight.detach()
    filters, inputs, height, width = conv.shape
    dense: nn.Conv2d | nn.Linear
    if isinstance(layer, RegroupedLinear):
        dense, weight = nn.Linear(inputs, filters), weight.flatten(1)
    else:
        dense = nn.Conv2d(inputs, filters, (height, width), conv.stride, conv.padding, conv.dilation)
    dense.weight, dense.bias = nn.Parameter(weight), conv.bias
    return dense


# Programs of `torch.export`.

# The module that registers the operator which programs of tickets of blocks call.
OPERATORS = "lt_lightning.execution.blocks.operators"


def to_program(network: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """Return what the network does in evaluation mode, on the CPU.

    Args:
        network: network from one tensor to one tensor; it is left as it was.
        shape: shape of one image.
    """
    # Two images: a single one would be taken for a fixed size.
    images = torch.zeros(2, *shape)
    with torch.no_grad():
        return torch.export.export(for_inference(network), (images,), dynamic_shapes=({0: Dim("batch")},))


def to_bytes(program: ExportedProgram) -> bytes:
    """Return the content of a `.pt2` file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, about its own code
        torch.export.save(program, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> nn.Module:
    """Return the module of a `.pt2` file's content."""
    return torch.export.load(io.BytesIO(content)).module()
