"""A channel ticket's network, rebuilt with fewer channels, which computes the same.

Dropped channels are provably zero (a refilled ticket drops a channel with its bias, its BatchNorm affine and its
readers' inputs), so leaving them out changes nothing. Channels of one group, a residual stream for instance, stand
in the same order everywhere; where a branch writes only part of a stream, the order puts that part first, so that
the branch is added to the first channels.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from lt_lightning.execution.smaller_network import Cut, Resizer, Shrunk, Slices
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.liveness import Flags
from lt_lightning.network_graph.operations import Operation
from lt_lightning.structures.plan import ChannelPlan

ChannelOrder = NDArray[np.int64]


def shrink_channels(network: nn.Module, plan: ChannelPlan, example: Tensor) -> Shrunk:
    """Make the network that a channel ticket executes.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        example: an input batch of the true shape.

    Raises:
        ValueError: if the network cannot be traced, or nothing of it would be left.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> plan = ChannelPlan({"0": torch.tensor([1, 3])}, {"2": torch.tensor([1, 3])})
    >>> shrink_channels(net, plan, torch.zeros(1, 1, 8, 8)).network[2]
    Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    graph = ChannelGraph(network, example)
    kept = {name: _flags(channels, _width(network, name)) for name, channels in plan.outputs.items()}
    _, present = graph.flow.trace_channels(kept)
    return keep_channels(network, graph, present)


def keep_channels(network: nn.Module, graph: ChannelGraph, present: Sequence[Flags]) -> Shrunk:
    """Make the network that computes certain channels only.

    Args:
        network: network with the values to keep; it is left as it was.
        graph: graph of the network. Its trace is edited, so it can be used only once.
        present: channels to compute, per operation of the graph; the others are zero, or nothing reads them.

    Raises:
        ValueError: if nothing of the network would be left.
    """
    return _Shrinking(network, graph, present).result()


class _Shrinking:
    """One rebuilding of a network; `result` begins it."""

    def __init__(self, network: nn.Module, graph: ChannelGraph, present: Sequence[Flags]) -> None:
        self.graph = graph
        self.network = copy.deepcopy(network)
        self.resize = Resizer(self.network)
        self.orders = channel_orders(graph, present)
        self.edited = False

    # Building

    def result(self) -> Shrunk:
        for index, operation in enumerate(self.graph.operations):
            if operation.channels and len(self.orders[index]) == 0:
                self.edited = True  # a dead branch, which nothing reads
            else:
                self._rebuild(index, operation)
        for node in self.graph.trace.graph.nodes:
            if node.op == "output":
                node.args = fx.node.map_arg(node.args, self._whole)
        network = self._as_graph_module() if self.edited else self.network
        slices = Slices({name: (name, self.resize.cuts.get(name, Cut())) for name in network.state_dict()})
        return Shrunk(network, slices, tuple(self.graph.unknown))

    def _rebuild(self, index: int, operation: Operation) -> None:
        if index in self.graph.rigid:
            self._connect(index, [np.arange(self.graph.operations[i].channels) for i in operation.inputs])
            return
        match operation.kind:
            case "dense" | "grouped" | "depthwise" | "norm":
                wanted = self._source_order(index, operation)
                self._connect(index, [wanted])
                self.resize.layer(operation.name, self.orders[index], wanted)
            case "each" | "lift":
                self._connect(index, [self.orders[index]])
                if self.graph.nodes[index].op == "call_module":
                    self.resize.activation(operation.name, self.orders[index])
            case "flatten":
                self._connect(index, [folded(self.orders[index], operation.repeat)])
                self._flatten(index)
            case "add":
                self._add(index)
            case "product":
                self._connect(index, [self.orders[index]] * len(operation.inputs))
            case "cat":
                self._cat(index, operation)

    def _source_order(self, index: int, operation: Operation) -> ChannelOrder:
        """Return the channels that a layer or normalisation reads."""
        if operation.kind == "depthwise":
            return folded(self.orders[index], operation.repeat)
        if operation.kind == "norm":
            return self.orders[index]
        if operation.kind == "grouped":
            groups = operation.channels // operation.repeat
            inputs = self.graph.operations[operation.inputs[0]].channels
            return repeated(folded(self.orders[index], operation.repeat), inputs // groups)
        read = self.orders[operation.inputs[0]]
        if len(read) == 0:
            raise ValueError(f"every input of {operation.name} is dropped, and its bias is not: keep one of them")
        return read

    def _connect(self, index: int, wanted: Sequence[ChannelOrder]) -> None:
        """Give an operation its inputs in the wanted orders."""
        operation, node = self.graph.operations[index], self.graph.nodes[index]
        for source, order in zip(operation.inputs, wanted, strict=True):
            given = self._arranged(source, order, node)
            if given is not self.graph.nodes[source]:
                node.replace_input_with(self.graph.nodes[source], given)

    def _whole(self, node: fx.Node) -> fx.Node:
        """Return the node of a result with all of its channels in their first order, for the network's output."""
        if node not in self.graph.nodes:  # no tensor
            return node
        index = self.graph.nodes.index(node)
        (output,) = (user for user in self.graph.trace.graph.nodes if user.op == "output")
        return self._arranged(index, np.arange(self.graph.operations[index].channels), output)

    def _arranged(self, source: int, order: ChannelOrder, before: fx.Node) -> fx.Node:
        """Return the node that gives the source's channels in an order; missing ones are zero."""
        node, have = self.graph.nodes[source], self.orders[source]
        if np.array_equal(have, order):
            return node
        if len(have) == 0:
            raise ValueError(f"{before.name} needs {node.name}, all of whose channels are dropped: keep one of them")
        position_of = {channel: position for position, channel in enumerate(have.tolist())}
        known = np.array([channel in position_of for channel in order.tolist()], dtype=bool)
        taken = np.array([position_of[channel] for channel in order[known].tolist()], dtype=np.int64)
        if not np.array_equal(taken, np.arange(len(have))):
            node = self._insert(Select(taken), node, before)
        return node if known.all() else self._insert(Spread(np.flatnonzero(known), len(order)), node, before)

    def _insert(self, module: nn.Module, node: fx.Node, before: fx.Node) -> fx.Node:
        self.edited = True
        kind = type(module).__name__.lower()
        name = next(n for i in range(10**6) if not hasattr(self.network, n := f"{kind}_{i}"))
        self.network.add_module(name, module.to(next(self.network.parameters()).device))
        with self.graph.trace.graph.inserting_before(before):
            # Into a graph of another root: the module is there once the graph module is made.
            return self.graph.trace.graph.create_node("call_module", name, (node,))

    # Operations

    def _add(self, index: int) -> None:
        order, node = self.orders[index], self.graph.nodes[index]
        subtracts = "sub" in (node.target, getattr(node.target, "__name__", ""))
        sources = [source for source in self.graph.operations[index].inputs if len(self.orders[source])]
        if len(sources) == 1:
            left = self._arranged(sources[0], order, node)
            if subtracts and sources[0] != self.graph.operations[index].inputs[0]:
                with self.graph.trace.graph.inserting_before(node):
                    left = self.graph.trace.graph.call_function(operator.neg, (left,))
            self._replace(node, left)
            return
        small, large = sorted(sources, key=lambda source: len(self.orders[source]))
        part_order = self.orders[small]
        if len(part_order) < len(order) and np.array_equal(part_order, order[: len(part_order)]) and not subtracts:
            whole = self._arranged(large, order, node)
            with self.graph.trace.graph.inserting_before(node):
                self._replace(
                    node, self.graph.trace.graph.call_function(add_into_prefix, (whole, self.graph.nodes[small]))
                )
        else:
            self._connect(index, [order, order])

    def _cat(self, index: int, operation: Operation) -> None:
        node, order = self.graph.nodes[index], self.orders[index]
        given: list[fx.Node] = []
        offset = 0
        for source in operation.inputs:
            channels = self.graph.operations[source].channels
            mine = order[(order >= offset) & (order < offset + channels)] - offset
            if len(mine):
                given.append(self._arranged(source, mine, node))
            offset += channels
        if given != [self.graph.nodes[source] for source in operation.inputs]:
            self.edited = True
            node.args = (given, *node.args[1:])

    def _flatten(self, index: int) -> None:
        """Let a reshape that has the full network's number of features written in it flatten whatever is left."""
        node = self.graph.nodes[index]
        features = self.graph.operations[index].channels
        if len(self.orders[index]) < features and features in _numbers((node.args, node.kwargs)):
            source = node.all_input_nodes[0]
            with self.graph.trace.graph.inserting_before(node):
                self._replace(node, self.graph.trace.graph.call_function(torch.flatten, (source, 1)))

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        self.edited = True
        node.replace_all_uses_with(by)
        index = self.graph.nodes.index(node)
        self.graph.nodes[index] = by

    # Assembly

    def _as_graph_module(self) -> nn.Module:
        graph = self.graph.trace.graph
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in (F.dropout, F.dropout2d):
                self._dropout_as_module(graph, node)
        small = fx.GraphModule(self.network, graph, type(self.network).__name__)
        small.graph.eliminate_dead_code()
        small.delete_all_unused_submodules()
        small.recompile()
        small.train(self.network.training)
        return small

    def _dropout_as_module(self, graph: fx.Graph, node: fx.Node) -> None:
        """Replace the function, whose mode the trace has fixed, by a module, which follows `train()` and `eval()`."""
        module = nn.Dropout2d if node.target is F.dropout2d else nn.Dropout
        share: Any = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        source: Any = node.args[0]
        node.replace_all_uses_with(self._insert(module(share), source, node))


def _flags(channels: Tensor, width: int) -> Flags:
    flags = np.zeros(width, dtype=bool)
    flags[channels.numpy()] = True
    return flags


def _width(network: nn.Module, name: str) -> int:
    weight: Any = network.get_submodule(name).weight
    return int(weight.shape[0])


def _numbers(arguments: Any) -> list[int]:
    """Return all whole numbers in a node's arguments."""
    numbers: list[int] = []
    fx.node.map_aggregate(arguments, lambda value: numbers.append(value) if isinstance(value, int) else None)
    return numbers


# The order of the channels of each result, chosen so that few have to be rearranged.


def channel_orders(graph: ChannelGraph, present: Sequence[Flags]) -> list[ChannelOrder]:
    """Return the channels of each operation's result that are there, in the order in which they stand.

    Args:
        graph: graph of the full network.
        present: channels that are there, per operation.
    """
    ranks = _ranks(graph, present)
    return [_order(graph, flags, index, ranks) for index, flags in enumerate(present)]


def _ranks(graph: ChannelGraph, present: Sequence[Flags]) -> dict[int, ChannelOrder]:
    """Return an order of every group's channels: those that most layers write come first, so that sets are prefixes."""
    written: dict[int, NDArray[np.int64]] = {}
    for index, operation in enumerate(graph.operations):
        if operation.kind == "dense":
            ((group, span),) = graph.layout(index)
            counts = written.setdefault(group, np.zeros(span.channels, dtype=np.int64))
            counts += present[index]
    return {group: np.argsort(-counts, kind="stable") for group, counts in written.items()}


def _order(graph: ChannelGraph, present: Flags, index: int, ranks: Mapping[int, ChannelOrder]) -> ChannelOrder:
    """Return the channels of an operation's result that are there, in the order in which they stand."""
    if index in graph.rigid or graph.operations[index].kind == "grouped":
        return np.flatnonzero(present)
    parts = []
    offset = 0
    for group, span in graph.layout(index):
        rank = ranks.get(group, np.arange(span.channels))
        parts.append(offset + repeated(rank, span.repeat))
        offset += span.channels * span.repeat
    order = np.concatenate(parts)
    return order[present[order]]


def repeated(order: ChannelOrder, repeat: int) -> ChannelOrder:
    """Return the positions of channels that each stand `repeat` times."""
    return (order[:, None] * repeat + np.arange(repeat)).reshape(-1)


def folded(order: ChannelOrder, repeat: int) -> ChannelOrder:
    """Return the channels of such positions: the inverse of `repeated`."""
    return order.reshape(-1, repeat)[:, 0] // repeat


# Channels rearranged where no choice of the orders avoids it.


class Select(nn.Module):
    """Takes some channels, in a given order."""

    index: Tensor

    def __init__(self, index: ChannelOrder) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class Spread(nn.Module):
    """Puts channels at given positions among `channels`; the others are zero."""

    index: Tensor

    def __init__(self, index: ChannelOrder, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros((x.shape[0], self.channels, *x.shape[2:]))
        return whole.index_copy(1, self.index, x)


def add_into_prefix(whole: Tensor, first: Tensor) -> Tensor:
    """Add to the first channels of `whole`; the others stay."""
    summed = whole.clone()
    summed[:, : first.shape[1]] += first
    return summed
