"""Networks as `torch.export` programs, for any number of images."""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from lt_lightning.export.standard import for_inference

# Registers the operator that programs of group tickets call.
OPERATORS = "lt_lightning.shrink.block_ops"


def to_program(network: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """What the network does in evaluation mode, on the CPU.

    Args:
        network: one tensor to one tensor; it is left as it was.
        shape: of one image.
    """
    # Two images: a single one would be taken for a fixed size.
    images = torch.zeros(2, *shape)
    with torch.no_grad():
        return torch.export.export(for_inference(network), (images,), dynamic_shapes=({0: Dim("batch")},))


def to_bytes(program: ExportedProgram) -> bytes:
    """The content of a `.pt2` file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, about its own code
        torch.export.save(program, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> nn.Module:
    """The module of a `.pt2` file's content."""
    return torch.export.load(io.BytesIO(content)).module()
