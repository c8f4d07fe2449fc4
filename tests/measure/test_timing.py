"""Times are medians of interleaved samples; costs are what can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lt_lightning.measure.cost import flops, parameters, saved_bytes, stored_bytes
from lt_lightning.measure.networks import Setting, largest_difference, time_networks, time_ratio
from lt_lightning.measure.timing import interleaved


class Clock:
    """Advances only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = iter(seconds * 10_000)

        def run() -> None:
            self.log.append(name)
            self.now += next(durations)

        return run


def test_medians_and_percentiles_of_known_durations() -> None:
    clock = Clock()
    calls = {"slow": clock.call("slow", 2.0), "fast": clock.call("fast", 0.25)}
    timings = interleaved(calls, samples=5, slot=1.0, clock=lambda: clock.now)
    assert (timings["slow"].median, timings["fast"].median) == (2.0, 0.25)
    assert timings["fast"].p5 == timings["fast"].p95 == 0.25
    assert timings["slow"].samples == 5


def test_calls_are_interleaved_in_turns_of_alternating_order() -> None:
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in ("a", "b")}
    interleaved(calls, samples=4, slot=0.5, warm_up=1, clock=lambda: clock.now)
    assert clock.log[4:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_an_outlier_does_not_move_the_median() -> None:
    clock = Clock()
    durations = [1.0] * 3 + [1.0, 1.0, 50.0, 1.0, 1.0]  # two to warm up, one to size the slot
    timing = interleaved({"a": clock.call("a", *durations)}, samples=5, slot=0.5, clock=lambda: clock.now)["a"]
    assert timing.median == 1.0
    assert timing.p95 > 10


def test_costs_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2, bias=False))
    images = torch.zeros(5, 3, 4, 4)
    assert parameters(network) == 3 * 8 * 9 + 8 + 8 * 16 * 2
    assert flops(network, images) == 2 * 5 * (3 * 8 * 9 * 16 + 8 * 16 * 2)
    assert stored_bytes(network) == 4 * parameters(network)
    # the images for the convolution's weight, and the ReLU's result, for itself and for the linear layer
    assert saved_bytes(network, images) == 4 * (5 * 3 * 16 + 5 * 8 * 16)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_much_smaller_network_is_faster(training: bool, bfloat16: bool) -> None:
    networks = {
        name: nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for name, width in (("dense", 128), ("small", 8))
    }
    setting = Setting(8, training, bfloat16=bfloat16)
    timings = time_networks(networks, (3, 16, 16), setting, samples=3, slot=0.005)
    assert timings["small"].median < timings["dense"].median  # 256 times fewer operations


def test_ratios_leave_the_networks_alone() -> None:
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    for training in (False, True):
        assert time_ratio(dense, dense, (1, 8, 8), Setting(4, training), samples=3, slot=0.001) > 0
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_largest_difference() -> None:
    first, second = (nn.Linear(2, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0]]))
        second.weight.copy_(torch.tensor([[1.0, 1.25]]))
    assert largest_difference(first, second, torch.ones(1, 2)) == pytest.approx(0.125)
    assert largest_difference(first, first, torch.ones(1, 2)) == 0
    assert first.training
    assert str(Setting(8, True, compiled=True)) == "training step, batch 8, fp32, compiled, channels last"
