"""The choice of whole channels: which may be dropped, what a choice executes, and its masks and plan."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup, Flags, Liveness, Numbers
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import Masks, count_kept
from lt_lightning.structures.base import LayerReport, Structure, StructureInput, StructureResult, in_pieces, masked
from lt_lightning.structures.plan import ChannelPlan

WeightScore = Literal["l1", "l2", "count", "saliency"]
Coupling = Literal["stream", "inner", "independent"]
Cost = Literal["weights", "flops"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankedGroup:
    """Channels that are chosen together, ranked.

    Attributes:
        rows: unit of every output of the layers that write the channels, by name, as `ChannelGroup` has it.
        scores: score of every channel.
        best_first: channels in the order of their scores, best first.
        ranks: place of every channel in that order.
        density: share of the scored layers' weights that their masks keep.
        step: number of which kept counts are multiples.
    """

    rows: Mapping[str, Numbers]
    scores: Floats
    best_first: NDArray[np.int64]
    ranks: NDArray[np.int64]
    density: float
    step: int

    @cached_property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.scores)

    def rounded(self, count: float) -> int:
        """Return the next permitted number of channels that is not below `count`."""
        steps = math.ceil(count / self.step - 1e-9)  # 0.55 * 100 is a little above 55
        return min(self.channels, max(1, steps) * self.step)


class ChannelChoice(ABC):
    """One call of a structure that keeps whole channels; a subclass says which channels are best.

    Args:
        given: network and mask to structure.
        coupling: which channels are chosen together; see `Refill`.
        round_to: number of which kept counts are multiples; see `Refill`.
        cost: what a choice is counted in: prunable weights, or the multiply-adds of one sample that are made with them.

    Attributes:
        groups: the groups that channels are dropped from.
        target: what the round's masks keep, in that cost.

    Raises:
        ValueError: if no channel may be dropped.
    """

    def __init__(self, given: StructureInput, coupling: Coupling, round_to: int, cost: Cost = "weights") -> None:
        self.given = given
        self.graph = given.graph
        self._coupling = coupling
        self._round_to = round_to
        self._prices = prices(given, cost)
        self.target = sum(price * count_kept(given.masks[layer.weight]) for layer, price in self._prices)
        self._executed: dict[tuple[int, ...], int] = {}
        self.groups = self._ranked(droppable(self.graph, coupling))
        if not self.groups:
            raise ValueError("no channel may be dropped: what could be is written by layers that are not pruned")

    @abstractmethod
    def rank(self, group: ChannelGroup, scored: Sequence[Layer]) -> Floats:
        """Return a score for every channel of a group.

        Args:
            group: the group, or that of one of its writers.
            scored: its prunable writers, and the depthwise layers that follow.
        """

    @abstractmethod
    def counts(self) -> list[int]:
        """Return how many channels each group keeps."""

    def result(self, counts: Sequence[int]) -> StructureResult:
        """Return masks, reports and plan that keep so many channels of each group, the best ones."""
        liveness = self.liveness(np.array(counts))
        masks = channel_masks(self.given, liveness)
        reports = {name: self._report(layer, masks, liveness) for name, layer in self.given.layers.items()}
        return StructureResult(masks, reports, channel_plan(liveness))

    # What may be chosen

    def _ranked(self, groups: list[ChannelGroup]) -> list[RankedGroup]:
        ranked = []
        for group in groups:
            writers = [name for name in group.writers if self._is_prunable(name)]
            if not writers:
                continue
            if self._coupling == "independent" and group.joined:
                ranked += [self._group(replace(group, writers=(name,)), name) for name in writers]
            else:
                ranked.append(self._group(group, *writers))
        return ranked

    def _group(self, group: ChannelGroup, *writers: str) -> RankedGroup:
        scored = [*writers, *(name for name in group.followers if self._is_prunable(name))]
        masks = [self.given.masks[self.given.layers[name].weight] for name in scored]
        scores = self.rank(group, [self.given.layers[name] for name in scored])
        wide_enough = len(scores) >= 4 * self._round_to
        step = self._round_to if wide_enough else min(self._round_to, max(1, len(scores) // 8))
        density = sum(count_kept(mask) for mask in masks) / sum(mask.numel() for mask in masks)
        best_first = np.argsort(-scores, kind="stable")
        rows = {name: group.rows[name] for name in group.writers}
        return RankedGroup(rows, scores, best_first, np.argsort(best_first), density, step)

    def _is_prunable(self, name: str) -> bool:
        return name in self.given.layers and self.given.layers[name].weight in self.given.masks

    # What a choice executes

    def executed(self, counts: Sequence[int]) -> int:
        """Return what the smaller network executes, in the cost, with so many channels of each group."""
        return self.executed_by_each([counts])[0]

    def executed_by_each(self, choices: Sequence[Sequence[int]]) -> list[int]:
        """Return the same for several choices; all that are new are followed through the network together."""
        keys = [tuple(counts) for counts in choices]
        if new := list(dict.fromkeys(key for key in keys if key not in self._executed)):
            liveness = self.liveness(np.array(new))
            parts = (price * executed_weights(layer, liveness) for layer, price in self._prices)
            total = sum(parts, np.zeros(len(new), int))
            self._executed |= zip(new, total.tolist(), strict=True)
        return [self._executed[key] for key in keys]

    def liveness(self, counts: NDArray[np.int64]) -> Liveness:
        """Follow the best channels through the network, so many of each group: (..., groups)."""
        keep: dict[str, Flags] = {}
        for index, group in enumerate(self.groups):
            kept = group.ranks < counts[..., index, None]
            for name, units in group.rows.items():
                flags = kept[..., units] | (units < 0)
                keep[name] = keep[name] & flags if name in keep else flags
        return self.graph.propagate(keep)

    # The report

    def _report(self, layer: Layer, masks: Masks, liveness: Liveness) -> LayerReport:
        before = self.given.masks.get(layer.weight)
        after = masks.get(layer.weight)
        executed = int(executed_weights(layer, liveness))
        kept = layer.size if after is None else count_kept(after)
        return LayerReport(
            size=layer.size,
            target=layer.size if before is None else count_kept(before),
            kept=kept,
            executed=executed,
            positions=layer.positions,
            form="channels" if executed < layer.size else "dense",
            retained_magnitude=1.0 if before is None or kept == layer.size else self._retained(layer, liveness),
            note=self._note(layer) if before is not None and executed == layer.size else "",
        )

    def _retained(self, layer: Layer, liveness: Liveness) -> float:
        """Return the share of a layer's surviving magnitude that is in the channels that are computed."""
        total = float(self.magnitudes[layer.name].sum())
        weight, mask = (outputs_first(layer, each[layer.weight]) for each in (self.given.weights, self.given.masks))
        inputs = liveness.inputs.get(layer.name) if layer.groups == 1 else None
        for side, flags in enumerate((liveness.outputs.get(layer.name), inputs)):
            if flags is None:
                continue
            indices = torch.from_numpy(np.flatnonzero(flags))
            weight, mask = weight.index_select(side, indices), mask.index_select(side, indices)
        retained = float(channel_scores(weight, mask, "l1").sum())
        return min(1.0, retained / total) if total else 1.0  # rounding: the sums are in different orders

    @cached_property
    def _frozen(self) -> dict[str, str]:
        return {name: group.frozen for group in self.graph.groups for name in group.writers}

    def _note(self, layer: Layer) -> str:
        return self._frozen.get(layer.name) or "all of its channels were kept"

    @cached_property
    def magnitudes(self) -> dict[str, Floats]:
        """The l1 norm of every channel's surviving weights, by layer."""
        weights, masks = self.given.weights, self.given.masks
        return {
            layer.name: channel_scores(
                outputs_first(layer, weights[layer.weight]), outputs_first(layer, masks[layer.weight]), "l1"
            ).numpy()
            for layer in self.given.prunable
        }


class ChannelStructure(Structure):
    """A structure that keeps whole channels: others may ask it which are best, and choose themselves how many."""

    def choose(self, given: StructureInput) -> ChannelChoice:
        """Rank the channels of a network.

        Raises:
            ValueError: if the network cannot be traced, or has no channel that may be dropped.
        """
        raise NotImplementedError

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask.

        Raises:
            ValueError: if the network cannot be traced, or has no channel that may be dropped.
        """
        choice = self.choose(given)
        return choice.result(choice.counts())


# Functions of one layer, and of the channels that are live


def outputs_first(layer: Layer, weight: Tensor) -> Tensor:
    """Return a layer's weight, or its mask, as (outputs, inputs, *kernel)."""
    return weight.movedim(layer.output_dim, 0).contiguous() if layer.output_dim else weight


def channel_scores(weight: Tensor, mask: Tensor, score: WeightScore, gradient: Tensor | None = None) -> Tensor:
    """Score every output channel by its surviving weights (paper, section 3.2 and its ablation).

    Args:
        weight: weight of a layer, (outputs, ...).
        mask: mask of the same shape.
        score: norm, number or saliency.
        gradient: gradient of the loss by the weight; needed for `saliency`.

    Returns:
        a score for every channel, float64, (outputs,).

    >>> channel_scores(torch.tensor([[3.0, -4.0], [1.0, 9.0]]), torch.tensor([[True, True], [True, False]]), "l1")
    tensor([7., 1.], dtype=torch.float64)
    """
    tensors = (weight, mask) if gradient is None else (weight, mask, gradient)
    return torch.cat([_scores(score, *piece) for piece in in_pieces(*tensors)])


def _scores(score: WeightScore, weight: Tensor, mask: Tensor, gradient: Tensor | None = None) -> Tensor:
    surviving = masked(weight, mask).flatten(1).double()
    match score:
        case "l1":
            return surviving.abs_().sum(1)
        case "l2":
            return surviving.square_().sum(1).sqrt()
        case "count":
            return mask.flatten(1).sum(1).double()
        case "saliency":
            assert gradient is not None
            return (surviving * gradient.double().flatten(1)).sum(1).abs()


def droppable(graph: ChannelGraph, coupling: Coupling) -> list[ChannelGroup]:
    """Return the groups of channels that this coupling may drop from.

    Raises:
        ValueError: if there is none.
    """
    groups = [
        group
        for group in graph.groups
        if group.channels > 1 and not group.frozen and not (coupling == "inner" and group.joined)
    ]
    if not groups:
        reasons = sorted({group.frozen for group in graph.groups if group.frozen})
        raise ValueError(f"coupling={coupling!r}: no channel may be dropped: {'; '.join(reasons)}")
    return groups


def by_unit(group: ChannelGroup, layer: Layer, scores: Floats) -> Floats:
    """Add up scores of a layer's outputs, (outputs,), over the channels of each unit."""
    units = group.rows[layer.name]
    total: Floats = np.bincount(units[units >= 0], weights=scores[units >= 0], minlength=group.channels).astype(float)
    return total


def prices(given: StructureInput, cost: Cost) -> list[tuple[Layer, int]]:
    """Return the prunable layers, each with what one of its weights costs.

    As a weight each counts once, however many layers share it; as multiply-adds as often as it is used in a sample.
    """
    if cost == "flops":
        return [(layer, layer.positions) for layer in given.prunable]
    return [(layer, 1) for layer in given.prunable if not layer.tied_to]


def executed_weights(layer: Layer, liveness: Liveness) -> NDArray[np.int64]:
    """Count the weights of a layer that take part when only live channels are computed, for each alternative."""
    count = np.asarray(layer.size)
    # A group's outputs go with its inputs.
    inputs = liveness.inputs.get(layer.name) if layer.groups == 1 else None
    for flags in (liveness.computed.get(layer.name), inputs):
        if flags is not None:
            count = count * np.count_nonzero(flags, axis=-1) // flags.shape[-1]
    return count


def channel_masks(given: StructureInput, liveness: Liveness) -> Masks:
    """Return masks that keep live channels whole, of prunable weights and of parameters that lose a channel."""
    whole = {name: torch.ones_like(mask) for name, mask in given.masks.items()}
    return whole | liveness.masks(given.network)


def channel_plan(liveness: Liveness) -> ChannelPlan:
    """Return the plan that computes live channels alone."""

    def indices(flags: Mapping[str, Flags]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.flatnonzero(keep)) for name, keep in flags.items() if not keep.all()}

    return ChannelPlan(indices(liveness.outputs), indices(liveness.inputs))
