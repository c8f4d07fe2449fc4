"""Channels put into the order and number that an operation wants; for what no permutation beforehand avoids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.liveness import Flags

Order = NDArray[np.int64]


def channel_orders(graph: ChannelGraph, present: Sequence[Flags]) -> list[Order]:
    """Per operation, the channels of its result that are there, in the order in which they stand.

    Args:
        graph: of the full network.
        present: per operation, the channels that are there.
    """
    ranks = _ranks(graph, present)
    return [_order(graph, flags, index, ranks) for index, flags in enumerate(present)]


def _ranks(graph: ChannelGraph, present: Sequence[Flags]) -> dict[int, Order]:
    """An order of every space's channels: those that most layers write come first, so that sets are prefixes."""
    written: dict[int, NDArray[np.int64]] = {}
    for index, operation in enumerate(graph.operations):
        if operation.kind == "dense":
            ((space, segment),) = graph.layout(index)
            counts = written.setdefault(space, np.zeros(segment.channels, dtype=np.int64))
            counts += present[index]
    return {space: np.argsort(-counts, kind="stable") for space, counts in written.items()}


def _order(graph: ChannelGraph, present: Flags, index: int, ranks: Mapping[int, Order]) -> Order:
    """Channels of an operation's result that are there, in the order in which they stand."""
    if index in graph.rigid or graph.operations[index].kind == "grouped":
        return np.flatnonzero(present)
    parts = []
    offset = 0
    for space, segment in graph.layout(index):
        rank = ranks.get(space, np.arange(segment.channels))
        parts.append(offset + repeated(rank, segment.repeat))
        offset += segment.channels * segment.repeat
    order = np.concatenate(parts)
    return order[present[order]]


def repeated(order: Order, repeat: int) -> Order:
    """Of channels that each stand `repeat` times the places."""
    return (order[:, None] * repeat + np.arange(repeat)).reshape(-1)


def folded(order: Order, repeat: int) -> Order:
    """The inverse of `repeated`."""
    return order.reshape(-1, repeat)[:, 0] // repeat


# Channels put into the order and number that an operation wants; for what no permutation beforehand avoids.


class Select(nn.Module):
    """Takes some channels, in a given order."""

    index: Tensor

    def __init__(self, index: Order) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class Spread(nn.Module):
    """Puts channels to given places among `channels`; the others are zero."""

    index: Tensor

    def __init__(self, index: Order, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros((x.shape[0], self.channels, *x.shape[2:]))
        return whole.index_copy(1, self.index, x)


def add_into_prefix(whole: Tensor, first: Tensor) -> Tensor:
    """Adds to the first channels of `whole`; the others pass."""
    summed = whole.clone()
    summed[:, : first.shape[1]] += first
    return summed
