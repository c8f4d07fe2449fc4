"""Sparsifiers: masks that form within a training of their own, not from scores at the end of another.

There are gradual magnitude pruning (AGP), movement pruning, and the alternating direction method of multipliers (ADMM).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.selection import Scope, prune

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Aim:
    """What a sparsifier's training is to end with.

    Attributes:
        masks: masks of what may be kept at all, on the CPU.
        density: share of the weights that is kept at the end.
        scope: where scores are compared; see `prune`.
        steps: number of optimizer steps of the training.
    """

    masks: Masks
    density: float
    scope: Scope
    steps: int

    def select(
        self,
        scores: Mapping[str, Tensor],
        density: float | None = None,
        within: Masks | None = None,
    ) -> Masks:
        """Select the highest scores, on the CPU, so that every process selects the same.

        Args:
            scores: scores by parameter name, on any device.
            density: share of the weights to keep; that of the aim if it is None.
            within: masks to prune further; those of the aim if it is None.

        Raises:
            ValueError: see `prune`.
        """
        masks = self.masks if within is None else within
        keep = self.density if density is None else density
        return prune(masks, {name: value.detach().cpu() for name, value in scores.items()}, keep, self.scope)


class Sparsifier(Protocol):
    """Makes masks within a training. Immutable: what changes is in the state, tensors by kind and parameter name.

    `weights` are always the parameters that the masks are for, on their device; they may be changed in place.
    """

    def prepare(self, weights: Mapping[str, Tensor], aim: Aim) -> State:
        """Return the state before the first step; the weights outside the aim's masks are zero."""

    def before_step(self, weights: Mapping[str, Tensor], state: State) -> None:
        """Read the gradients, or add to them, between backward and the optimizer.

        They are those of the loss, of all processes together, and dense: pruned weights have theirs, too.
        """

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        """Return the masks to enforce after so many steps, or the same object if nothing changes."""

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        """Return the masks after the last step, of exactly the density of the aim."""


class Sparsification:
    """A sparsifier at work on a network.

    Args:
        sparsifier: sparsifier that makes the masks.
        network: network whose parameters are made sparse.
        aim: masks and density to end with.

    Attributes:
        masks: masks to enforce now.
    """

    def __init__(self, sparsifier: Sparsifier, network: nn.Module, aim: Aim) -> None:
        self.masks = aim.masks
        self._sparsifier = sparsifier
        self._aim = aim
        self._weights = {name: network.get_parameter(name) for name in aim.masks}
        self._steps = 0
        self._stepping = False
        with torch.no_grad():
            self._state = sparsifier.prepare(self._weights, aim)

    @torch.no_grad()
    def before_step(self) -> None:
        """Run the sparsifier between backward and the optimizer, before gradients of pruned weights are zeroed."""
        self._stepping = True
        self._sparsifier.before_step(self._weights, self._state)

    @torch.no_grad()
    def after_step(self) -> bool:
        """Count the optimizer's step, if the batch had one, and return whether there are other masks to enforce."""
        if not self._stepping:
            return False
        self._stepping = False
        self._steps += 1
        before = self.masks
        self.masks = self._sparsifier.after_step(self._steps, self._weights, before, self._state, self._aim)
        return self.masks is not before

    @torch.no_grad()
    def finish(self) -> Masks:
        """Return the masks at the end."""
        return self._sparsifier.finish(self._weights, self.masks, self._state, self._aim)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and builtins only."""
        return {"aim": dict(vars(self._aim)), "masks": self.masks, "steps": self._steps, "state": self._state}

    @classmethod
    def resumed(cls, sparsifier: Sparsifier, network: nn.Module, state: dict[str, Any]) -> Sparsification:
        """Go on where `state_dict` was taken, on the device of the network."""
        work = cls(sparsifier, network, Aim(**state["aim"]))
        work.masks, work._steps = state["masks"], state["steps"]
        work._state = {
            kind: {name: value.to(work._weights[name].device) for name, value in values.items()}
            for kind, values in state["state"].items()
        }
        return work


@cache
def moments(steps: int, updates: int, begin: float = 0.0, end: float = 1.0) -> Mapping[int, float]:
    """Return when masks are updated: numbers of optimizer steps, and progress from `begin` to `end` in (0, 1].

    The updates are evenly spaced, and the last of them is at `end`. They go on after it at progress 1.
    Where there are fewer steps than updates, one stands for several.

    Args:
        steps: number of steps of the training.
        updates: number of updates between `begin` and `end`.
        begin: share of the training before the first spacing.
        end: share of the training at the last update.

    >>> dict(moments(steps=10, updates=2, begin=0.2, end=0.6))
    {4: 0.5, 6: 1.0, 8: 1.0, 10: 1.0}
    """
    first, spacing = begin * steps, (end - begin) * steps / updates
    count = int((steps - first) / spacing + 1e-9)
    return {max(1, round(first + i * spacing)): min(1.0, i / updates) for i in range(1, count + 1)}


def cubic(progress: float, start: float, end: float) -> float:
    """Return a density between two that falls fast at first (Zhu & Gupta 2017, equation 1, written for density).

    >>> [round(cubic(p, 1.0, 0.2), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.5375, 0.3, 0.2]
    """
    return end + (start - end) * (1 - progress) ** 3


def check_updates(updates: int, begin: float = 0.0, end: float = 1.0) -> None:
    """Refuse arguments of `moments` that are out of range.

    Raises:
        ValueError: naming the argument.
    """
    if updates < 1:
        raise ValueError(f"updates={updates}: must be at least 1")
    if not 0 <= begin < end <= 1:
        raise ValueError(f"begin={begin}, end={end}: must be shares of the training with 0 <= begin < end <= 1")


# Gradual magnitude pruning (AGP)


@dataclass(frozen=True)
class Gradual(Sparsifier):
    """Prunes the smallest weights little by little while the network trains (Zhu & Gupta 2017).

    Sparsity rises along their cubic, from that of the masks at the beginning to that of the aim. What is pruned is
    zero and stays so.

    Attributes:
        updates: number of prunings, evenly spaced from `begin` to `end`.
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
        """Leave the gradients alone."""

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        progress = moments(aim.steps, self.updates, self.begin, self.end).get(step)
        if progress is None:
            return masks
        return _pruned(weights, masks, cubic(progress, density(aim.masks), aim.density), aim)

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        return _pruned(weights, masks, aim.density, aim)


def _pruned(weights: Mapping[str, Tensor], masks: Masks, density: float, aim: Aim) -> Masks:
    return aim.select({name: weights[name].abs() for name in masks}, density, within=masks)


# Movement pruning


@dataclass(frozen=True)
class Movement(Sparsifier):
    """Keeps the weights that move away from zero (Sanh et al. 2020, section 3, hard movement pruning).

    The score of a weight is the sum of -w g over the steps, g being the loss's gradient by the weight as it is in the
    masked network: the straight-through estimate of the gradient of its score. The masks keep the highest scores, of a
    density that falls along a cubic from the beginning's to that of the aim. A pruned weight is zero in the network,
    its value is remembered and its score still counts, so that it may come back, with that value and no momentum.

    Attributes:
        updates: number of updates of the masks, evenly spaced from `begin` to `end`; they go on after it, at the
            same spacing. The paper updates them in every step.
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


# The alternating direction method of multipliers (ADMM)


@dataclass(frozen=True)
class ADMM(Sparsifier):
    """Draws the weights towards a network of the density, then prunes the smallest (Zhang et al. 2018, section 3).

    The training minimises loss(W) + rho/2 ||W - Z + U||^2 by W, with the training's own optimizer. Now and then Z
    becomes W + U with all but its largest weights set to zero, and U grows by W - Z. At first U is zero, and Z is W
    with all but its largest weights set to zero. No weight is kept at zero meanwhile.

    Attributes:
        rho: strength of the pull, positive. The larger it is, the closer the weights come to Z, and the less they
            follow the loss.
        updates: number of updates of Z and U in the training, evenly spaced; in the papers they are some epochs apart.

    Raises:
        ValueError: if an argument is out of range.
    """

    rho: float = 0.01
    updates: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho={self.rho}: must be positive")
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
    """Return the nearest values of the density of the aim: the largest are kept."""
    masks = aim.select({name: value.abs() for name, value in values.items()})
    return {name: value * masks[name].to(value.device) for name, value in values.items()}
