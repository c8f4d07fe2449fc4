"""Refill: keep the strongest channels of each layer whole, drop the others whole (paper, section 3.2, algorithm 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lt_lightning.network_graph.graph import ChannelGroup
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.examples import copied
from lt_lightning.pruning.layers import CONVOLUTIONS, TRANSPOSED, Layer
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.channel_choice import (
    ChannelChoice,
    ChannelStructure,
    Cost,
    Coupling,
    Floats,
    RankedGroup,
    WeightScore,
    by_unit,
    channel_scores,
    droppable,
    outputs_first,
)

Norm = Literal["l1", "l2"]
FeatureScore = Literal["feature_l1", "feature_l2"]
Score = Literal[WeightScore, FeatureScore]
Match = Literal["executed", "flops", "filters"]

_MOST_PAIRED = 12
_MOST_NAMED = 5


@dataclass(frozen=True)
class Refill(ChannelStructure):
    """Keeps whole channels: as many as the round's mask has weights for, those that score best.

    A dropped channel is dropped with its bias, the BatchNorm affine behind it and the weights of its readers, so the
    masked network computes exactly what the smaller one does.

    Attributes:
        extra: share of the channels to be dropped that is kept nevertheless (the paper's Refill+), in [0, 1].
        score: of a channel (paper, section 3.2 and its ablation), over its surviving weights: their `l1` norm (the
            paper's choice), `l2` norm, number (`count`), or |sum of weight x gradient| (`saliency`), which is
            activation x gradient summed over the positions, since the layer is linear in its weights; or the norm of
            its feature map (`feature_l1`, `feature_l2`), which is the layer's output before BatchNorm, over `batches`.
            Channels that are chosen together have the sum of their scores.
        coupling: `stream` scores and keeps channels per group, all writers of a residual stream together;
            `inner` drops only channels inside a block and keeps streams whole; `independent` (the paper's) lets every
            layer choose alone, and a stream's channel is dead only where no writer keeps it. Depthwise
            layers always follow the channels that they work on. At equal executed density `stream` was as accurate as
            `independent`, and at low density more accurate than `inner` (`results/coupling_fashion_mnist.json`); its
            networks are the fastest, since streams shrink too.
        match: `executed` keeps the share of channels, proportional to the square root of a group's density, with which
            the smaller network executes as many prunable weights as the round's mask keeps; `flops` does the same for
            multiply-adds, those that are made with these weights; `filters` (the paper's) keeps
            `ceil(density x channels)`, which executes about the square of the density.
        round_to: kept counts are rounded up to a multiple of it by refilling the next best; in groups with fewer than
            4 x `round_to` channels, to a multiple of an eighth of the channels.
        batches: number of batches of training data on which feature maps are looked at, with the trained weights under
            their masks, in evaluation mode (see `feature_norms`). An experiment takes whole batches of the first epoch,
            without augmentation.

    Raises:
        ValueError: on construction, for a value out of range.
    """

    extra: float = 0.0
    score: Score = "l1"
    coupling: Coupling = "stream"
    match: Match = "executed"
    round_to: int = 16
    batches: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.extra <= 1:
            raise ValueError(f"extra={self.extra}: must be a share in [0, 1]")
        for name in ("round_to", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name, allowed in (("score", Score), ("coupling", Coupling), ("match", Match)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(allowed))}")

    @property
    def needs_gradients(self) -> bool:
        """Whether channels are scored by saliency."""
        return self.score == "saliency"

    @property
    def needs_batches(self) -> bool:
        """Whether channels are scored by their feature maps."""
        return self.score in get_args(FeatureScore)

    def check(self, traced: TracedNetwork) -> None:
        """Trace the network and look for channels that may be dropped.

        Raises:
            ValueError: if the network cannot be traced, or has none.
        """
        droppable(traced.graph, self.coupling)

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask.

        Raises:
            ValueError: if the network cannot be traced, has no channel that may be dropped, or gradients or batches are
                missing.
        """
        # 1. Find the groups of channels that go together, and rank each group's channels by the l1 norm of their
        #    surviving weights, or another score (section 3.2 and its ablation).
        choice = self.choose(given)
        # 2. Count the channels that each group keeps, by the density of its mask (section 3.2: k), and for Refill+ a
        #    share of the others besides (k+).
        counts = choice.counts()
        # 3. Refill the best channels completely, pruned weights with them, and drop the others completely; what then
        #    is zero, or what nobody reads, is dropped through the whole network (algorithm 2 stops at the layer).
        return choice.result(counts)

    def choose(self, given: StructureInput) -> ChannelChoice:
        return _RefillChoice(self, given)


class _RefillChoice(ChannelChoice):
    """One call of `Refill`."""

    def __init__(self, options: Refill, given: StructureInput) -> None:
        self.options = options
        cost: Cost = "flops" if options.match == "flops" else "weights"
        super().__init__(given, options.coupling, options.round_to, cost)

    # Which channels

    def rank(self, group: ChannelGroup, scored: Sequence[Layer]) -> Floats:
        scores: Floats = np.sum([by_unit(group, layer, self._scores(layer)) for layer in scored], axis=0)
        return scores

    def _scores(self, layer: Layer) -> Floats:
        """Return a score per output channel of the layer."""
        score = self.options.score
        if score == "feature_l1" or score == "feature_l2":
            return self._feature_norms[layer.name]
        if score == "l1":
            return self.magnitudes[layer.name]
        mask = outputs_first(layer, self.given.masks[layer.weight])
        gradients = self.given.gradients
        if self.options.needs_gradients and gradients is None:
            raise ValueError("score='saliency': needs gradients, and none were given")
        gradient = outputs_first(layer, gradients[layer.weight]) if gradients is not None else None
        weight = outputs_first(layer, self.given.weights[layer.weight])
        scores: Floats = channel_scores(weight, mask, score, gradient).numpy()
        return scores

    @cached_property
    def _feature_norms(self) -> dict[str, Floats]:
        norm: Norm = "l1" if self.options.score == "feature_l1" else "l2"
        return feature_norms(self.given, norm, self.options.batches)

    # How many channels

    def counts(self) -> list[int]:
        """Return how many channels each group keeps."""
        if self.options.match == "filters":
            counts = [group.rounded(group.density * group.channels) for group in self.groups]
        else:
            counts = self._counts_for(self.target)
        return [self._with_extra(group, count) for group, count in zip(self.groups, counts, strict=True)]

    def _with_extra(self, group: RankedGroup, count: int) -> int:
        if self.options.extra == 0:
            return count
        return group.rounded(count + self.options.extra * (group.channels - count))

    def _counts_for(self, target: int) -> list[int]:
        """Return counts proportional to the root of the density that execute at most, and nearly, the target.

        A layer executes (kept outputs) x (kept inputs) weights, so the root of the density on either side. No group
        keeps fewer than half of the paper's own count: where other layers must be kept whole, those that need not be
        would otherwise pay for them, down to a channel each.
        """
        if (least := self.executed(self._scaled(0.0))) > target:
            self._warn(least, target)
            return self._scaled(0.0)
        low, high = 0.0, 1 / math.sqrt(max(min(group.density for group in self.groups), 1e-12))
        for _ in range(10):
            factors = np.linspace(low, high, 9)
            executed = self.executed_by_each([self._scaled(factor) for factor in factors[1:-1]])
            within = sum(total <= target for total in executed)
            low, high = factors[within : within + 2]
        return self._filled_up(self._scaled(low), target)

    def _scaled(self, factor: float) -> list[int]:
        """Return counts of this multiple of the root of the density, but not below half of the density itself."""
        shares = [max(factor * math.sqrt(group.density), group.density / 2) for group in self.groups]
        return [group.rounded(share * group.channels) for group, share in zip(self.groups, shares, strict=True)]

    def _warn(self, executed: int, target: int) -> None:
        """Say that more is executed than the mask keeps, and which layers are the reason."""
        size = sum(price * layer.size for layer, price in self._prices)
        what = "multiply-adds of prunable layers" if self.options.match == "flops" else "prunable weights"
        whole = [f"{name} ({why})" for name, why in self._frozen.items() if why and self._is_prunable(name)]
        reason = f": kept whole are {', '.join(whole[:_MOST_NAMED])}" if whole else ""
        more = f" and {len(whole) - _MOST_NAMED} more" if len(whole) > _MOST_NAMED else ""
        warnings.warn(
            f"refill executes {executed / size:.1%} of the {what}, where the mask keeps {target / size:.1%}"
            f"{reason}{more}",
            stacklevel=2,
        )

    def _filled_up(self, counts: list[int], target: int) -> list[int]:
        """Spend what rounding left of the target: groups go up a step, in small networks one against another.

        No group ends more than a step from its proportional count.
        """
        near = [
            {count, group.rounded(count + 1), group.rounded(max(1, count - group.step))}
            for group, count in zip(self.groups, counts, strict=True)
        ]
        best = self.executed(counts)
        while best < target:
            choices = [moved for moved in self._moves(counts) if all(c in n for c, n in zip(moved, near, strict=True))]
            executed = self.executed_by_each(choices)
            better = [(total, moved) for total, moved in zip(executed, choices, strict=True) if best < total <= target]
            if not better:
                break
            best, counts = max(better, key=lambda pair: pair[0])
        return counts

    def _moves(self, counts: list[int]) -> list[list[int]]:
        """Return the choices with one group up a step; where groups are few, also with one up and another down."""
        ups = []
        for index, group in enumerate(self.groups):
            ups.append([*counts])
            ups[-1][index] = group.rounded(counts[index] + 1)
        if len(self.groups) > _MOST_PAIRED:
            return ups
        pairs = []
        for up in ups:
            for index, group in enumerate(self.groups):
                pairs.append([*up])
                pairs[-1][index] = group.rounded(max(1, up[index] - group.step))
        return ups + pairs


# The scores `feature_l1` and `feature_l2`


def feature_norms(given: StructureInput, norm: Norm, count: int) -> dict[str, Floats]:
    """Return the norm of every channel that each prunable layer puts out, over some batches (section 3.2, ablation).

    That is the layer's own output: with its bias, before BatchNorm and activation. The network is a copy with the
    given weights and buffers, the masks applied, in evaluation mode, and runs where the batches are.

    Args:
        given: network, mask and batches; the weights must hold the buffers, too.
        norm: norm over images and positions: sum of magnitudes (`l1`), or root of the sum of squares (`l2`).
        count: number of batches.

    Returns:
        norms of the channels, float64, (outputs,), by layer name.

    Raises:
        ValueError: if batches, or values of the network, are missing, or a layer has no output of its own.
    """
    if given.batches is None:
        raise ValueError(
            f"score='feature_{norm}': needs training batches, and none were given: pass `batches`, or score by l1, l2, "
            "count or saliency"
        )
    network = _masked_copy(given)
    sums: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    for layer in given.prunable:
        if layer.name not in modules or (layer.parameter and not layer.tied_to):
            raise ValueError(f"score='feature_{norm}': {layer.name} has no result of its own to look at")
        modules[layer.name].register_forward_hook(_adding_up(sums, layer.name, norm))
    dtype = next(network.parameters()).dtype
    with evaluating(network):
        for images, _ in given.batches(count):
            network.to(images.device)(images.to(dtype) if images.is_floating_point() else images)
    return {name: (total if norm == "l1" else total.sqrt()).cpu().numpy() for name, total in sums.items()}


def _masked_copy(given: StructureInput) -> nn.Module:
    """Copy the network with the given values, and their type, under the masks."""
    network = copied(given.network)
    if missing := sorted(network.state_dict().keys() - given.weights.keys()):
        raise ValueError(f"feature maps need every parameter and buffer of the network: {missing[0]} is not in weights")
    state = {name: given.weights[name].contiguous() for name in network.state_dict()}  # else it is rounded otherwise
    masks = {network.get_parameter(name): mask for name, mask in given.masks.items()}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # by every name of a tied weight
        if parameter in masks:
            state[name] = state[name] * masks[parameter]
    network.load_state_dict(state, assign=True)
    return network


def _adding_up(sums: dict[str, Tensor], name: str, norm: Norm) -> Callable[[nn.Module, object, Tensor], None]:
    def add(module: nn.Module, _: object, output: Tensor) -> None:
        sizes = output.abs() if norm == "l1" else output.square()
        channels = 1 if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) else output.dim() - 1
        others = [axis for axis in range(output.dim()) if axis != channels]
        total = sizes.sum(others, dtype=torch.float64)
        sums[name] = sums[name] + total if name in sums else total

    return add
