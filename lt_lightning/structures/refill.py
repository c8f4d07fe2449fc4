"""Refill: keep the strongest channels of each layer whole, drop the others whole (paper, section 3.2, algorithm 2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lt_lightning.evaluation import evaluating
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import kept
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.channel_choice import (
    ChannelChoice,
    Coupling,
    Floats,
    Unit,
    WeightScore,
    channel_scores,
    droppable,
)

Norm = Literal["l1", "l2"]


def feature_norms(given: StructureInput, norm: Norm, count: int) -> dict[str, Floats]:
    """The norm of every channel of what each prunable layer puts out, over some batches (paper, section 3.2, ablation).

    That is the layer's own output: with its bias, before BatchNorm and activation. The network is a copy with the
    subject's weights and buffers, the masks applied, in evaluation mode, and runs where the batches are.

    Args:
        subject: with `batches`; its `weights` must hold the buffers, too.
        norm: over images and positions: sum of magnitudes (`l1`), or root of the sum of squares (`l2`).
        count: of the batches that are asked for.

    Returns:
        float64, (outputs,), by layer name.

    Raises:
        ValueError: if batches, or values of the network, are missing.
    """
    if given.batches is None:
        raise ValueError(
            f"score='feature_{norm}': needs training batches, and none were given: pass `batches`, or "
            "score by l1, l2, count or saliency"
        )
    network = _masked(given)
    sums: dict[str, Tensor] = {}
    for layer in given.prunable:
        network.get_submodule(layer.name).register_forward_hook(_adding_up(sums, layer.name, norm))
    dtype = next(network.parameters()).dtype
    with evaluating(network):
        for images, _ in given.batches(count):
            network.to(images.device)(images.to(dtype) if images.is_floating_point() else images)
    return {name: (total if norm == "l1" else total.sqrt()).cpu().numpy() for name, total in sums.items()}


def _masked(given: StructureInput) -> nn.Module:
    """A copy of the network with the values that are looked at, and their type."""
    network: nn.Module = copy.deepcopy(given.network)
    if missing := sorted(network.state_dict().keys() - given.weights.keys()):
        raise ValueError(f"feature maps need every parameter and buffer of the network: {missing[0]} is not in weights")
    state = {name: given.weights[name].contiguous() for name in network.state_dict()}  # else it is rounded otherwise
    state |= {name: state[name] * mask for name, mask in given.masks.items()}
    network.load_state_dict(state, assign=True)
    return network


def _adding_up(sums: dict[str, Tensor], name: str, norm: Norm) -> Callable[[nn.Module, object, Tensor], None]:
    def add(module: nn.Module, _: object, output: Tensor) -> None:
        sizes = output.abs() if norm == "l1" else output.square()
        channels = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        others = [axis for axis in range(output.dim()) if axis != channels]
        total = sizes.sum(others, dtype=torch.float64)
        sums[name] = sums[name] + total if name in sums else total

    return add


# Refill: keep the strongest channels of each layer whole, drop the others whole (paper, section 3.2, algorithm 2).

FeatureScore = Literal["feature_l1", "feature_l2"]
Score = Literal[WeightScore, FeatureScore]
Match = Literal["executed", "filters"]

_MOST_PAIRED = 12


@dataclass(frozen=True)
class Refill:
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
        coupling: `stream` scores and keeps channels per coupled group, all writers of a residual stream together;
            `inner` drops only channels inside a block and keeps streams whole; `independent` (the paper's) lets every
            layer choose alone, and a stream's channel is dead only where no writer keeps it. Depthwise
            layers always follow the channels that they work on. At equal executed density `stream` was as accurate as
            `independent`, and at low density more accurate than `inner` (`results/coupling_fashion_mnist.json`); its
            networks are the fastest, since streams shrink too.
        match: `executed` keeps the share of channels, proportional to the square root of a group's density, with which
            the smaller network executes as many prunable weights as the round's mask keeps; `filters` (the
            paper's) keeps `ceil(density x channels)`, which executes about the square of the density.
        round_to: kept counts are rounded up to a multiple of it by refilling the next best; in groups with fewer than
            4 x `round_to` channels, to a multiple of an eighth of the channels.
        batches: of training data, on which feature maps are looked at with the trained weights under their masks, in
            evaluation mode (see `feature_norms`). A study's are whole batches of the first epoch, without augmentation.
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
        if self.round_to < 1:
            raise ValueError(f"round_to={self.round_to}: must be at least 1")
        if self.batches < 1:
            raise ValueError(f"batches={self.batches}: must be at least 1")
        for key, allowed in (("score", Score), ("coupling", Coupling), ("match", Match)):
            if (value := getattr(self, key)) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"{key}={value!r}: must be one of {choices}")

    @property
    def needs_gradients(self) -> bool:
        """Whether channels are scored by saliency."""
        return self.score == "saliency"

    @property
    def needs_batches(self) -> bool:
        """Whether channels are scored by their feature maps, for which `Subject.batches` must be there."""
        return self.score in get_args(FeatureScore)

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Traces the network and looks for channels that may be dropped.

        Raises:
            ValueError: if the network cannot be traced, or has none.
        """
        droppable(ChannelGraph(network, example), self.coupling)

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structures one round's mask.

        Raises:
            ValueError: if the network cannot be traced, has no channel that may be dropped, or gradients or batches are
                missing.
        """
        choice = _RefillChoice(self, given)
        return choice.structured(choice.counts())


class _RefillChoice(ChannelChoice):
    """One call of `Refill`."""

    def __init__(self, options: Refill, given: StructureInput) -> None:
        self.options = options
        super().__init__(given, options.coupling, options.round_to)

    # Which channels

    def rank(self, writers: Sequence[str], scored: Sequence[Layer]) -> Floats:
        scores: Floats = np.sum([self._scores(layer) for layer in scored], axis=0)
        return scores

    def _scores(self, layer: Layer) -> Floats:
        """A score per output channel of the layer."""
        score = self.options.score
        if score == "feature_l1" or score == "feature_l2":
            return self._feature_norms[layer.name]
        if score == "l1":
            return self.magnitudes[layer.name]
        mask = self.given.masks[layer.weight]
        gradients = self.given.gradients
        if self.options.needs_gradients and gradients is None:
            raise ValueError("score='saliency': needs gradients, and none were given")
        gradient = gradients[layer.weight] if gradients is not None else None
        scores: Floats = channel_scores(self.given.weights[layer.weight], mask, score, gradient).numpy()
        return scores

    @cached_property
    def _feature_norms(self) -> dict[str, Floats]:
        norm: Norm = "l1" if self.options.score == "feature_l1" else "l2"
        return feature_norms(self.given, norm, self.options.batches)

    # How many channels

    def counts(self) -> list[int]:
        if self.options.match == "filters":
            counts = [unit.rounded(unit.density * unit.channels) for unit in self.units]
        else:
            counts = self._counts_for(kept(self.given.masks))
        return [self._with_extra(unit, count) for unit, count in zip(self.units, counts, strict=True)]

    def _with_extra(self, unit: Unit, count: int) -> int:
        if self.options.extra == 0:
            return count
        return unit.rounded(count + self.options.extra * (unit.channels - count))

    def _counts_for(self, target: int) -> list[int]:
        """Counts proportional to the square root of the densities that execute as near to `target` as they can.

        A layer executes (kept outputs) x (kept inputs) weights, so the root of the density on either side.
        """
        low, high = 0.0, 1 / math.sqrt(max(min(unit.density for unit in self.units), 1e-12))
        for _ in range(10):
            factors = np.linspace(low, high, 9)
            executed = self.executed_by_each([self._scaled(factor) for factor in factors[1:-1]])
            within = sum(total <= target for total in executed)
            low, high = factors[within : within + 2]
        return self._filled_up(self._scaled(low), target)

    def _scaled(self, factor: float) -> list[int]:
        return [unit.rounded(factor * math.sqrt(unit.density) * unit.channels) for unit in self.units]

    def _filled_up(self, counts: list[int], target: int) -> list[int]:
        """Spends what rounding left of the target: units go up a step, in small networks one against another.

        No unit ends more than a step from its proportional count.
        """
        near = [
            {count, unit.rounded(count + 1), unit.rounded(max(1, count - unit.step))}
            for unit, count in zip(self.units, counts, strict=True)
        ]
        best = self.executed(counts)
        while best < target:
            tried = [moved for moved in self._moves(counts) if all(c in n for c, n in zip(moved, near, strict=True))]
            executed = self.executed_by_each(tried)
            better = [(total, moved) for total, moved in zip(executed, tried, strict=True) if best < total <= target]
            if not better:
                break
            best, counts = max(better, key=lambda pair: pair[0])
        return counts

    def _moves(self, counts: list[int]) -> list[list[int]]:
        """One unit up a step; or, where that is few enough to try, one up and another down."""
        ups = []
        for index, unit in enumerate(self.units):
            ups.append([*counts])
            ups[-1][index] = unit.rounded(counts[index] + 1)
        if len(self.units) > _MOST_PAIRED:
            return ups
        pairs = []
        for up in ups:
            for index, unit in enumerate(self.units):
                pairs.append([*up])
                pairs[-1][index] = unit.rounded(max(1, up[index] - unit.step))
        return ups + pairs
