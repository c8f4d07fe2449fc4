"""Costs are what can be counted by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.network_costs import (
    counter_of,
    file_bytes,
    joules,
    nvml_counter,
    peak_bytes,
    saved_bytes,
    share_of_ideal,
    training_difference,
)
from lt_lightning.execution.cost import Setting, inputs_like
from lt_lightning.pruning.evaluation import largest_difference

Make = Callable[[], nn.Module]
KB = 1024  # bytes of 256 float32


def test_costs_by_hand(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2, bias=False))
    images = torch.zeros(5, 3, 4, 4)
    # the images for the convolution's weight, and the ReLU's result, for itself and for the linear layer
    assert saved_bytes(network, images) == 4 * (5 * 3 * 16 + 5 * 8 * 16)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "network.safetensors")
    assert file_bytes(network) == (tmp_path / "network.safetensors").stat().st_size
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert file_bytes(network) == (tmp_path / "network.safetensors").stat().st_size


def test_peak_is_the_most_that_lives_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(256)

    def together() -> list[Tensor]:
        return [torch.zeros(256) for _ in range(3)]

    def views_and_in_place() -> Tensor:
        return torch.zeros(256).view(16, 16).t().add_(1)

    assert peak_bytes(one_after_the_other) == KB
    assert peak_bytes(together) == 3 * KB
    assert peak_bytes(views_and_in_place) == KB


def test_peak_of_a_training_step_counts_activations_and_gradients() -> None:
    weight = torch.ones(256, requires_grad=True)

    def step() -> None:
        y = (weight * 2).exp()  # the product is freed once exp has run, exp's result is saved
        y.backward(torch.ones(256))  # type: ignore[no-untyped-call]

    # at the end: exp's result, the gradient given, that of the product, that of the weight
    assert 3 * KB <= peak_bytes(step) <= 5 * KB
    assert weight.grad is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_on_cuda() -> None:
    assert peak_bytes(lambda: torch.zeros(256, device="cuda") + 1, "cuda") == 2 * KB


@pytest.mark.parametrize(
    ("speedup", "ideal", "share"), [(4.0, 4.0, 1.0), (1.0, 4.0, 0.0), (2.0, 4.0, 2 / 3), (0.5, 2.0, -2.0)]
)
def test_share_of_the_ideal_saving(speedup: float, ideal: float, share: float) -> None:
    assert share_of_ideal(speedup, ideal) == pytest.approx(share)


def test_nothing_to_save_has_no_share() -> None:
    assert math.isnan(share_of_ideal(1.1, 1.0))


class WrongGradient(nn.Conv2d):
    """The right output, and a weight gradient that is half of what it should be."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        whole = super().forward(input)
        half = self._conv_forward(input, (self.weight + self.weight.detach()) / 2, self.bias)
        result: torch.Tensor = whole.detach() + half - half.detach()
        return result


def test_wrong_gradients_are_seen_in_training_alone(conv_net: Make) -> None:
    right = conv_net()
    wrong = copy.deepcopy(right)
    wrong.set_submodule("3", WrongGradient(4, 6, 3, padding=1, bias=False))
    wrong.load_state_dict(right.state_dict())
    images = inputs_like(torch.zeros(1, 1, 6, 6), Setting(8, True))
    assert largest_difference(right, wrong, images) < 1e-6
    same = training_difference(right, {}, copy.deepcopy(right), {}, images, Setting(8, True))
    other = training_difference(right, {}, wrong, {}, images, Setting(8, True))
    assert same < 1e-6
    assert other > 1e-3


class Clock:
    """Advances only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def call(self) -> None:
        self.calls += 1
        self.now += 0.25


def test_energy_is_the_mean_of_many_calls() -> None:
    clock = Clock()
    # The counter: 200 W whatever is done.
    assert joules(clock.call, lambda: 200 * clock.now, seconds=2.0, clock=lambda: clock.now) == pytest.approx(50.0)
    assert clock.calls == 8


class FakeNvml:
    """NVML with one GPU, which counts millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool) -> None:
        self.counts = counts
        self.total = 5_000

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError
        return self.total


def test_energy_counter_of_nvml() -> None:
    nvml = FakeNvml(counts=True)
    counter = counter_of(nvml, "GPU-1")
    assert counter is not None
    assert counter() == 5.0
    nvml.total += 1_500
    assert counter() == 6.5
    assert counter_of(nvml, "GPU-2") is None
    assert counter_of(FakeNvml(counts=False), "GPU-1") is None
    assert nvml_counter("cpu") is None
