"""Costs are what can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lt_lightning.execution.cost import file_bytes, flops, parameters, peak_bytes, saved_bytes, share_of_ideal
from lt_lightning.execution.timing import keep_freed_memory

KB = 1024  # bytes of 256 float32


def test_costs_by_hand(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2, bias=False))
    images = torch.zeros(5, 3, 4, 4)
    assert parameters(network) == 3 * 8 * 9 + 8 + 8 * 16 * 2
    assert flops(network, images) == 2 * 5 * (3 * 8 * 9 * 16 + 8 * 16 * 2)
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


def test_freed_memory_is_not_mapped_anew() -> None:
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")

    def faults(calls: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(calls):
            torch.zeros(1 << 22)  # 16 MB, 4096 pages
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    faults(20)  # memory fragments at first
    assert faults(10) < 2 * 4096  # 10 x 4096 without
