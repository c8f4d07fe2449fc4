"""The channels of a network: who writes them, who reads them, which must go together, and which are provably zero."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from lt_lightning.network_graph.liveness import Flags, Flow, fold
from lt_lightning.network_graph.operations import Operation, classify, shape_of, trace
from lt_lightning.pruning.layers import Layer, find_layers


@dataclass(frozen=True)
class Segment:
    """Channels of one space in a row; each stands `repeat` times (a flattened channel: once a position)."""

    space: int
    channels: int
    repeat: int = 1


@dataclass
class Spaces:
    """Union-find over spaces."""

    parent: list[int] = field(default_factory=list)
    joined: set[int] = field(default_factory=set)
    frozen: dict[int, str] = field(default_factory=dict)

    def new(self) -> int:
        """Another space, joined with none."""
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def root(self, space: int) -> int:
        """The space that stands for all that are joined with this one."""
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def unite(self, a: int, b: int) -> None:
        """Joins two spaces: their channels are kept or dropped together."""
        a, b = sorted((self.root(a), self.root(b)))
        self.joined.add(a)
        if a == b:
            return
        self.parent[b] = a
        if b in self.frozen:
            self.frozen.setdefault(a, self.frozen[b])

    def freeze(self, segments: Sequence[Segment], why: str) -> None:
        """Keeps all channels of the segments' spaces; the first reason counts."""
        for segment in segments:
            self.frozen.setdefault(self.root(segment.space), why)


# The channels of a network: who writes them, who reads them, which must go together, and which are provably zero.
#
# The network is traced with torch.fx (`operations`). Every tensor is described by its channels (dimension 1): each
# belongs to a space (`spaces`); operations that act on channels one by one keep the space, additions unite spaces (a
# residual stream is one space with several writers), a concatenation lines them up. A channel is *dead* if it is zero
# for every input (`liveness`). What the analysis does not know keeps all its channels.


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
        outputs: by name of layer or normalisation, a flag per output channel: (..., channels).
        inputs: by name of layer, a flag per input channel, likewise.
    """

    outputs: Mapping[str, Flags]
    inputs: Mapping[str, Flags]


class ChannelGraph:
    """The channels of a traced network.

    Attributes:
        operations: in the order of execution.
        groups: every set of channels that must be kept or dropped together.
        nodes: of the trace, one for each operation.
        trace: the traced network; it shares its modules with the network.
        unknown: names of operations that the analysis does not know; their channels are all kept.
        rigid: operations whose results are whole or not there: unknown ones, inputs, layers that share parameters.
        flow: how channels pass through the operations, given what of the layers is alive.

    >>> import torch
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
        self._spaces = Spaces()
        self._segments: list[list[Segment]] = []
        self._modules = dict(network.named_modules())
        self.nodes: list[fx.Node] = []
        self.trace = trace(network, example)
        for node in self.trace.graph.nodes:
            self._add(node)
        self._freeze_shared_layers()
        self.rigid = self._find_rigid()
        self.flow = Flow(self.operations, self._results, self.rigid)
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
        shape = shape_of(node)
        if shape is None and node.meta.get("tensor_meta") is None:  # a size, a number: no channels
            return
        if shape is None:  # several tensors (a split): nothing is known of their channels
            channels, kind, extra = 0, "unknown", dict[str, Any]()
        else:
            channels = shape[1] if len(shape) > 1 else 1
            kind, extra = classify(node, shape, self._modules)
        name = str(node.target) if node.op == "call_module" else node.name
        inputs = tuple(
            source.meta["operation"] for source in node.all_input_nodes if source.meta["operation"] is not None
        )
        segments = self._segments_of(kind, name, inputs, channels, extra.get("repeat", 1))
        node.meta["operation"] = len(self.operations)
        self.nodes.append(node)
        self.operations.append(Operation(kind, name, inputs, channels, **extra))
        self._segments.append(segments)

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
            kept: by layer name, a flag per output channel, (..., channels); a layer that is not named keeps all. Of
                several alternatives, which are the first dimensions, each is followed for itself.

        Returns:
            what is left. Wherever a normalisation's input is dead its output counts as dead: the caller is to
            drop its affine parameters there, so that it does not emit its shift.
        """
        live, present = self.flow.trace_channels(kept)
        outputs: dict[str, Flags] = {}
        inputs: dict[str, Flags] = {}
        for index, operation in enumerate(self.operations):
            if operation.kind not in ("dense", "grouped", "depthwise", "norm"):
                continue
            out = present[index]
            _merge(outputs, operation.name, out)
            if operation.kind != "norm":
                source = operation.inputs[0]
                whole = operation.kind != "depthwise"
                read = live[source] & out.any(axis=-1, keepdims=True) if whole else fold(out, operation.repeat)
                _merge(inputs, operation.name, read)
        return Liveness(outputs, inputs)

    def layout(self, index: int) -> list[tuple[int, Segment]]:
        """The spaces that the channels of an operation's result belong to, in their order."""
        return [(self._spaces.root(segment.space), segment) for segment in self._segments[index]]


def _merge(flags: dict[str, Flags], name: str, more: Flags) -> None:
    flags[name] = flags[name] | more if name in flags else more


# What of a network a search looks at again and again, found once: training changes none of it.


@dataclass(frozen=True)
class TracedNetwork:
    """A network's layers and channels. They stay what they are while values change in place and nothing else does.

    Attributes:
        network: whose they are.
        example: an input batch of the true shape.
    """

    network: nn.Module
    example: Tensor

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every convolution and linear layer, by name; see `find_layers`."""
        return find_layers(self.network, self.example)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The channels; see there."""
        return ChannelGraph(self.network, self.example)
