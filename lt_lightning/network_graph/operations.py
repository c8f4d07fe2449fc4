"""The operations of a traced network, each by what it does to channels (dimension 1 of a tensor)."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn.modules.batchnorm import _BatchNorm

from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.layers import CONVOLUTIONS

Kind = Literal[
    "source",  # an input of the network, or a tensor that it makes
    "dense",  # a layer whose outputs read all inputs: a linear layer, a convolution without groups
    "grouped",  # a convolution whose outputs read the inputs of their group
    "depthwise",  # a convolution whose outputs read one input
    "norm",  # a normalisation with scale and shift for each channel
    "each",  # acts on each channel alone and turns zeros into zeros
    "lift",  # acts on each channel alone and turns zeros into another constant
    "flatten",  # makes a channel of each position of a channel
    "cat",  # puts the channels of several tensors in a row
    "add",  # adds the channels of two tensors
    "product",  # multiplies the channels of two tensors
    "unknown",
]
Classified = tuple[Kind, dict[str, Any]]

# What is of the kind `each`
_ZERO_KEEPING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU,
    nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Softsign,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ZeroPad2d, nn.Upsample,
)  # fmt: skip
_ZERO_KEEPING_FUNCTIONS: tuple[Any, ...] = (
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh,
    F.tanh, torch.relu, torch.relu_, torch.tanh, F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, operator.neg,
)  # fmt: skip
_ZERO_KEEPING_METHODS = ("relu", "relu_", "tanh", "contiguous", "clone", "neg", "float", "half", "to", "detach")
# What is of the kind `lift`
_LIFTING_MODULES = (nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid)
_LIFTING_FUNCTIONS: tuple[Any, ...] = (
    F.sigmoid, F.softplus, F.hardsigmoid, F.logsigmoid, torch.sigmoid, torch.exp, "sigmoid", "exp",
)  # fmt: skip
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub")
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_MEANS: tuple[Any, ...] = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
_FLATTENINGS: tuple[Any, ...] = (torch.flatten, "flatten", torch.reshape, "reshape", "view")


@dataclass(frozen=True)
class Operation:
    """One step of the computation, seen by its channels.

    Attributes:
        kind: what it does to channels; `liveness` has the rules.
        name: name of the module for layers and normalisations, of the node otherwise.
        inputs: indices of the operations whose results it takes.
        channels: number of channels of its result.
        repeat: for `flatten` the positions of a channel; for `depthwise` and `grouped` the outputs of a group.
        has_bias: whether a layer has a bias.
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...]
    channels: int
    repeat: int = 1
    has_bias: bool = False


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep normalisations of other packages whole, too; ours over all processes is one."""
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module, example: Tensor) -> fx.GraphModule:
    """Trace the network, with the shape of every result.

    Raises:
        ValueError: if torch.fx cannot trace the network.
    """
    try:
        with evaluating(network):
            traced = fx.GraphModule(network, _Tracer().trace(network))
            ShapeProp(traced).propagate(example)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(network).__name__}, which a channel structure needs: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    return traced


def classify(node: fx.Node, shape: tuple[int, ...], modules: Mapping[str, nn.Module]) -> Classified:
    """Return the kind of a node's operation and further fields of `Operation`, given the shape of its result."""
    sources = [source for source in node.all_input_nodes if shape_of(source) is not None]
    before = shape_of(sources[0]) if sources else None
    if node.op == "placeholder":
        return "source", {}
    if before is None:
        return "unknown", {}
    if node.op == "call_module":
        return _classify_module(modules[str(node.target)], before, shape)
    return _classify_call(node.target, node, [shape_of(source) or () for source in sources], shape)


def _classify_module(module: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> Classified:
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and "weight" not in module._parameters:
        return "unknown", {}  # computed from other parameters (weight norm, torch.nn.utils.prune)
    if isinstance(module, CONVOLUTIONS):
        bias = {"has_bias": module.bias is not None}
        if module.groups == 1:
            return "dense", bias
        kind: Kind = "depthwise" if module.groups == module.in_channels else "grouped"
        return kind, {"repeat": module.out_channels // module.groups, **bias}
    if isinstance(module, nn.Linear) and len(before) == 2:
        return "dense", {"has_bias": module.bias is not None}
    if isinstance(module, _BatchNorm) and module.affine:
        return "norm", {}
    if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
        return "lift", {}
    if isinstance(module, _LIFTING_MODULES):
        return "lift", {}
    if isinstance(module, _ZERO_KEEPING_MODULES) and before[:2] == after[:2]:
        return "each", {}
    if isinstance(module, nn.Flatten):
        return _flattening(before, after)
    return "unknown", {}


def _classify_call(target: Any, node: fx.Node, before: list[tuple[int, ...]], after: tuple[int, ...]) -> Classified:
    first = before[0]
    if target in _LIFTING_FUNCTIONS or (target in _ADDITIONS and _is_shift(node)):
        return "lift", {}
    if (target in _ZERO_KEEPING_FUNCTIONS or target in _ZERO_KEEPING_METHODS) and first[:2] == after[:2]:
        return "each", {}
    if target in _ADDITIONS or target in _PRODUCTS:
        operands = [shape_of(argument) for argument in node.args if isinstance(argument, fx.Node)]
        tensors = len(operands) == 2 and all(shape is not None and shape[:2] == after[:2] for shape in operands)
        if target in _PRODUCTS:
            constant = len(operands) == 1 and first[:2] == after[:2]
            return ("each" if constant else "product", {}) if tensors or constant else ("unknown", {})
        if tensors and "alpha" not in node.kwargs:  # x + x has one source
            return ("add" if len(before) == 2 else "each"), {}
    if target in (torch.cat, torch.concat) and _dimensions(node, len(first), default=0) == {1}:
        once = sum(shape[1] for shape in before) == after[1]  # the same tensor twice is one source
        return ("cat" if once else "unknown"), {}
    if target in _MEANS and first[:2] == after[:2] and not _dimensions(node, len(first), default=1) & {0, 1}:
        return "each", {}
    if target in _FLATTENINGS:
        return _flattening(first, after)
    return "unknown", {}


def _is_shift(node: fx.Node) -> bool:
    """Whether a number is added, as in x + 1; not in x + y nor in x + x.size(0)."""
    return len(node.all_input_nodes) == 1 and any(isinstance(argument, (int, float)) for argument in node.args)


def _dimensions(node: fx.Node, rank: int, default: int) -> set[int]:
    """Return the dimensions that a call names as its second argument, or as `dim`."""
    named: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else default)
    return {int(dimension) % rank for dimension in (named if isinstance(named, (tuple, list)) else [named])}


def _flattening(before: tuple[int, ...], after: tuple[int, ...]) -> Classified:
    if before == after:
        return "each", {}
    if len(after) == 2 and before[0] == after[0] and after[1] == math.prod(before[1:]):
        return "flatten", {"repeat": math.prod(before[2:])}
    return "unknown", {}


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's result; None if that is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None
