"""Whole filters by their own strength: structured pruning, whose rounds inside IMP are the paper's rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import kept
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.channel_choice import ChannelChoice, Coupling, Floats, droppable

Score = Literal["l1", "scale"]
Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Filters:
    """Keeps the strongest channels whole, judged by all of their weights; no unstructured mask has a say in which.

    Of the round's mask only the number of weights counts: the channels that stay are as many as execute no more than
    that. So `pruning.next_round_from=filters` is structured iterative pruning: each round drops the share
    `pruning.rate` of the weights that are executed, in whole filters, and the next goes on from what is left.
    `Refill` differs in that unstructured pruning decides how many channels each layer keeps, and which weights count.

    Channels are dropped exactly, as `Refill` does: with bias, BatchNorm and the weights of their readers.

    Attributes:
        score: of a channel: the mean magnitude of the weights of its filters (`l1`; Li et al. 2017,
            arXiv 1608.08710), or that of the scales of the BatchNorm behind it (`scale`; Liu et al. 2017,
            arXiv 1708.06519, without their penalty in training).
        scope: `layer` keeps the same share of every layer's channels, `global` compares scores over all layers.
        coupling: which channels go together; see `Refill`.
        round_to: see `Refill`; with 1, rounds are as even as they can be.
    """

    score: Score = "l1"
    scope: Scope = "layer"
    coupling: Coupling = "stream"
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"round_to={self.round_to}: must be at least 1")
        for key, allowed in (("score", Score), ("scope", Scope), ("coupling", Coupling)):
            if (value := getattr(self, key)) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"{key}={value!r}: must be one of {choices}")

    @property
    def needs_gradients(self) -> bool:
        """False: channels are chosen by magnitude."""
        return False

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Traces the network and looks for channels that may be dropped, and for what they are scored by.

        Raises:
            ValueError: if the network cannot be traced, or has none.
        """
        graph = ChannelGraph(network, example)
        groups = droppable(graph, self.coupling)
        if self.score == "scale":
            for group in groups:
                units = [(name,) for name in group.writers] if self.coupling == "independent" else [group.writers]
                for writers in units:
                    _norms_behind(graph, writers)

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structures one round's mask.

        Raises:
            ValueError: if the network cannot be traced, or has no channel that may be dropped.
        """
        choice = _FilterChoice(self, given)
        return choice.structured(choice.counts())


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
        """The most channels, taken in one order over all units, that execute no more weights than the mask keeps."""
        target = kept(self.given.masks)
        units, ranks, keys = [], [], []
        for index, unit in enumerate(self.units):
            units.append(np.full(unit.channels, index))
            ranks.append(np.arange(unit.channels))
            last = np.arange(1, unit.channels + 1) / unit.channels  # the share with which a channel comes in
            keys.append(last if self._filters.scope == "layer" else -unit.scores[unit.order])
        order = np.lexsort((np.concatenate(ranks), np.concatenate(keys)))
        unit_of = np.concatenate(units)[order]

        def first(count: int) -> list[int]:
            taken = np.bincount(unit_of[:count], minlength=len(self.units))
            return [unit.rounded(int(number)) for unit, number in zip(self.units, taken, strict=True)]

        low, high = 0, len(order)  # `low` is not above the target, but for a channel of each unit that stays anyway
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.executed(first(middle)) <= target else (low, middle - 1)
        return first(low)


def _norms_behind(graph: ChannelGraph, writers: Sequence[str]) -> list[str]:
    """BatchNorm layers that scale what these layers write: next to them, or else anywhere on the same channels.

    Raises:
        ValueError: if there is none.
    """
    operations = graph.operations
    mine = [index for index, operation in enumerate(operations) if operation.name in writers]
    norms = [index for index, operation in enumerate(operations) if operation.kind == "norm"]
    near = [index for index in norms if operations[index].inputs[0] in mine]
    spaces = {space for index in mine for space, _ in graph.layout(index)}
    far = [index for index in norms if {space for space, _ in graph.layout(index)} == spaces]
    if not (found := near or far):
        raise ValueError(f"score='scale': no BatchNorm scales the channels of {', '.join(writers)}")
    return list(dict.fromkeys(operations[index].name for index in found))
