"""Filters: keep the strongest filters whole, by all of their weights; structured pruning, the rival of Refill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup, Numbers
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import Layer
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.channel_choice import (
    ChannelChoice,
    ChannelStructure,
    Coupling,
    Floats,
    by_unit,
    droppable,
    outputs_first,
)

Score = Literal["l1", "scale"]
Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Filters(ChannelStructure):
    """Keeps the strongest channels whole, judged by all of their weights; no unstructured mask has a say in which.

    Of the round's mask only the number of weights counts: the channels that stay are as many as execute no more than
    that. So a search whose next round starts from this structure's mask is structured iterative pruning: each round
    drops the same share of the weights that are executed, in whole filters, and the next goes on from what is left.
    `Refill` differs in that unstructured pruning decides how many channels each layer keeps, and which weights count.

    Channels are dropped exactly, as `Refill` does: with bias, BatchNorm and the weights of their readers.

    Attributes:
        score: score of a channel: the mean magnitude of the weights of its filters (`l1`; Li et al. 2017,
            arXiv 1608.08710), or that of the scales of the BatchNorm behind it (`scale`; Liu et al. 2017,
            arXiv 1708.06519, without their penalty in training).
        scope: `layer` keeps the same share of every layer's channels, `global` compares scores over all layers.
        coupling: which channels go together; see `Refill`.
        round_to: number of which kept counts are multiples; see `Refill`. With 1, rounds are as even as they can be.

    Raises:
        ValueError: on construction, for a value out of range.
    """

    score: Score = "l1"
    scope: Scope = "layer"
    coupling: Coupling = "stream"
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"round_to={self.round_to}: must be at least 1")
        for name, allowed in (("score", Score), ("scope", Scope), ("coupling", Coupling)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")

    needs_batches: ClassVar[bool] = False

    def check(self, traced: TracedNetwork) -> None:
        """Trace the network and look for channels that may be dropped, and for what they are scored by.

        Raises:
            ValueError: if the network cannot be traced, or has no such channels or nothing that scores them.
        """
        graph = traced.graph
        groups = droppable(graph, self.coupling)
        if self.score == "scale":
            for group in groups:
                apart = self.coupling == "independent" and group.joined
                for each in [replace(group, writers=(name,)) for name in group.writers] if apart else [group]:
                    _scales(graph, each)

    def choose(self, given: StructureInput) -> ChannelChoice:
        return _FilterChoice(self, given)


class _FilterChoice(ChannelChoice):
    """One call of `Filters`."""

    def __init__(self, filters: Filters, given: StructureInput) -> None:
        self._filters = filters
        super().__init__(given, filters.coupling, filters.round_to)

    def rank(self, group: ChannelGroup, scored: Sequence[Layer]) -> Floats:
        weights = self.given.weights
        if self._filters.score == "scale":
            sums, counts = np.zeros(group.channels), np.zeros(group.channels)
            for name, units in _scales(self.graph, group):
                scales = weights[name].double().abs().numpy()
                sums += np.bincount(units[units >= 0], scales[units >= 0], group.channels)
                counts += np.bincount(units[units >= 0], minlength=group.channels)
            return np.asarray(sums / counts.clip(min=1))
        total, size = np.zeros(group.channels), np.zeros(group.channels)
        for layer in scored:
            rows = outputs_first(layer, weights[layer.weight]).double().abs().flatten(1).sum(1).numpy()
            total += by_unit(group, layer, rows)
            size += by_unit(group, layer, np.full(len(rows), layer.size / len(rows)))
        return np.asarray(total / size)

    def counts(self) -> list[int]:
        """Return how many channels each group keeps.

        They are the most, taken in one order over all groups, that execute no more weights than the mask keeps.
        """
        indices, ranks, keys = [], [], []
        for index, group in enumerate(self.groups):
            indices.append(np.full(group.channels, index))
            ranks.append(np.arange(group.channels))
            last = np.arange(1, group.channels + 1) / group.channels  # the share with which a channel comes in
            keys.append(last if self._filters.scope == "layer" else -group.scores[group.best_first])
        order = np.lexsort((np.concatenate(ranks), np.concatenate(keys)))
        group_of = np.concatenate(indices)[order]

        def first(count: int) -> list[int]:
            taken = np.bincount(group_of[:count], minlength=len(self.groups))
            return [group.rounded(int(number)) for group, number in zip(self.groups, taken, strict=True)]

        low, high = 0, len(order)  # `low` is not above the target, but for a channel of each group that stays anyway
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.executed(first(middle)) <= self.target else (low, middle - 1)
        return first(low)


def _scales(graph: ChannelGraph, group: ChannelGroup) -> list[tuple[str, Numbers]]:
    """Return the scales of the BatchNorm layers behind a group's writers, with the unit of each element.

    They are those next to the writers; where there are none, all on the same channels.

    Raises:
        ValueError: if there is none.
    """
    units: dict[int, int] = {}
    ids = []
    for name in group.writers:
        part, rows = graph.rows[name], group.rows[name]
        units |= {int(unit): int(row) for unit, row in zip(graph.unit_of(part), rows, strict=True) if row >= 0}
        ids.append(part.ids[torch.from_numpy(rows >= 0)])
    near = [names[0] for names, given in graph.record.normalised if bool(torch.isin(given, torch.cat(ids)).any())]
    every = [(names[0], graph.record.parts[names[0], 0]) for names, _ in graph.record.normalised]
    found = [
        (name, np.array([units.get(int(unit), -1) for unit in graph.unit_of(part)]))
        for name, part in dict(every).items()
        if name in near or not near
    ]
    if not (scales := [(name, of) for name, of in found if (of >= 0).any()]):
        raise ValueError(f"score='scale': no BatchNorm scales the channels of {', '.join(group.writers)}")
    return scales
