"""The channels of a network: who writes them, who reads them, which must go together, and which are provably zero.

The network is traced with torch.fx. Every tensor is described by its channels (dimension 1): each belongs to a
*space*; operations that act on channels one by one keep the space, additions unite spaces (a residual stream is
one space with several writers), a concatenation lines them up. A channel is *dead* if it is zero for
every input. What the analysis does not know keeps all its channels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from lt_lightning.pruning.layers import CONVOLUTIONS

Flags = NDArray[np.bool_]

# Act on each channel alone and turn zeros into zeros.
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
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub")
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_MEANS: tuple[Any, ...] = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
_FLATTENINGS: tuple[Any, ...] = (torch.flatten, "flatten", torch.reshape, "reshape", "view")


@dataclass(frozen=True)
class Segment:
    """Channels of one space in a row; each stands `repeat` times (a flattened channel: once a position)."""

    space: int
    channels: int
    repeat: int = 1


@dataclass(frozen=True)
class Operation:
    """One step of the computation, seen by its channels.

    Attributes:
        kind: what it does to channels (`_FORWARD` has a rule for each).
        name: of the module, for layers and normalisations; of the node otherwise.
        inputs: indices of the operations whose results it takes.
        channels: of its result.
        repeat: for `flatten`, and for `depthwise` its outputs per input.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    channels: int
    repeat: int = 1
    has_bias: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or dropped together.

    Attributes:
        channels: how many.
        writers: layers (convolution, linear) whose outputs these are; all writers of a residual stream are one group.
        followers: depthwise layers on these channels.
        joined: whether an addition or product unites several tensors in the group (a residual stream).
        frozen: why no channel of it may be dropped; empty if channels may.
    """

    channels: int
    writers: tuple[str, ...]
    followers: tuple[str, ...]
    joined: bool
    frozen: str


@dataclass(frozen=True)
class Liveness:
    """Which channels take part in the computation.

    Attributes:
        outputs: by name of layer or normalisation, a flag per output channel.
        inputs: by name of layer, a flag per input channel.
    """

    outputs: Mapping[str, Flags]
    inputs: Mapping[str, Flags]


@dataclass
class _Spaces:
    """Union-find over spaces."""

    parent: list[int] = field(default_factory=list)
    joined: set[int] = field(default_factory=set)
    frozen: dict[int, str] = field(default_factory=dict)

    def new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def root(self, space: int) -> int:
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def unite(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.joined.add(a)
        if a == b:
            return
        self.parent[b] = a
        if b in self.frozen:
            self.frozen.setdefault(a, self.frozen[b])

    def freeze(self, segments: Sequence[Segment], why: str) -> None:
        for segment in segments:
            self.frozen.setdefault(self.root(segment.space), why)


class ChannelGraph:
    """The channels of a traced network.

    Attributes:
        operations: in the order of execution.
        groups: every set of channels that must be kept or dropped together.
        nodes: of the trace, one for each operation.
        trace: the traced network; it shares its modules with the network.
        unknown: names of operations that the analysis does not know; their channels are all kept.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> graph = ChannelGraph(net, torch.zeros(1, 1, 8, 8))
    >>> [(group.writers, group.frozen) for group in graph.groups]
    [(('0',), ''), (('3',), 'output of the network')]
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """Traces the network and analyses it.

        Args:
            network: its state is left as it was.
            example: an input batch of the true shape.

        Raises:
            ValueError: if torch.fx cannot trace the network.
        """
        self.operations: list[Operation] = []
        self.groups: list[ChannelGroup] = []
        self.unknown: list[str] = []
        self._spaces = _Spaces()
        self._segments: list[list[Segment]] = []
        self._modules = dict(network.named_modules())
        self.nodes: list[fx.Node] = []
        self.trace = _trace(network, example)
        for node in self.trace.graph.nodes:
            self._add(node)
        self._freeze_shared_layers()
        self._collect_groups()

    # Building

    def _add(self, node: fx.Node) -> None:
        node.meta["operation"] = None
        if node.op == "output":
            for source in node.all_input_nodes:
                self._freeze(source, "output of the network")
            return
        shape = _shape(node)
        if shape is None and node.meta.get("tensor_meta") is None:  # a size, a number: no channels
            return
        if shape is None:  # several tensors (a split): nothing is known of their channels
            channels, kind, extra = 0, "unknown", dict[str, Any]()
        else:
            channels = shape[1] if len(shape) > 1 else 1
            kind, extra = self._classify(node, shape)
        name = str(node.target) if node.op == "call_module" else node.name
        inputs = tuple(
            source.meta["operation"] for source in node.all_input_nodes if source.meta["operation"] is not None
        )
        segments = self._segments_of(kind, name, inputs, channels, extra.get("repeat", 1))
        node.meta["operation"] = len(self.operations)
        self.nodes.append(node)
        self.operations.append(Operation(kind, name, inputs, channels, **extra))
        self._segments.append(segments)

    def _classify(self, node: fx.Node, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
        sources = [source for source in node.all_input_nodes if _shape(source) is not None]
        before = _shape(sources[0]) if sources else None
        if node.op == "placeholder":
            return "source", {}
        if before is None:
            return "unknown", {}
        if node.op == "call_module":
            return self._classify_module(self._modules[str(node.target)], before, shape)
        return _classify_call(node.target, node, [_shape(source) or () for source in sources], shape)

    def _classify_module(
        self, module: nn.Module, before: tuple[int, ...], after: tuple[int, ...]
    ) -> tuple[str, dict[str, Any]]:
        if isinstance(module, CONVOLUTIONS):
            bias = {"has_bias": module.bias is not None}
            if module.groups == 1:
                return "dense", bias
            if module.groups == module.in_channels:
                return "depthwise", {"repeat": module.out_channels // module.in_channels, **bias}
            return "grouped", bias
        if isinstance(module, nn.Linear) and len(before) == 2:
            return "dense", {"has_bias": module.bias is not None}
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            return "norm", {}
        if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
            return "unknown", {}
        if isinstance(module, _ZERO_KEEPING_MODULES) and before[:2] == after[:2]:
            return "each", {}
        if isinstance(module, nn.Flatten):
            return _flattening(before, after)
        return "unknown", {}

    def _segments_of(self, kind: str, name: str, inputs: tuple[int, ...], channels: int, repeat: int) -> list[Segment]:
        given = [self._segments[index] for index in inputs]
        if kind in ("norm", "each"):
            return given[0]
        if kind in ("flatten", "depthwise"):
            return [Segment(s.space, s.channels, s.repeat * repeat) for s in given[0]]
        if kind == "cat":
            return [segment for segments in given for segment in segments]
        if kind in ("add", "product"):
            return self._unite(given, name)
        fresh = [Segment(self._spaces.new(), channels)]
        if kind == "source":
            self._spaces.freeze(fresh, "input of the network")
        elif kind == "grouped":
            for segments in (*given, fresh):
                self._spaces.freeze(segments, f"grouped convolution {name}")
        elif kind == "unknown":
            self.unknown.append(name)
            for segments in (*given, fresh):
                self._spaces.freeze(segments, f"unknown operation {name}")
        return fresh

    def _unite(self, given: list[list[Segment]], name: str) -> list[Segment]:
        first = given[0]
        for other in given[1:]:
            if [(s.channels, s.repeat) for s in other] == [(s.channels, s.repeat) for s in first]:
                for a, b in zip(first, other, strict=True):
                    self._spaces.unite(a.space, b.space)
            else:
                self._spaces.freeze((*first, *other), f"channels of {name} do not line up")
        return first

    def _freeze(self, node: fx.Node, why: str) -> None:
        if (index := node.meta["operation"]) is not None:
            self._spaces.freeze(self._segments[index], why)

    def _freeze_shared_layers(self) -> None:
        seen: dict[str, int] = {}
        for index, operation in enumerate(self.operations):
            if operation.kind not in ("dense", "depthwise", "norm"):
                continue
            if (first := seen.setdefault(operation.name, index)) != index:
                for i in (first, index):
                    for segments in (self._segments[i], *(self._segments[j] for j in self.operations[i].inputs)):
                        self._spaces.freeze(segments, f"{operation.name} is called more than once")

    def _collect_groups(self) -> None:
        writers: dict[int, list[str]] = {}
        followers: dict[int, list[str]] = {}
        channels: dict[int, int] = {}
        for operation, segments in zip(self.operations, self._segments, strict=True):
            if operation.kind in ("dense", "grouped"):
                root = self._spaces.root(segments[0].space)
                channels[root] = segments[0].channels
                names = writers.setdefault(root, [])
                if operation.name not in names:
                    names.append(operation.name)
            elif operation.kind == "depthwise":
                for segment in segments:
                    followers.setdefault(self._spaces.root(segment.space), []).append(operation.name)
        for root, names in writers.items():
            self.groups.append(
                ChannelGroup(
                    channels[root],
                    tuple(names),
                    tuple(followers.get(root, ())),
                    root in self._spaces.joined,
                    self._spaces.frozen.get(root, ""),
                )
            )

    # Liveness

    def propagate(self, kept: Mapping[str, Flags]) -> Liveness:
        """Follows zeros through the network, forwards, and what nobody reads, backwards.

        Args:
            kept: by layer name, a flag per output channel; a layer that is not named keeps all.

        Returns:
            what is left. Wherever a normalisation's input is dead its output counts as dead: the caller is to
            drop its affine parameters there, so that it does not emit its shift.
        """
        live, present = self.trace_channels(kept)
        outputs: dict[str, Flags] = {}
        inputs: dict[str, Flags] = {}
        for index, operation in enumerate(self.operations):
            if operation.kind not in ("dense", "grouped", "depthwise", "norm"):
                continue
            out = present[index]
            _merge(outputs, operation.name, out)
            if operation.kind != "norm":
                source = operation.inputs[0]
                read = live[source] & out.any() if operation.kind != "depthwise" else _fold(out, operation.repeat)
                _merge(inputs, operation.name, read)
        return Liveness(outputs, inputs)

    def trace_channels(self, kept: Mapping[str, Flags]) -> tuple[list[Flags], list[Flags]]:
        """Per operation, the channels of its result that may be other than zero, and those of them that are read."""
        live = self._forward(kept)
        needed = self._backward(live)
        return live, [flags & wanted for flags, wanted in zip(live, needed, strict=True)]

    def layout(self, index: int) -> list[tuple[int, Segment]]:
        """The spaces that the channels of an operation's result belong to, in their order."""
        return [(self._spaces.root(segment.space), segment) for segment in self._segments[index]]

    def _forward(self, kept: Mapping[str, Flags]) -> list[Flags]:
        live: list[Flags] = []
        for operation in self.operations:
            given = [live[index] for index in operation.inputs]
            live.append(_forward(operation, given, kept.get(operation.name)))
        return live

    def _backward(self, live: list[Flags]) -> list[Flags]:
        needed = [np.zeros(operation.channels, dtype=bool) for operation in self.operations]
        read = {index for operation in self.operations for index in operation.inputs}
        for index in range(len(self.operations)):
            if index not in read:  # a result of the network
                needed[index][:] = True
        for index in reversed(range(len(self.operations))):
            operation = self.operations[index]
            wanted = needed[index] & live[index]
            for source, flags in zip(operation.inputs, _backward(operation, wanted, needed, live), strict=True):
                needed[source] |= flags
        return needed


def _forward(operation: Operation, given: list[Flags], kept: Flags | None) -> Flags:
    """Which channels of the result may be other than zero."""
    keep = np.ones(operation.channels, dtype=bool) if kept is None else kept
    match operation.kind:
        case "dense" | "grouped":
            return keep if operation.has_bias or given[0].any() else np.zeros_like(keep)
        case "depthwise":
            return keep & np.repeat(given[0], operation.repeat)
        case "norm" | "each":
            return given[0]
        case "flatten":
            return np.repeat(given[0], operation.repeat)
        case "cat":
            return np.concatenate(given)
        case "add":
            return reduce(operator.or_, given)
        case "product":
            return reduce(operator.and_, given)
        case _:
            return np.ones(operation.channels, dtype=bool)


def _backward(operation: Operation, wanted: Flags, needed: list[Flags], live: list[Flags]) -> list[Flags]:
    """Which channels of each input are read, given those of the result that are."""
    match operation.kind:
        case "dense" | "grouped":
            return [np.full(len(needed[operation.inputs[0]]), wanted.any())]
        case "depthwise" | "flatten":
            return [_fold(wanted, operation.repeat)]
        case "norm" | "each" | "add" | "product":
            return [wanted for _ in operation.inputs]
        case "cat":
            ends = np.cumsum([len(live[index]) for index in operation.inputs])
            return list(np.split(wanted, ends[:-1]))
        case _:
            return [np.ones_like(needed[index]) for index in operation.inputs]


def _merge(flags: dict[str, Flags], name: str, more: Flags) -> None:
    flags[name] = flags[name] | more if name in flags else more


def _fold(flags: Flags, repeat: int) -> Flags:
    return np.asarray(flags.reshape(-1, repeat).any(axis=1))


def _classify_call(
    target: Any, node: fx.Node, before: list[tuple[int, ...]], after: tuple[int, ...]
) -> tuple[str, dict[str, Any]]:
    first = before[0]
    if (target in _ZERO_KEEPING_FUNCTIONS or target in _ZERO_KEEPING_METHODS) and first[:2] == after[:2]:
        return "each", {}
    if target in _ADDITIONS or target in _PRODUCTS:
        operands = [_shape(argument) for argument in node.args if isinstance(argument, fx.Node)]
        tensors = len(operands) == 2 and all(shape is not None and shape[:2] == after[:2] for shape in operands)
        if target in _PRODUCTS:
            constant = len(operands) == 1 and first[:2] == after[:2]
            return ("each" if constant else "product", {}) if tensors or constant else ("unknown", {})
        if tensors:  # x + x has one source
            return ("add" if len(before) == 2 else "each"), {}
    if target in (torch.cat, torch.concat) and _dimensions(node, len(first), default=0) == {1}:
        once = sum(shape[1] for shape in before) == after[1]  # the same tensor twice is one source
        return ("cat" if once else "unknown"), {}
    if target in _MEANS and first[:2] == after[:2] and not _dimensions(node, len(first), default=1) & {0, 1}:
        return "each", {}
    if target in _FLATTENINGS:
        return _flattening(first, after)
    return "unknown", {}


def _dimensions(node: fx.Node, rank: int, default: int) -> set[int]:
    """The dimensions that a call names as its second argument, or as `dim`."""
    named: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else default)
    return {int(dimension) % rank for dimension in (named if isinstance(named, (tuple, list)) else [named])}


def _flattening(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    if before == after:
        return "each", {}
    if len(after) == 2 and before[0] == after[0] and after[1] == math.prod(before[1:]):
        return "flatten", {"repeat": math.prod(before[2:])}
    return "unknown", {}


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def _trace(network: nn.Module, example: Tensor) -> fx.GraphModule:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        traced = fx.GraphModule(network, fx.Tracer().trace(network))
        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(network).__name__}, which a channel structure needs: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return traced
