"""Criteria: a score per weight; the lowest scores are pruned first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lt_lightning.pruning.masks import Masks


class Criterion(Protocol):
    """Scores every weight that has a mask. Pure: nothing given is changed."""

    @property
    def needs_gradients(self) -> bool:
        """Whether `gradients` must be there."""

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, gradients: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Scores by parameter name, each of its mask's shape; those of pruned weights do not matter."""


@dataclass(frozen=True)
class Magnitude:
    """The absolute value of the trained weight (Han et al. 2015; the paper's criterion)."""

    needs_gradients: bool = False

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, gradients: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        return {name: weights[name].abs() for name in masks}
