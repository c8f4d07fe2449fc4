"""Pruning of the lowest scores, to an exact number of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_lightning.pruning.masks import Masks, kept, size

Scope = Literal["global", "layer", "erk"]


def prune(
    masks: Masks,
    scores: Mapping[str, Tensor],
    density: float,
    scope: Scope = "global",
) -> Masks:
    """Prune the kept weights with the lowest scores until the share `density` of all weights is left.

    The number kept is `round(density x size)`, exact to one weight, over all masks together or (`layer`) in each
    of them, at least one weight each. Among equal scores the one that comes last (in the order
    of the names given, then of the flattened index) is kept. A mask that is already sparser stays as it is.

    Args:
        masks: current masks by parameter name, on the CPU.
        scores: scores of the same shapes, by parameter name, on the CPU; those of pruned weights are ignored.
        density: share of the weights to keep, in (0, 1].
        scope: where scores are compared: `global` over all masks, the others within each, where `layer` keeps the same
            share of each mask, and `erk` the shares of `erk_counts`.

    Raises:
        ValueError: if the density is out of range, would leave no weight, or a kept weight's score is not a number.

    >>> w = {"w": torch.tensor([3.0, -1.0, 2.0, 0.5])}
    >>> prune({"w": torch.ones(4, dtype=torch.bool)}, {"w": w["w"].abs()}, 0.5)["w"]
    tensor([ True, False,  True, False])
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density}: must be in (0, 1]")
    if scope == "layer":
        return prune_each(masks, scores, {name: max(1, round(density * masks[name].numel())) for name in masks})
    keep = round(density * size(masks))
    if keep < 1:
        raise ValueError(f"density={density}: leaves none of {size(masks)} weights, prune fewer rounds or less in each")
    if scope == "erk":
        return prune_each(masks, scores, erk_counts(masks, keep))
    return _prune_together(masks, scores, keep)


def prune_each(masks: Masks, scores: Mapping[str, Tensor], keep: Mapping[str, int]) -> Masks:
    """Prune the lowest scores of each mask until it keeps as many weights as `keep` says; see `prune`.

    Raises:
        ValueError: if a kept weight's score is not a number.
    """
    return {name: _prune_together({name: mask}, scores, keep[name])[name] for name, mask in masks.items()}


def erk_counts(masks: Masks, keep: int) -> dict[str, int]:
    """Return how many weights each mask keeps so that densities follow Erdős-Rényi-Kernel, `keep` in all.

    A weight of shape (outputs, inputs, *kernel) is as dense as the sum of these numbers over their product, times a
    factor that all have in common (Evci et al. 2020, section 3). One that would keep more than it has keeps all, and
    the others share the rest. What whole numbers leave over goes to the largest fractions.

    >>> masks = {"a": torch.ones(2, 2, dtype=torch.bool), "b": torch.ones(8, 8, dtype=torch.bool)}
    >>> erk_counts(masks, 10), erk_counts(masks, 34)
    ({'a': 2, 'b': 8}, {'a': 4, 'b': 30})
    """
    most = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    keep = min(keep, sum(most.values()))
    counts = {name: float(sum(mask.shape)) for name, mask in masks.items()}
    whole: set[str] = set()
    while rest := counts.keys() - whole:
        factor = (keep - sum(most[name] for name in whole)) / sum(sum(masks[name].shape) for name in rest)
        counts |= {name: factor * sum(masks[name].shape) for name in rest}
        over = {name for name in rest if counts[name] > most[name]}
        if not over:
            break
        whole |= over
        counts |= {name: float(most[name]) for name in over}
    floors = {name: min(math.floor(count), most[name]) for name, count in counts.items()}
    by_fraction = sorted((name for name in masks if floors[name] < most[name]), key=lambda n: floors[n] - counts[n])
    for name in by_fraction[: keep - sum(floors.values())]:
        floors[name] += 1
    return floors


def _prune_together(masks: Masks, scores: Mapping[str, Tensor], keep: int) -> Masks:
    drop = kept(masks) - keep
    if drop <= 0:
        return {name: mask.clone() for name, mask in masks.items()}
    before = {name: mask.numpy() for name, mask in masks.items()}
    arrays = {name: _array(scores[name]) for name in masks}
    survivors = np.concatenate([arrays[name][mask] for name, mask in before.items()])
    if np.isnan(survivors).any():
        name = next(name for name, mask in before.items() if np.isnan(arrays[name][mask]).any())
        raise ValueError(f"the scores of {name} are not all numbers: did the training diverge?")
    survivors.partition(drop - 1)
    threshold = survivors[drop - 1]
    after = {name: mask & (arrays[name] > threshold) for name, mask in before.items()}
    ties = keep - sum(int(np.count_nonzero(mask)) for mask in after.values())
    for name, mask in reversed(before.items()):
        if not ties:
            break
        last = np.flatnonzero(mask & (arrays[name] == threshold))[-ties:]
        after[name].flat[last] = True
        ties -= len(last)
    return {name: torch.from_numpy(mask) for name, mask in after.items()}


def _array(scores: Tensor) -> NDArray[Any]:
    """Return the scores as an array in the order of the flattened index; bfloat16, which NumPy lacks, as float32."""
    scores = scores.detach().contiguous()
    return (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()
