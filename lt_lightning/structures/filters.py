"""Filters: keep the strongest filters whole, by all of their weights; structured pruning, the rival of Refill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import kept
from lt_lightning.structures.base import Structure, StructureInput, StructureResult
from lt_lightning.structures.channel_choice import ChannelChoice, Coupling, Floats, droppable

Score = Literal["l1", "scale"]
Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Filters(Structure):
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

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Trace the network and look for channels that may be dropped, and for what they are scored by.

        Raises:
            ValueError: if the network cannot be traced, or has none.
        """
        graph = ChannelGraph(network, example)
        groups = droppable(graph, self.coupling)
        if self.score == "scale":
            for group in groups:
                apart = self.coupling == "independent"
                for writers in [(name,) for name in group.writers] if apart else [group.writers]:
                    _norms_behind(graph, writers)

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask.

        Raises:
            ValueError: if the network cannot be traced, or has no channel that may be dropped.
        """
        choice = _FilterChoice(self, given)
        return choice.result(choice.counts())


class _FilterChoice(ChannelChoice):
    """One call of `Filters`."""

    def __init__(self, filters: Filters, given: StructureInput) -> None:
        self._filters = filters
        super().__init__(given, filters.coupling, filters.round_to)

    def rank(self, writers: Sequence[str], scored: Sequence[Layer]) -> Floats:
        weights = self.given.weights
        if self._filters.score == "scale":
            norms = _norms_behind(self.graph, writers)
            scales: Floats = np.mean([weights[f"{name}.weight"].double().abs().numpy() for name in norms], axis=0)
            return scales
        sums = [weights[layer.weight].double().abs().flatten(1).sum(1).numpy() for layer in scored]
        mean: Floats = np.sum(sums, axis=0) / sum(layer.size // layer.shape[0] for layer in scored)
        return mean

    def counts(self) -> list[int]:
        """Return how many channels each group keeps.

        They are the most, taken in one order over all groups, that execute no more weights than the mask keeps.
        """
        target = kept(self.given.masks)
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
            low, high = (middle, high) if self.executed(first(middle)) <= target else (low, middle - 1)
        return first(low)


def _norms_behind(graph: ChannelGraph, writers: Sequence[str]) -> list[str]:
    """Return the BatchNorm layers that scale what these layers write: next to them, or anywhere on the same channels.

    Raises:
        ValueError: if there is none.
    """
    operations = graph.operations
    own = [index for index, operation in enumerate(operations) if operation.name in writers]
    norms = [index for index, operation in enumerate(operations) if operation.kind == "norm"]
    near = [index for index in norms if operations[index].inputs[0] in own]
    groups = {group for index in own for group, _ in graph.layout(index)}
    far = [index for index in norms if {group for group, _ in graph.layout(index)} == groups]
    if not (near or far):
        raise ValueError(f"score='scale': no BatchNorm scales the channels of {', '.join(writers)}")
    return list(dict.fromkeys(operations[index].name for index in near or far))
