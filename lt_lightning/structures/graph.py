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
from dataclasses import dataclass, field, replace
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
# Act on each channel alone and turn zeros into another constant.
_LIFTING_MODULES = (nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid)
_LIFTING_FUNCTIONS: tuple[Any, ...] = (
    F.sigmoid, F.softplus, F.hardsigmoid, F.logsigmoid, torch.sigmoid, torch.exp, "sigmoid", "exp",
)  # fmt: skip
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
        kind: what it does to channels (`_forward` and `_backward` have a rule for each).
        name: of the module, for layers and normalisations; of the node otherwise.
        inputs: indices of the operations whose results it takes.
        channels: of its result.
        repeat: for `flatten` the positions of a channel; for `depthwise` and `grouped` the outputs of a group.
        has_bias: whether a layer has one.
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


@dataclass(frozen=True)
class Alive:
    """What of a layer or normalisation may be other than zero.

    Attributes:
        scale: (outputs,), whether an output takes anything of its inputs.
        shift: (outputs,), whether an output may be other than zero where its inputs are.
        reads: (outputs, inputs), which inputs an output takes; None: all that it could.
    """

    scale: Flags
    shift: Flags
    reads: Flags | None = None


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
        rigid: operations whose results are whole or not there: unknown ones, inputs, layers that share parameters.

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
        self._results: set[int] = set()
        self._spaces = _Spaces()
        self._segments: list[list[Segment]] = []
        self._modules = dict(network.named_modules())
        self.nodes: list[fx.Node] = []
        self.trace = _trace(network, example)
        for node in self.trace.graph.nodes:
            self._add(node)
        self._freeze_shared_layers()
        self.rigid = self._find_rigid()
        self._collect_groups()

    # Building

    def _add(self, node: fx.Node) -> None:
        node.meta["operation"] = None
        if node.op == "output":
            for source in node.all_input_nodes:
                if (index := source.meta["operation"]) is not None:
                    self._results.add(index)
                    self._spaces.freeze(self._segments[index], "output of the network")
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
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and "weight" not in module._parameters:
            return "unknown", {}  # computed from other parameters (weight norm, torch.nn.utils.prune)
        if isinstance(module, CONVOLUTIONS):
            bias = {"has_bias": module.bias is not None}
            if module.groups == 1:
                return "dense", bias
            kind = "depthwise" if module.groups == module.in_channels else "grouped"
            return kind, {"repeat": module.out_channels // module.groups, **bias}
        if isinstance(module, nn.Linear) and len(before) == 2:
            return "dense", {"has_bias": module.bias is not None}
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
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

    def _segments_of(self, kind: str, name: str, inputs: tuple[int, ...], channels: int, repeat: int) -> list[Segment]:
        given = [self._segments[index] for index in inputs]
        if kind == "lift":
            self._spaces.freeze(given[0], f"operation {name} turns zeros into other values")
        if kind in ("norm", "each", "lift"):
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

    def _freeze_shared_layers(self) -> None:
        seen: dict[str, int] = {}
        for index, operation in enumerate(self.operations):
            if operation.kind not in ("dense", "depthwise", "norm"):
                continue
            if (first := seen.setdefault(operation.name, index)) != index:
                for i in (first, index):
                    for segments in (self._segments[i], *(self._segments[j] for j in self.operations[i].inputs)):
                        self._spaces.freeze(segments, f"{operation.name} is called more than once")

    def _find_rigid(self) -> set[int]:
        """Operations that cannot be resized; a parameter that is used twice has one size for both uses."""
        users: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            if node.op == "call_module":
                for parameter in self._modules[str(node.target)].parameters():
                    users.setdefault(id(parameter), []).append(index)
        for node in self.trace.graph.nodes:
            if node.op == "get_attr" and node in self.nodes:
                value = operator.attrgetter(str(node.target))(self.trace)
                users.setdefault(id(value), []).append(self.nodes.index(node))
        rigid = {index for index, operation in enumerate(self.operations) if operation.kind in ("source", "unknown")}
        return rigid.union(*(indices for indices in users.values() if len(indices) > 1))

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
        """Per operation, the channels of its result that may be other than zero, and those of them that are there.

        Args:
            kept: as for `propagate`.
        """
        alive = {operation.name: _promised(operation, kept.get(operation.name)) for operation in self.operations}
        live = self._forward(alive)
        return live, self._present(live, self._backward(alive, live, {}))

    def find_channels(self, alive: Mapping[str, Alive], nonzero: Sequence[Flags] | None = None) -> list[Flags]:
        """Per operation, the channels of its result that a network must compute, by what it holds.

        Args:
            alive: by name of layer or normalisation.
            nonzero: for inference at given values: per operation, the channels that are other than zero for some
                input; then what no input changes, and is zero there, is dead, too.
        """
        live = self._forward(alive) if nonzero is None else self._forward_at(alive, nonzero)
        held: dict[int, int] = {}
        while True:
            present = self._present(live, self._backward(alive, live, held), held)
            starved = self._starved(present)
            if starved is None:
                return present
            source, channel = starved
            held[source] = channel

    def _starved(self, present: list[Flags]) -> tuple[int, int] | None:
        """An operation that has no channel left though its result is needed for its shape, and a channel to keep."""
        for index in self._results:
            if not present[index].any():
                return index, 0
        for index, operation in enumerate(self.operations):
            empty = [source for source in operation.inputs if len(present[source]) and not present[source].any()]
            sums = operation.kind in ("add", "cat")  # of which one input is enough
            if present[index].any() and empty and not (sums and len(empty) < len(operation.inputs)):
                return empty[0], self._channel_behind(operation, int(np.argmax(present[index])))
        return None

    def _channel_behind(self, operation: Operation, channel: int) -> int:
        """The channel of the first input that stands behind one of the result; any, where there is none."""
        if operation.kind in ("flatten", "depthwise"):
            return channel // operation.repeat
        aligned = operation.kind in ("norm", "each", "lift", "add", "product")
        return channel if aligned else 0

    def _present(self, live: list[Flags], needed: list[Flags], held: Mapping[int, int] | None = None) -> list[Flags]:
        """The channels that are computed: live and needed, rounded up to what can be left out."""
        present = [flags & wanted for flags, wanted in zip(live, needed, strict=True)]
        for index, channel in (held or {}).items():
            present[index][channel] = True
        for index, operation in enumerate(self.operations):
            if index in self.rigid:
                present[index] = np.full_like(present[index], present[index].any())
            elif operation.kind in ("grouped", "depthwise", "flatten"):
                present[index] = np.repeat(_fold(present[index], operation.repeat), operation.repeat)
        return present

    def layout(self, index: int) -> list[tuple[int, Segment]]:
        """The spaces that the channels of an operation's result belong to, in their order."""
        return [(self._spaces.root(segment.space), segment) for segment in self._segments[index]]

    def _forward(self, alive: Mapping[str, Alive]) -> list[Flags]:
        """The channels that may be other than zero."""
        live: list[Flags] = []
        for operation in self.operations:
            live.append(_forward(operation, [live[index] for index in operation.inputs], alive.get(operation.name)))
        return live

    def _forward_at(self, alive: Mapping[str, Alive], nonzero: Sequence[Flags]) -> list[Flags]:
        """The channels that depend on the input, or are other than zero."""
        still = {name: replace(of, shift=np.zeros_like(of.shift)) for name, of in alive.items()}
        vary: list[Flags] = []
        live: list[Flags] = []
        for index, operation in enumerate(self.operations):
            given = [vary[source] for source in operation.inputs]
            match operation.kind:
                case "lift":
                    varies = given[0]
                case "product":
                    both = reduce(operator.and_, (live[source] for source in operation.inputs))
                    varies = reduce(operator.or_, given) & both
                case _:
                    varies = _forward(operation, given, still.get(operation.name))
            vary.append(varies)
            live.append(varies | nonzero[index])
        return live

    def _backward(self, alive: Mapping[str, Alive], live: list[Flags], held: Mapping[int, int]) -> list[Flags]:
        """The channels that the network's results are made from."""
        needed = [np.zeros(operation.channels, dtype=bool) for operation in self.operations]
        for index in self._results:
            needed[index][:] = True
        for index, channel in held.items():
            needed[index][channel] = True
        for index in reversed(range(len(self.operations))):
            operation = self.operations[index]
            wanted = needed[index] & live[index]
            sizes = [len(live[source]) for source in operation.inputs]
            for source, flags in zip(
                operation.inputs, _backward(operation, wanted, sizes, alive.get(operation.name)), strict=True
            ):
                needed[source] |= flags
        return needed


def _promised(operation: Operation, kept: Flags | None) -> Alive:
    """A layer of which some channels are to be dropped; a normalisation's shift, too, where its input is dropped."""
    keep = np.ones(operation.channels, dtype=bool) if kept is None else kept
    shifts = operation.kind in ("dense", "grouped") and operation.has_bias
    return Alive(keep, keep if shifts else np.zeros_like(keep))


def _forward(operation: Operation, given: list[Flags], alive: Alive | None) -> Flags:
    """Which channels of the result may be other than zero."""
    match operation.kind:
        case "dense" | "grouped":
            assert alive is not None
            taken = given[0].any() if alive.reads is None else (alive.reads & given[0]).any(axis=1)
            return alive.shift | (alive.scale & taken)
        case "depthwise":
            assert alive is not None
            return alive.shift | (alive.scale & np.repeat(given[0], operation.repeat))
        case "norm":
            assert alive is not None
            return alive.shift | (alive.scale & given[0])
        case "each":
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


def _backward(operation: Operation, wanted: Flags, sizes: list[int], alive: Alive | None) -> list[Flags]:
    """Which channels of each input, of these sizes, are read, given those of the result that are."""
    match operation.kind:
        case "dense" | "grouped":
            assert alive is not None
            wanted = wanted & alive.scale
            if alive.reads is None:
                return [np.full(sizes[0], wanted.any())]
            return [np.asarray(alive.reads[wanted].any(axis=0))]
        case "depthwise":
            assert alive is not None
            return [_fold(wanted & alive.scale, operation.repeat)]
        case "norm":
            assert alive is not None
            return [wanted & alive.scale]
        case "flatten":
            return [_fold(wanted, operation.repeat)]
        case "each" | "lift" | "add" | "product":
            return [wanted for _ in operation.inputs]
        case "cat":
            return list(np.split(wanted, np.cumsum(sizes)[:-1]))
        case _:  # of several tensors nothing is known
            return [np.full(size, operation.channels == 0 or wanted.any()) for size in sizes]


def _merge(flags: dict[str, Flags], name: str, more: Flags) -> None:
    flags[name] = flags[name] | more if name in flags else more


def _fold(flags: Flags, repeat: int) -> Flags:
    return np.asarray(flags.reshape(-1, repeat).any(axis=1))


def _classify_call(
    target: Any, node: fx.Node, before: list[tuple[int, ...]], after: tuple[int, ...]
) -> tuple[str, dict[str, Any]]:
    first = before[0]
    if target in _LIFTING_FUNCTIONS or (target in _ADDITIONS and _is_shift(node)):
        return "lift", {}
    if (target in _ZERO_KEEPING_FUNCTIONS or target in _ZERO_KEEPING_METHODS) and first[:2] == after[:2]:
        return "each", {}
    if target in _ADDITIONS or target in _PRODUCTS:
        operands = [_shape(argument) for argument in node.args if isinstance(argument, fx.Node)]
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
    """x + 1, but neither x + y nor x + x.size(0)."""
    return len(node.all_input_nodes) == 1 and any(isinstance(argument, (int, float)) for argument in node.args)


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
