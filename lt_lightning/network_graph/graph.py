"""The channels of a network: who writes them, who reads them, which go together, and which are provably zero.

The network is traced with torch.fx (`operations`). Every tensor is described by its channels (dimension 1), and each
channel belongs to a group. Operations that act on channels one by one keep the groups, additions unite them (a residual
stream is one group with several writers), a concatenation puts them in a row. A channel is *dead* if it is zero for
every input (`liveness`). What the analysis does not know keeps all its channels.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from lt_lightning.network_graph.liveness import Flags, Flow, fold
from lt_lightning.network_graph.operations import Kind, Operation, classify, shape_of, trace
from lt_lightning.pruning.layers import Layer, find_layers


@dataclass(frozen=True)
class Span:
    """The channels of one group in a row; each stands `repeat` times (a flattened channel: once for each position)."""

    group: int
    channels: int
    repeat: int = 1


@dataclass
class _Union:
    """Union-find over groups of channels, by number."""

    parent: list[int] = field(default_factory=list)
    joined: set[int] = field(default_factory=set)
    frozen: dict[int, str] = field(default_factory=dict)

    def new(self) -> int:
        """Add a group, united with none."""
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def root(self, group: int) -> int:
        """Return the group that stands for all that are united with this one."""
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def unite(self, a: int, b: int) -> None:
        """Unite two groups: their channels are kept or dropped together."""
        a, b = sorted((self.root(a), self.root(b)))
        self.joined.add(a)
        if a == b:
            return
        self.parent[b] = a
        if b in self.frozen:
            self.frozen.setdefault(a, self.frozen[b])

    def freeze(self, spans: Sequence[Span], why: str) -> None:
        """Keep all channels of the spans' groups; the first reason counts."""
        for span in spans:
            self.frozen.setdefault(self.root(span.group), why)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are kept or dropped together.

    Attributes:
        channels: number of channels.
        writers: layers (convolution, linear) whose outputs the channels are; those of a residual stream are several.
        followers: depthwise layers on these channels.
        joined: whether an addition or product unites several tensors in the group (a residual stream).
        frozen: why no channel of the group may be dropped; empty if channels may.
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
        outputs: flag of every output channel, (..., channels), by name of layer or normalisation.
        inputs: flag of every input channel, (..., channels), by name of layer.
    """

    outputs: Mapping[str, Flags]
    inputs: Mapping[str, Flags]


class ChannelGraph:
    """The channels of a traced network.

    Attributes:
        operations: all operations, in the order of execution.
        groups: every set of channels that must be kept or dropped together.
        nodes: nodes of the trace, one for each operation.
        trace: traced network, which shares its modules with the network.
        unknown: names of operations that the analysis does not know; their channels are all kept.
        rigid: operations whose results are whole or not there: unknown ones, inputs, layers that share parameters.
        flow: way of channels through the operations, given what of the layers is alive.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> graph = ChannelGraph(net, torch.zeros(1, 1, 8, 8))
    >>> [(group.writers, group.frozen) for group in graph.groups]
    [(('0',), ''), (('3',), 'output of the network')]
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """Trace the network and analyse it.

        Args:
            network: any module; its state is left as it was.
            example: input batch of the true shape.

        Raises:
            ValueError: if torch.fx cannot trace the network.
        """
        self.operations: list[Operation] = []
        self.groups: list[ChannelGroup] = []
        self.unknown: list[str] = []
        self._results: set[int] = set()
        self._union = _Union()
        self._spans: list[list[Span]] = []
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
                    self._union.freeze(self._spans[index], "output of the network")
            return
        shape = shape_of(node)
        if shape is None and node.meta.get("tensor_meta") is None:  # a size, a number: no channels
            return
        kind: Kind = "unknown"
        channels, extra = 0, dict[str, Any]()
        if shape is not None:  # else there are several tensors (a split), of whose channels nothing is known
            channels = shape[1] if len(shape) > 1 else 1
            kind, extra = classify(node, shape, self._modules)
        name = str(node.target) if node.op == "call_module" else node.name
        inputs = tuple(
            source.meta["operation"] for source in node.all_input_nodes if source.meta["operation"] is not None
        )
        spans = self._spans_of(kind, name, inputs, channels, extra.get("repeat", 1))
        node.meta["operation"] = len(self.operations)
        self.nodes.append(node)
        self.operations.append(Operation(kind, name, inputs, channels, **extra))
        self._spans.append(spans)

    def _spans_of(self, kind: Kind, name: str, inputs: tuple[int, ...], channels: int, repeat: int) -> list[Span]:
        given = [self._spans[index] for index in inputs]
        if kind == "lift":
            self._union.freeze(given[0], f"operation {name} turns zeros into other values")
        if kind in ("norm", "each", "lift"):
            return given[0]
        if kind in ("flatten", "depthwise"):
            return [Span(s.group, s.channels, s.repeat * repeat) for s in given[0]]
        if kind == "cat":
            return [span for spans in given for span in spans]
        if kind in ("add", "product"):
            return self._unite(given, name)
        fresh = [Span(self._union.new(), channels)]
        if kind == "source":
            self._union.freeze(fresh, "input of the network")
        elif kind == "grouped":
            for spans in (*given, fresh):
                self._union.freeze(spans, f"grouped convolution {name}")
        elif kind == "unknown":
            self.unknown.append(name)
            for spans in (*given, fresh):
                self._union.freeze(spans, f"unknown operation {name}")
        return fresh

    def _unite(self, given: list[list[Span]], name: str) -> list[Span]:
        first = given[0]
        for other in given[1:]:
            if [(s.channels, s.repeat) for s in other] == [(s.channels, s.repeat) for s in first]:
                for a, b in zip(first, other, strict=True):
                    self._union.unite(a.group, b.group)
            else:
                self._union.freeze((*first, *other), f"channels of {name} do not line up")
        return first

    def _freeze_shared_layers(self) -> None:
        seen: dict[str, int] = {}
        for index, operation in enumerate(self.operations):
            if operation.kind not in ("dense", "depthwise", "norm"):
                continue
            if (first := seen.setdefault(operation.name, index)) != index:
                for i in (first, index):
                    for spans in (self._spans[i], *(self._spans[j] for j in self.operations[i].inputs)):
                        self._union.freeze(spans, f"{operation.name} is called more than once")

    def _find_rigid(self) -> set[int]:
        """Return the operations that cannot be resized; a parameter that is used twice has one size for both uses."""
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
        for operation, spans in zip(self.operations, self._spans, strict=True):
            if operation.kind in ("dense", "grouped"):
                root = self._union.root(spans[0].group)
                channels[root] = spans[0].channels
                names = writers.setdefault(root, [])
                if operation.name not in names:
                    names.append(operation.name)
            elif operation.kind == "depthwise":
                for span in spans:
                    followers.setdefault(self._union.root(span.group), []).append(operation.name)
        for root, names in writers.items():
            self.groups.append(
                ChannelGroup(
                    channels=channels[root],
                    writers=tuple(names),
                    followers=tuple(followers.get(root, ())),
                    joined=root in self._union.joined,
                    frozen=self._union.frozen.get(root, ""),
                )
            )

    # Liveness

    def propagate(self, kept: Mapping[str, Flags]) -> Liveness:
        """Follow zeros through the network, forwards, and what nobody reads, backwards.

        Args:
            kept: flag of every output channel, (..., channels), by layer name; a layer that is not named keeps all. Of
                several alternatives, which are the first dimensions, each is followed for itself.

        Returns:
            the channels that are left. Wherever a normalisation's input is dead its output counts as dead: the caller
            is to drop its affine parameters there, so that it does not emit its shift.
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

    def layout(self, index: int) -> list[tuple[int, Span]]:
        """Return the groups that the channels of an operation's result belong to, by number, in their order."""
        return [(self._union.root(span.group), span) for span in self._spans[index]]


def _merge(flags: dict[str, Flags], name: str, more: Flags) -> None:
    flags[name] = flags[name] | more if name in flags else more


@dataclass(frozen=True)
class TracedNetwork:
    """A network with its layers and channels, each found once, when it is first looked at.

    They stay what they are while values change in place and nothing else does, as in a search.

    Attributes:
        network: any module.
        example: input batch of the true shape.
    """

    network: nn.Module
    example: Tensor

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every convolution and linear layer, by name; see `find_layers`."""
        return find_layers(self.network, self.example)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The channels of the network."""
        return ChannelGraph(self.network, self.example)
