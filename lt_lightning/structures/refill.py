"""Refill: keep the strongest channels of each layer whole, drop the others whole (paper, section 3.2, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import Masks, count_kept, kept
from lt_lightning.structures.base import ChannelPlan, LayerReport, Structured, Subject, in_blocks, masked
from lt_lightning.structures.features import Norm, feature_norms
from lt_lightning.structures.graph import ChannelGraph, ChannelGroup, Liveness
from lt_lightning.structures.liveness import Flags

WeightScore = Literal["l1", "l2", "count", "saliency"]
FeatureScore = Literal["feature_l1", "feature_l2"]
Score = Literal[WeightScore, FeatureScore]
Coupling = Literal["stream", "inner", "independent"]
Match = Literal["executed", "filters"]
Floats = NDArray[np.float64]

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
            raise ValueError(f"structure.refill.extra={self.extra} is not a share in [0, 1]")
        if self.round_to < 1:
            raise ValueError(f"structure.refill.round_to={self.round_to} is not a positive number of channels")
        if self.batches < 1:
            raise ValueError(f"structure.refill.batches={self.batches} is not a positive number of batches")
        for key, allowed in (("score", Score), ("coupling", Coupling), ("match", Match)):
            if (value := getattr(self, key)) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"structure.refill.{key}={value!r} is not one of {choices}")

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

    def __call__(self, subject: Subject) -> Structured:
        """Structures one round's mask.

        Raises:
            ValueError: if the network cannot be traced, has no channel that may be dropped, or gradients or batches are
                missing.
        """
        choice = Choice(self, subject)
        return choice.structured(choice.counts())


@dataclass(frozen=True)
class Unit:
    """Channels chosen together."""

    writers: tuple[str, ...]
    scores: Floats  # by channel
    order: NDArray[np.int64]  # channels, best first
    places: NDArray[np.int64]  # of every channel in that order
    density: float  # of its writers' masks
    step: int  # counts are multiples of it

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.order)

    def rounded(self, count: float) -> int:
        """The next permitted number of channels that is not below `count`."""
        steps = math.ceil(count / self.step - 1e-9)  # 0.55 * 100 is a little above 55
        return min(self.channels, max(1, steps) * self.step)


class Choice:
    """One call of `Refill`: the units, and what a number of kept channels for each of them executes."""

    def __init__(self, options: Refill, subject: Subject) -> None:
        self.options = options
        self.subject = subject
        self.graph = subject.graph
        self.units = self._find_units(droppable(self.graph, options.coupling))
        self._executed: dict[tuple[int, ...], int] = {}
        if not self.units:
            raise ValueError("no channel may be dropped: what could be is written by layers that are not pruned")

    def _find_units(self, groups: list[ChannelGroup]) -> list[Unit]:
        units = []
        for group in groups:
            writers = [name for name in group.writers if self._is_prunable(name)]
            if not writers:
                continue
            if self.options.coupling == "independent":
                units += [self._unit((name,), [name, *self._followers(name, group.followers)]) for name in writers]
            else:
                units.append(self._unit(group.writers, [*writers, *self._followers(writers[0], group.followers)]))
        return units

    def _unit(self, writers: tuple[str, ...], scored: list[str]) -> Unit:
        masks = [self.subject.masks[self.subject.layers[name].weight] for name in scored]
        scores = self.rank(writers, [self.subject.layers[name] for name in scored])
        wide_enough = len(scores) >= 4 * self.options.round_to
        step = self.options.round_to if wide_enough else min(self.options.round_to, max(1, len(scores) // 8))
        density = sum(count_kept(mask) for mask in masks) / sum(mask.numel() for mask in masks)
        order = np.argsort(-scores, kind="stable")
        return Unit(writers, scores, order, np.argsort(order), density, step)

    def rank(self, writers: Sequence[str], scored: Sequence[Layer]) -> Floats:
        """A score per channel of a unit.

        Args:
            writers: of its channels.
            scored: the prunable ones of them, and the depthwise layers that follow.
        """
        scores: Floats = np.sum([self._scores(layer) for layer in scored], axis=0)
        return scores

    def _followers(self, writer: str, followers: tuple[str, ...]) -> list[str]:
        return [name for name in followers if self._is_prunable(name) and self._same_channels(writer, name)]

    def _same_channels(self, writer: str, follower: str) -> bool:
        return self.subject.layers[writer].shape[0] == self.subject.layers[follower].shape[0]

    def _is_prunable(self, name: str) -> bool:
        return name in self.subject.layers and self.subject.layers[name].weight in self.subject.masks

    def _scores(self, layer: Layer) -> Floats:
        """A score per output channel of the layer."""
        score = self.options.score
        if score == "feature_l1" or score == "feature_l2":
            return self._feature_norms[layer.name]
        if score == "l1":
            return self._magnitudes[layer.name]
        mask = self.subject.masks[layer.weight]
        gradients = self.subject.gradients
        if self.options.needs_gradients and gradients is None:
            raise ValueError("structure.refill.score='saliency' needs gradients, and none were given")
        gradient = gradients[layer.weight] if gradients is not None else None
        scores: Floats = channel_scores(self.subject.weights[layer.weight], mask, score, gradient).numpy()
        return scores

    @cached_property
    def _magnitudes(self) -> dict[str, Floats]:
        weights, masks = self.subject.weights, self.subject.masks
        return {
            layer.name: channel_scores(weights[layer.weight], masks[layer.weight], "l1").numpy()
            for layer in self.subject.prunable
        }

    @cached_property
    def _feature_norms(self) -> dict[str, Floats]:
        norm: Norm = "l1" if self.options.score == "feature_l1" else "l2"
        return feature_norms(self.subject, norm, self.options.batches)

    # How many channels

    def counts(self) -> list[int]:
        """Kept channels per unit."""
        if self.options.match == "filters":
            counts = [unit.rounded(unit.density * unit.channels) for unit in self.units]
        else:
            counts = self._counts_for(kept(self.subject.masks))
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
            executed = self._executed_by_each([self._scaled(factor) for factor in factors[1:-1]])
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
            executed = self._executed_by_each(tried)
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

    def executed(self, counts: Sequence[int]) -> int:
        """Prunable weights that the smaller network executes."""
        return self._executed_by_each([counts])[0]

    def _executed_by_each(self, tried: Sequence[Sequence[int]]) -> list[int]:
        """Of several counts, all that are new followed through the network together."""
        keys = [tuple(counts) for counts in tried]
        if new := list(dict.fromkeys(key for key in keys if key not in self._executed)):
            liveness = self._liveness(np.array(new))
            total = sum((executed_weights(layer, liveness) for layer in self.subject.prunable), np.zeros(len(new), int))
            self._executed |= zip(new, total.tolist(), strict=True)
        return [self._executed[key] for key in keys]

    def _liveness(self, counts: NDArray[np.int64]) -> Liveness:
        """Of counts by unit, (..., units)."""
        keep: dict[str, Flags] = {}
        for index, unit in enumerate(self.units):
            keep.update(dict.fromkeys(unit.writers, unit.places < counts[..., index, None]))
        return self.graph.propagate(keep)

    # The result

    def structured(self, counts: Sequence[int]) -> Structured:
        """Masks, reports and plan for these counts."""
        liveness = self._liveness(np.array(counts))
        masks = channel_masks(self.subject, liveness)
        return Structured(masks, {n: self._report(layer, masks, liveness) for n, layer in self.subject.layers.items()},
                          channel_plan(liveness))  # fmt: skip

    def _report(self, layer: Layer, masks: Masks, liveness: Liveness) -> LayerReport:
        before = self.subject.masks.get(layer.weight)
        after = masks.get(layer.weight)
        executed = int(executed_weights(layer, liveness))
        kept = layer.size if after is None else count_kept(after)
        return LayerReport(
            size=layer.size,
            asked=layer.size if before is None else count_kept(before),
            kept=kept,
            executed=executed,
            positions=layer.positions,
            form="channels" if executed < layer.size else "dense",
            held=1.0 if before is None or kept == layer.size else self._held(layer, liveness),
            note=self._note(layer) if before is not None and executed == layer.size else "",
        )

    def _held(self, layer: Layer, liveness: Liveness) -> float:
        """Share of a layer's surviving magnitude that is in the channels that are computed."""
        total = float(self._magnitudes[layer.name].sum())
        sides = [liveness.outputs[layer.name], *([liveness.inputs[layer.name]] if layer.groups == 1 else [])]
        weight, mask = self.subject.weights[layer.weight], self.subject.masks[layer.weight]
        for side, flags in enumerate(sides):
            indices = torch.from_numpy(np.flatnonzero(flags))
            weight, mask = weight.index_select(side, indices), mask.index_select(side, indices)
        held = float(channel_scores(weight, mask, "l1").sum())
        return min(1.0, held / total) if total else 1.0  # rounding: the sums are in different orders

    @cached_property
    def _frozen(self) -> dict[str, str]:
        return {name: group.frozen for group in self.graph.groups for name in group.writers}

    def _note(self, layer: Layer) -> str:
        return self._frozen.get(layer.name) or "all of its channels were kept"


def droppable(graph: ChannelGraph, coupling: Coupling) -> list[ChannelGroup]:
    """The groups of channels that this coupling may drop from."""
    groups = [group for group in graph.groups if not (group.frozen or (coupling == "inner" and group.joined))]
    if not groups:
        reasons = sorted({group.frozen for group in graph.groups if group.frozen})
        raise ValueError(
            f"structure.refill.coupling={coupling!r} finds no channel that may be dropped: {'; '.join(reasons)}"
        )
    return groups


def channel_scores(weight: Tensor, mask: Tensor, score: WeightScore, gradient: Tensor | None = None) -> Tensor:
    """A score per output channel, over its surviving weights (paper, section 3.2 and its ablation).

    Args:
        weight: (outputs, ...).
        mask: of the same shape.
        score: which.
        gradient: of the loss by the weight; for `saliency`.

    Returns:
        float64, (outputs,).

    >>> channel_scores(torch.tensor([[3.0, -4.0], [1.0, 9.0]]), torch.tensor([[True, True], [True, False]]), "l1")
    tensor([7., 1.], dtype=torch.float64)
    """
    given = (weight, mask) if gradient is None else (weight, mask, gradient)
    return torch.cat([_block_scores(score, *block) for block in in_blocks(*given)])


def _block_scores(score: WeightScore, weight: Tensor, mask: Tensor, gradient: Tensor | None = None) -> Tensor:
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


def executed_weights(layer: Layer, liveness: Liveness) -> NDArray[np.int64]:
    """Weights of a layer that take part when only live channels are computed: a number for each alternative."""
    if layer.name not in liveness.outputs:
        return np.asarray(layer.size)
    outputs, inputs = liveness.outputs[layer.name], liveness.inputs[layer.name]
    kernel = math.prod(layer.shape[2:])
    if layer.groups == 1:
        return np.asarray(np.count_nonzero(outputs, axis=-1) * np.count_nonzero(inputs, axis=-1) * kernel)
    if layer.groups == inputs.shape[-1]:
        return np.asarray(np.count_nonzero(outputs, axis=-1) * kernel)
    return np.asarray(layer.size)


def channel_masks(subject: Subject, liveness: Liveness) -> Masks:
    """Masks that keep live channels whole, for every parameter that loses any, and for every prunable weight."""
    masks = {name: torch.ones_like(mask) for name, mask in subject.masks.items()}
    parameters = dict(subject.network.named_parameters())
    for name, outputs in liveness.outputs.items():
        keep = torch.from_numpy(outputs)
        layer = subject.layers.get(name)
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
    """The plan that computes live channels alone."""

    def indices(flags: Mapping[str, Flags]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.flatnonzero(keep)) for name, keep in flags.items() if not keep.all()}

    return ChannelPlan(indices(liveness.outputs), indices(liveness.inputs))
