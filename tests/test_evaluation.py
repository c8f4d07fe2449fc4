"""Networks are compared by the largest difference of what they compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lt_lightning.pruning.evaluation import largest_difference, relative_difference


def test_largest_difference() -> None:
    first, second = (nn.Linear(2, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0]]))
        second.weight.copy_(torch.tensor([[1.0, 1.25]]))
    assert largest_difference(first, second, torch.ones(1, 2)) == pytest.approx(0.125)
    assert largest_difference(first, first, torch.ones(1, 2)) == 0
    assert first.training


def test_what_cannot_be_compared_differs_without_limit() -> None:
    one = torch.tensor([1.0, -4.0])
    assert relative_difference(torch.tensor([1.0, -3.0]), one) == 0.25
    assert relative_difference(torch.tensor([1.0, float("nan")]), one) == float("inf")
    assert relative_difference(one[:1], one) == float("inf")
