"""Pruning to an exact number of weights, the lowest scores first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lt_lightning.pruning.masks import Masks, kept

Scope = Literal["global", "layer"]


def density_after(rounds: int, rate: float) -> float:
    """Share of the weights left after that many rounds, each of which prunes the share `rate` of the rest.

    >>> round(density_after(2, 0.2), 6)
    0.64
    """
    return float((1 - rate) ** rounds)


def prune(masks: Masks, scores: Mapping[str, Tensor], density: float, scope: Scope = "global") -> Masks:
    """Prunes the kept weights with the lowest scores until the share `density` of all weights is left.

    The number kept is `round(density x size)`, exact to one weight, over all masks together (`global`) or in each
    of them (`layer`, at least one weight each). Among equal scores the one that comes last (in the order
    of the names given, then of the flattened index) is kept. A mask that is already sparser stays as it is.

    Args:
        masks: current masks by parameter name.
        scores: of the same shapes; only those of kept weights are looked at.
        density: wanted, in (0, 1].
        scope: `global` compares scores over all masks, `layer` within each.

    Raises:
        ValueError: if the density is out of range, would leave no weight, or a kept weight's score is not a number.

    >>> w = {"w": torch.tensor([3.0, -1.0, 2.0, 0.5])}
    >>> prune({"w": torch.ones(4, dtype=torch.bool)}, {"w": w["w"].abs()}, 0.5)["w"]
    tensor([ True, False,  True, False])
    """
    if not 0 < density <= 1:
        raise ValueError(f"a density of {density} is not in (0, 1]")
    for name in masks:
        if bool((scores[name].isnan() & masks[name]).any()):
            raise ValueError(f"the scores of {name} are not all numbers: did the training diverge?")
    if scope == "layer":
        return {
            name: _prune_together({name: mask}, scores, max(1, round(density * mask.numel())))[name]
            for name, mask in masks.items()
        }
    total = sum(mask.numel() for mask in masks.values())
    keep = round(density * total)
    if keep < 1:
        raise ValueError(f"a density of {density} leaves none of {total} weights: prune fewer rounds or less a round")
    return _prune_together(masks, scores, keep)


def _prune_together(masks: Masks, scores: Mapping[str, Tensor], keep: int) -> Masks:
    drop = kept(masks) - keep
    if drop <= 0:
        return {name: mask.clone() for name, mask in masks.items()}
    survivors = torch.cat([scores[name][mask].flatten() for name, mask in masks.items()])
    # kthvalue, not quantile: it is exact and has no limit on the number of scores.
    threshold = survivors.kthvalue(drop).values
    ties = drop - int((survivors < threshold).sum())
    stays = survivors > threshold
    stays[(survivors == threshold).nonzero().flatten()[ties:]] = True
    pruned: Masks = {}
    start = 0
    for name, mask in masks.items():
        count = int(mask.count_nonzero())
        pruned[name] = mask.clone()
        pruned[name][mask] = stays[start : start + count]
        start += count
    return pruned
