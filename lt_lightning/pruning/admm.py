"""Pruning by the alternating direction method of multipliers (ADMM)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.sparsifier import Aim, State, check_updates, moments


@dataclass(frozen=True)
class ADMM:
    """Draws the weights towards a network of the density, then prunes the smallest (Zhang et al. 2018, section 3).

    The training minimises loss(W) + rho/2 ||W - Z + U||^2 by W, with the training's own optimizer. Now and then Z
    becomes W + U with all but its largest weights set to zero, and U grows by W - Z; at first Z is that of W, and
    U zero. No weight is held at zero meanwhile.

    Attributes:
        rho: strength of the pull, positive. The larger it is, the closer the weights come to Z, and the less they
            follow the loss.
        updates: of Z and U in the training, evenly spaced; the papers' are some epochs apart.

    Raises:
        ValueError: if an argument is out of range.
    """

    rho: float = 0.01
    updates: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"pruning.sparsifier.rho={self.rho}: must be positive")
        check_updates(self.updates)

    def prepare(self, weights: Mapping[str, Tensor], aim: Aim) -> State:
        return {
            "projection": _projected(weights, aim),
            "dual": {name: torch.zeros_like(weight) for name, weight in weights.items()},
        }

    def before_step(self, weights: Mapping[str, Tensor], state: State) -> None:
        for name, weight in weights.items():
            if weight.grad is not None:
                pull = weight - state["projection"][name] + state["dual"][name]
                weight.grad.add_(pull, alpha=self.rho)

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        if step in moments(aim.steps, self.updates):
            dual = state["dual"]
            state["projection"] = _projected({name: weights[name] + dual[name] for name in weights}, aim)
            for name, weight in weights.items():
                dual[name] += weight - state["projection"][name]
        return masks

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        return aim.select({name: weight.abs() for name, weight in weights.items()})


def _projected(values: Mapping[str, Tensor], aim: Aim) -> dict[str, Tensor]:
    """The nearest values of the density: the largest are kept."""
    masks = aim.select({name: value.abs() for name, value in values.items()})
    return {name: value * masks[name].to(value.device) for name, value in values.items()}
