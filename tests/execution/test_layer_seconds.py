"""Times of layers within networks, against layers that take a known time."""

from __future__ import annotations

import time

import pytest
from torch import Tensor, nn

from lt_lightning.execution.network_timing import Setting, layer_seconds


class Sleep(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


def test_each_layer_has_its_own_time_in_each_network() -> None:
    slow = nn.Sequential(Sleep(0.02), nn.Identity(), Sleep(0.01))
    fast = nn.Sequential(Sleep(0.002), nn.Identity())
    times = layer_seconds(
        {"dense": slow, "ticket": fast}, ["0", "2", "other"], (1, 4, 4), Setting(2, training=False), passes=3
    )
    assert list(times) == ["0", "2", "other"]
    assert times["0"]["dense"] >= 0.02
    assert 0.002 <= times["0"]["ticket"] < times["0"]["dense"]
    assert list(times["2"]) == ["dense"]
    assert times["2"]["dense"] == pytest.approx(0.01, rel=3)
    assert times["other"] == {}
    assert not slow[0]._forward_hooks  # left as they were
