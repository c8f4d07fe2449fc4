"""The mean over an epoch, as torchmetrics' own metrics have it."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lt_lightning.training.classifier import EpochMean


def test_is_torchmetrics_mean_and_accuracy_to_the_bit() -> None:
    torch.manual_seed(0)
    loss, accuracy = EpochMean(), EpochMean()
    mean, right = MeanMetric(), MulticlassAccuracy(5, average="micro")
    for count in (7, 7, 3):
        value, logits, labels = torch.rand(()), torch.randn(count, 5), torch.randint(5, (count,))
        loss.update(value * count, count)
        mean.update(value, count)
        accuracy.update((logits.argmax(1) == labels).sum(), count)
        right.update(logits, labels)
    assert torch.equal(loss.compute(), mean.compute())
    assert torch.equal(accuracy.compute(), right.compute())


def test_is_first_once_after_every_reset() -> None:
    mean = EpochMean()
    seen = []
    for _ in range(2):
        for _ in range(3):
            mean.update(torch.tensor(1.0), 1)
            seen.append(mean.first)
        mean.reset()
    assert seen == [True, False, False] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    mean = EpochMean()
    for _ in range(1000):
        mean.update(torch.tensor(1.0, dtype=dtype), 1)
    assert mean.total.dtype == torch.float32
    assert mean.compute() == 1.0
