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
    """What a criterion may need besides weights and masks. Nothing is computed before a criterion looks at it.

    Attributes:
        source: network to score; it is never changed.
        state: values that are scored: parameters and buffers by name.
        example: input batch of the true shape.
        batches: function that gives so many training batches (inputs, targets), the same at every call, on the device
            of the network.
        density: share of the weights that is kept.
        scope: where scores are compared.
    """

    source: nn.Module
    state: Mapping[str, Tensor]
    example: Tensor
    batches: Callable[[int], Sequence[Batch]]
    density: float
    scope: Scope

    def network(self) -> nn.Module:
        """Return a new copy with the values that are scored; its BatchNorm looks at this process alone."""
        network = copy.deepcopy(self.source)
        network.load_state_dict(self.state)
        network.zero_grad()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = _LocalBatchNorm
        return network


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""


class Criterion(Protocol):
    """Scores every weight that has a mask. Pure: nothing given is changed.

    A class of one's own inherits from this one and has at least `__call__`.
    """

    @property
    def chooses_layer_densities(self) -> bool:
        """Whether the scores make sense only if layers get the densities that follow from them."""
        return False

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        """Return scores by parameter name, each of its mask's shape, on the CPU; those of pruned weights are ignored.

        Args:
            weights: weights by parameter name, on the CPU.
            masks: masks to prune further.
            context: network, batches and density, for criteria that look at them.
        """


@dataclass(frozen=True)
class Magnitude(Criterion):
    """The absolute value of the weight (Han et al. 2015; the paper's criterion)."""

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        return {name: weights[name].abs() for name in masks}


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores: the control for every other criterion.

    Attributes:
        seed: seed of the scores, which do not depend on the weights.
    """

    seed: int = 0

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        # float64: among so many numbers hardly any two are equal.
        return {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}
