"""Networks in formats that others read: the programs of `torch.export`, and ONNX with ONNX Runtime.

ONNX needs the extra `export` (onnx, onnxscript, onnxruntime), which is imported only when it is used.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.pruning.examples import copied


def block_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers that run our own operator, `lt_lightning::block_conv2d`."""
    ours = RegroupedConv2d | RegroupedLinear
    names = {name for name, module in network.named_modules() if isinstance(module, ours)}
    return sorted(name for name in names if name.rpartition(".")[0] not in names)  # a linear one has a convolution


def for_inference(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode and PyTorch's standard memory format."""
    mine = copied(network).cpu().eval()
    return mine.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


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


EXTRA = ("onnx", "onnxscript", "onnxruntime")
IMAGES, LOGITS = "images", "logits"


def require_extra() -> None:
    """Check that the extra is installed.

    Raises:
        ImportError: if something is missing; names it and the command to type.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'lt-lightning[export]'")


def to_onnx(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the content of an ONNX file that computes what the network does in evaluation mode, for any batch size.

    Layers that no standard operator computes run in a standard form (`in_standard_operators`).

    Args:
        network: network from one tensor to one tensor; it is left as it was.
        shape: shape of one image.

    Raises:
        ImportError: without the extra.
    """
    require_extra()
    standard = in_standard_operators(network)
    # Two images, since torch.export would take a single one for a fixed size.
    images = torch.zeros(2, *shape)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            standard,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[IMAGES],
            output_names=[LOGITS],
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def make_session(model: bytes | Path, threads: int) -> Any:
    """Make an `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: an ONNX file, or its content.
        threads: number of threads of a single operator; operators run one after the other.

    Raises:
        ImportError: without the extra.
    """
    require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Otherwise its threads wait busily for the next run, at the cost of whatever runs in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, images: Tensor) -> Tensor:
    """Return the logits of a session for images on the CPU."""
    (logits,) = session.run([LOGITS], {IMAGES: np.ascontiguousarray(images.numpy())})
    return torch.from_numpy(logits)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about libraries that are not installed, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
