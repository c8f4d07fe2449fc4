"""The choice of whole channels: which may be dropped, what a choice executes, and its masks and plan."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup, Liveness
from lt_lightning.network_graph.liveness import Flags
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import Masks, count_kept
from lt_lightning.structures.base import LayerReport, StructureInput, StructureResult, in_pieces, masked
from lt_lightning.structures.plan import ChannelPlan

WeightScore = Literal["l1", "l2", "count", "saliency"]
Coupling = Literal["stream", "inner", "independent"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankedGroup:
    """Channels that are chosen together, ranked.

    Attributes:
        writers: layers whose outputs the channels are.
        scores: score of every channel.
        best_first: channels in the order of their scores, best first.
        ranks: place of every channel in that order.
        density: share of the scored layers' weights that their masks keep.
        step: number of which kept counts are multiples.
    """

    writers: tuple[str, ...]
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

    Attributes:
        groups: the groups that channels are dropped from.

    Raises:
        ValueError: if no channel may be dropped.
    """

    def __init__(self, given: StructureInput, coupling: Coupling, round_to: int) -> None:
        self.given = given
        self.graph = given.graph
        self._coupling = coupling
        self._round_to = round_to
        self._executed: dict[tuple[int, ...], int] = {}
        self.groups = self._ranked(droppable(self.graph, coupling))
        if not self.groups:
            raise ValueError("no channel may be dropped: what could be is written by layers that are not pruned")

    @abstractmethod
    def rank(self, writers: Sequence[str], scored: Sequence[Layer]) -> Floats:
        """Return a score for every channel of a group.

        Args:
            writers: layers whose outputs the channels are.
            scored: the prunable ones of them, and the depthwise layers that follow.
        """

    def result(self, counts: Sequence[int]) -> StructureResult:
        """Return masks, reports and plan that keep so many channels of each group, the best ones."""
        liveness = self._liveness(np.array(counts))
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
            if self._coupling == "independent":
                ranked += [self._group((name,), [name, *self._followers(name, group.followers)]) for name in writers]
            else:
                ranked.append(self._group(group.writers, [*writers, *self._followers(writers[0], group.followers)]))
        return ranked

    def _group(self, writers: tuple[str, ...], scored: list[str]) -> RankedGroup:
        masks = [self.given.masks[self.given.layers[name].weight] for name in scored]
        scores = self.rank(writers, [self.given.layers[name] for name in scored])
        wide_enough = len(scores) >= 4 * self._round_to
        step = self._round_to if wide_enough else min(self._round_to, max(1, len(scores) // 8))
        density = sum(count_kept(mask) for mask in masks) / sum(mask.numel() for mask in masks)
        best_first = np.argsort(-scores, kind="stable")
        return RankedGroup(writers, scores, best_first, np.argsort(best_first), density, step)

    def _followers(self, writer: str, followers: tuple[str, ...]) -> list[str]:
        return [name for name in followers if self._is_prunable(name) and self._same_channels(writer, name)]

    def _same_channels(self, writer: str, follower: str) -> bool:
        return self.given.layers[writer].shape[0] == self.given.layers[follower].shape[0]

    def _is_prunable(self, name: str) -> bool:
        return name in self.given.layers and self.given.layers[name].weight in self.given.masks

    # What a choice executes

    def executed(self, counts: Sequence[int]) -> int:
        """Return how many prunable weights the smaller network executes with so many channels of each group."""
        return self.executed_by_each([counts])[0]

    def executed_by_each(self, choices: Sequence[Sequence[int]]) -> list[int]:
        """Return the same for several choices; all that are new are followed through the network together."""
        keys = [tuple(counts) for counts in choices]
        if new := list(dict.fromkeys(key for key in keys if key not in self._executed)):
            liveness = self._liveness(np.array(new))
            total = sum((executed_weights(layer, liveness) for layer in self.given.prunable), np.zeros(len(new), int))
            self._executed |= zip(new, total.tolist(), strict=True)
        return [self._executed[key] for key in keys]

    def _liveness(self, counts: NDArray[np.int64]) -> Liveness:
        """Follow the best channels through the network, so many of each group: (..., groups)."""
        keep: dict[str, Flags] = {}
        for index, group in enumerate(self.groups):
            keep.update(dict.fromkeys(group.writers, group.ranks < counts[..., index, None]))
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
        sides = [liveness.outputs[layer.name], *([liveness.inputs[layer.name]] if layer.groups == 1 else [])]
        weight, mask = self.given.weights[layer.weight], self.given.masks[layer.weight]
        for side, flags in enumerate(sides):
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
            layer.name: channel_scores(weights[layer.weight], masks[layer.weight], "l1").numpy()
            for layer in self.given.prunable
        }


# Functions of one layer, and of the channels that are live


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
    groups = [group for group in graph.groups if not (group.frozen or (coupling == "inner" and group.joined))]
    if not groups:
        reasons = sorted({group.frozen for group in graph.groups if group.frozen})
        raise ValueError(f"coupling={coupling!r}: no channel may be dropped: {'; '.join(reasons)}")
    return groups


def executed_weights(layer: Layer, liveness: Liveness) -> NDArray[np.int64]:
    """Count the weights of a layer that take part when only live channels are computed, for each alternative."""
    if layer.name not in liveness.outputs:
        return np.asarray(layer.size)
    outputs, inputs = liveness.outputs[layer.name], liveness.inputs[layer.name]
    kernel = math.prod(layer.shape[2:])
    if layer.groups == 1:
        return np.asarray(np.count_nonzero(outputs, axis=-1) * np.count_nonzero(inputs, axis=-1) * kernel)
    if layer.groups == inputs.shape[-1]:
        return np.asarray(np.count_nonzero(outputs, axis=-1) * kernel)
    return np.asarray(layer.size)


def channel_masks(given: StructureInput, liveness: Liveness) -> Masks:
    """Return masks that keep live channels whole, of prunable weights and of parameters that lose a channel."""
    masks = {name: torch.ones_like(mask) for name, mask in given.masks.items()}
    parameters = dict(given.network.named_parameters())
    for name, outputs in liveness.outputs.items():
        keep = torch.from_numpy(outputs)
        layer = given.layers.get(name)
        prefix = f"{name}." if name else ""
        if layer is not None and not (keep.all() and liveness.inputs[name].all()):
            masks[layer.weight] = _weight_mask(layer, keep, torch.from_numpy(liveness.inputs[name]))
        affine = ["bias"] if layer is not None else ["weight", "bias"]
        if not keep.all():
            masks.update({f"{prefix}{part}": keep.clone() for part in affine if f"{prefix}{part}" in parameters})
    return masks


def _weight_mask(layer: Layer, outputs: Tensor, inputs: Tensor) -> Tensor:
    columns = math.prod(layer.shape[1:])
    row = inputs.repeat_interleave(columns // len(inputs)) if layer.groups == 1 else torch.ones(columns).bool()
    mask = torch.zeros(layer.shape[0], columns, dtype=torch.bool)
    mask[outputs] = row
    return mask.view(layer.shape)


def channel_plan(liveness: Liveness) -> ChannelPlan:
    """Return the plan that computes live channels alone."""

    def indices(flags: Mapping[str, Flags]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.flatnonzero(keep)) for name, keep in flags.items() if not keep.all()}

    return ChannelPlan(indices(liveness.outputs), indices(liveness.inputs))
