"""Operations and bytes of a step, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.training.roofline import Operator, measure_roofline, operators
from benchmarks.training.task import Setting, Task, synthetic
from lt_lightning.models.resnet import cifar_resnet


def test_a_step_of_a_convolution_counted_by_hand() -> None:
    """Forward, and two products as large in the backward pass; no gradient of the images."""
    conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    images = torch.randn(5, 2, 6, 6)
    found = [each for each in operators(lambda: conv(conv(images)[:, :2]).sum().backward()) if each.operations]
    assert [each.name for each in found] == ["aten.convolution"] * 2 + ["aten.convolution_backward"] * 2
    forward = 2 * 5 * 4 * 6 * 6 * 2 * 9
    assert [each.operations for each in found] == [forward, forward, 2 * forward, forward]
    assert found[0].bytes == 4 * (images.numel() + conv.weight.numel() + 5 * 4 * 6 * 6)


def test_views_move_nothing_and_updates_in_place_read_and_write() -> None:
    value = torch.ones(10)
    assert operators(lambda: value.view(2, 5).t()) == []
    (added,) = operators(lambda: value.add_(1))
    assert added.bytes == 80
    (relu,) = operators(lambda: F.relu(value))
    assert (relu.operations, relu.bytes) == (0, 80)


def test_the_slower_of_arithmetic_and_memory_counts() -> None:
    assert Operator("", 100, 10).seconds(10, 10) == 10
    assert Operator("", 10, 100).seconds(10, 10) == 10


@pytest.mark.slow
def test_a_step_is_compared_with_its_limit() -> None:
    task = Task(cifar_resnet(8, 10), 0.25, *synthetic(9, (3, 8, 8)), Setting(4), 1)
    found = measure_roofline(task, samples=1)
    assert found.reached == pytest.approx(found.least / found.milliseconds)
    assert found.operations / found.operations_rate <= found.least / 1e3
    assert found.bytes / found.bytes_rate <= found.least / 1e3
    assert 0 < found.reached < 1.5
