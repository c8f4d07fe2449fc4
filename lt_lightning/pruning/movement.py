"""Movement pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.sparsifier import Aim, State, check_updates, cubic, moments


@dataclass(frozen=True)
class Movement:
    """Keeps the weights that move away from zero (Sanh et al. 2020, section 3, hard movement pruning).

    The score of a weight is the sum of -w g over the steps, g being the loss's gradient by the weight as it is in the
    masked network: the straight-through estimate of the gradient of its score. The masks keep the highest scores, of a
    density that falls along a cubic from the beginning's to the one asked for. A pruned weight is zero in the network,
    its value is remembered and its score still counts, so that it may come back, with that value and no momentum.

    Attributes:
        updates: of the masks, evenly spaced from `begin` to `end`, and as often after it; the paper updates them in
            every step.
        begin: share of the training before it begins to prune, in [0, 1); scores count from the first step on.
        end: share of it at which the density is reached, in (0, 1].

    Raises:
        ValueError: if an argument is out of range.
    """

    updates: int = 100
    begin: float = 0.0
    end: float = 0.75

    def __post_init__(self) -> None:
        check_updates(self.updates, self.begin, self.end)

    def prepare(self, weights: Mapping[str, Tensor], aim: Aim) -> State:
        return {kind: {name: torch.zeros_like(w) for name, w in weights.items()} for kind in ("scores", "pruned")}

    def before_step(self, weights: Mapping[str, Tensor], state: State) -> None:
        for name, weight in weights.items():
            if weight.grad is not None:
                state["scores"][name].addcmul_(weight + state["pruned"][name], weight.grad, value=-1)

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        progress = moments(aim.steps, self.updates, self.begin, self.end).get(step)
        if progress is None:
            return masks
        pruned = state["pruned"]
        for name, weight in weights.items():  # one of the two is zero everywhere
            weight.add_(pruned[name])
        masks = aim.select(state["scores"], cubic(progress, density(aim.masks), aim.density))
        for name, weight in weights.items():
            mask = masks[name].to(weight.device)
            pruned[name] = torch.where(mask, 0, weight)
            weight.mul_(mask)
        return masks

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        return aim.select(state["scores"])
