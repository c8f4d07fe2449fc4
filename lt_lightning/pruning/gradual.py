"""Gradual magnitude pruning (AGP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.sparsifier import Aim, State, check_updates, cubic, moments


@dataclass(frozen=True)
class Gradual:
    """Prunes the smallest weights little by little while the network trains (Zhu & Gupta 2017).

    Sparsity rises along their cubic, from that of the masks at the beginning to the one asked for. What is pruned is
    zero and stays so.

    Attributes:
        updates: prunings, evenly spaced from `begin` to `end`.
        begin: share of the training before it begins to prune, in [0, 1).
        end: share of it after which it prunes no more, in (0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """

    updates: int = 100
    begin: float = 0.0
    end: float = 0.75

    def __post_init__(self) -> None:
        check_updates(self.updates, self.begin, self.end)

    def prepare(self, weights: Mapping[str, Tensor], aim: Aim) -> State:
        return {}

    def before_step(self, weights: Mapping[str, Tensor], state: State) -> None:
        """Looks at no gradients."""

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        progress = moments(aim.steps, self.updates, self.begin, self.end).get(step)
        if progress is None:
            return masks
        return _pruned(weights, masks, cubic(progress, density(aim.masks), aim.density), aim)

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        return _pruned(weights, masks, aim.density, aim)


def _pruned(weights: Mapping[str, Tensor], masks: Masks, density: float, aim: Aim) -> Masks:
    return aim.select({name: weights[name].abs() for name in masks}, density, within=masks)
