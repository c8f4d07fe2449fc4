"""Criteria: a score per weight; the lowest scores are pruned first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.selection import Scope

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What a criterion may need besides weights and masks. Nothing is computed before it is asked for.

    Attributes:
        source: the network; it is never changed.
        state: the values that are scored: parameters and buffers by name.
        example: an input batch of the true shape.
        batches: gives that many training batches (inputs, targets), the same at every call, on the network's device.
        density: that is pruned to.
        scope: in which scores are compared.
    """

    source: nn.Module
    state: Mapping[str, Tensor]
    example: Tensor
    batches: Callable[[int], Sequence[Batch]]
    density: float
    scope: Scope

    def network(self) -> nn.Module:
        """A copy with the values that are scored, the caller's own; its BatchNorm looks at this process alone."""
        network = copy.deepcopy(self.source)
        network.load_state_dict(self.state)
        network.zero_grad()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = _LocalBatchNorm
        return network


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""


class Criterion(Protocol):
    """Scores every weight that has a mask. Pure: nothing given is changed.

    A criterion whose scores make sense only if layers get the densities that follow from them has an attribute
    `chooses_layer_densities` that is true.
    """

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        """Scores by parameter name, each of its mask's shape, on the CPU; those of pruned weights do not matter.

        Args:
            weights: by parameter name, on the CPU.
            masks: that are pruned further.
            context: see there.
        """


@dataclass(frozen=True)
class Magnitude:
    """The absolute value of the weight (Han et al. 2015; the paper's criterion)."""

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        return {name: weights[name].abs() for name in masks}


@dataclass(frozen=True)
class Random:
    """Uniformly random scores: the control for every other criterion.

    Attributes:
        seed: equal seeds, equal scores, whatever the weights.
    """

    seed: int = 0

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        # float64: among so many numbers hardly any two are equal.
        return {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}
