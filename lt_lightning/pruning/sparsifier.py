"""Sparsifiers: masks that come to be within a training of their own, not from scores at the end of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.selection import Scope, prune

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Aim:
    """What a sparsifier's training is to end with.

    Attributes:
        masks: what may be kept at all, on the CPU.
        density: to end at.
        scope: see `prune`.
        steps: optimizer steps that the training lasts.
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
        """The highest scores, on the CPU, so that every process selects the same.

        Args:
            scores: by parameter name, on any device.
            density: to keep; the one aimed at if it is None.
            within: masks that are pruned further; those of the aim if it is None.

        Raises:
            ValueError: see `prune`.
        """
        masks = self.masks if within is None else within
        wanted = self.density if density is None else density
        return prune(masks, {name: value.detach().cpu() for name, value in scores.items()}, wanted, self.scope)


class Sparsifier(Protocol):
    """Makes masks within a training. Immutable: what changes is in the state, tensors by kind and parameter name.

    `weights` are always the parameters that the masks are for, on their device; they may be changed in place.
    """

    def prepare(self, weights: Mapping[str, Tensor], aim: Aim) -> State:
        """The state before the first step; the weights outside the aim's masks are zero."""

    def before_step(self, weights: Mapping[str, Tensor], state: State) -> None:
        """Between backward and the optimizer: may read the gradients and add to them.

        They are those of the loss, of all processes together, and dense: pruned weights have theirs, too.
        """

    def after_step(self, step: int, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        """After that many steps: the masks to hold from now on, or those given if nothing changes."""

    def finish(self, weights: Mapping[str, Tensor], masks: Masks, state: State, aim: Aim) -> Masks:
        """After the last step: the masks that were aimed at, of their density exactly."""


class Sparsification:
    """A sparsifier at work on a network.

    Args:
        sparsifier: at work.
        network: whose parameters it works on.
        aim: of the work.

    Attributes:
        masks: that are to be held now.
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
        """Between backward and the optimizer, before the gradients of pruned weights are set to zero."""
        self._stepping = True
        self._sparsifier.before_step(self._weights, self._state)

    @torch.no_grad()
    def after_step(self) -> bool:
        """After every batch: counts the optimizer's step, if there was one; whether there are other masks to hold."""
        if not self._stepping:
            return False
        self._stepping = False
        self._steps += 1
        before = self.masks
        self.masks = self._sparsifier.after_step(self._steps, self._weights, before, self._state, self._aim)
        return self.masks is not before

    @torch.no_grad()
    def finish(self) -> Masks:
        """The masks that were aimed at."""
        return self._sparsifier.finish(self._weights, self.masks, self._state, self._aim)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only."""
        return {"aim": dict(vars(self._aim)), "masks": self.masks, "steps": self._steps, "state": self._state}

    @classmethod
    def resumed(cls, sparsifier: Sparsifier, network: nn.Module, state: dict[str, Any]) -> Sparsification:
        """Goes on where `state_dict` was taken, on the device of the network."""
        work = cls(sparsifier, network, Aim(**state["aim"]))
        work.masks, work._steps = state["masks"], state["steps"]
        work._state = {
            kind: {name: value.to(work._weights[name].device) for name, value in values.items()}
            for kind, values in state["state"].items()
        }
        return work


@cache
def moments(steps: int, updates: int, begin: float = 0.0, end: float = 1.0) -> Mapping[int, float]:
    """When masks are updated within a training: optimizer steps done, and progress from `begin` to `end` in (0, 1].

    The updates are evenly spaced; the last of them is at `end`, and as often they go on after it, at progress 1.
    Where there are fewer steps than updates, one stands for several.

    Args:
        steps: of the training.
        updates: between `begin` and `end`.
        begin: share of the training before the first spacing.
        end: share of the training at the last update.

    >>> dict(moments(steps=10, updates=2, begin=0.2, end=0.6))
    {4: 0.5, 6: 1.0, 8: 1.0, 10: 1.0}
    """
    first, spacing = begin * steps, (end - begin) * steps / updates
    count = int((steps - first) / spacing + 1e-9)
    return {max(1, round(first + i * spacing)): min(1.0, i / updates) for i in range(1, count + 1)}


def cubic(progress: float, start: float, end: float) -> float:
    """Density between two, falling fast at first (Zhu & Gupta 2017, equation 1, written for density).

    >>> [round(cubic(p, 1.0, 0.2), 4) for p in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.5375, 0.3, 0.2]
    """
    return end + (start - end) * (1 - progress) ** 3


def check_updates(updates: int, begin: float = 0.0, end: float = 1.0) -> None:
    """Refuses what `moments` makes nothing of.

    Raises:
        ValueError: naming the option.
    """
    if updates < 1:
        raise ValueError(f"pruning.sparsifier.updates={updates}: must be at least 1")
    if not 0 <= begin < end <= 1:
        raise ValueError(
            f"pruning.sparsifier.begin={begin}, end={end}: must be shares of the training with 0 <= begin < end <= 1"
        )
