"""Smaller networks stay clear of oneDNN's defect: where, and that they compute the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import SkipsPixels, avoid_defect, is_affected, shrink_channels, uses_avx2
from lt_lightning.structures.plan import ChannelPlan


@pytest.fixture
def on_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize(
    ("allowed", "processor", "found"),
    [
        (None, "AVX2", True),
        (None, "AVX512", False),
        (None, "DEFAULT", False),
        ("AVX", "AVX2", False),
        ("sse41", "AVX2", False),
        ("AVX2", "AVX512", True),
        ("AVX2_VNNI", "AVX512", True),
        ("AVX512_CORE", "AVX2", True),
    ],
)
def test_which_kernels_onednn_takes(
    allowed: str | None, processor: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert uses_avx2() == found


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (nn.Conv2d(2, 3, 1, 2), True),
        (nn.Conv2d(7, 16, 1, (1, 2), bias=False), True),
        (nn.Conv2d(1, 8, 1, 2), False),
        (nn.Conv2d(8, 8, 1, 2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, 2), False),
        (nn.Conv2d(4, 8, 1, 2, padding=1), False),
        (nn.Conv2d(4, 8, 1, 2, groups=2), False),
        (nn.Conv1d(4, 8, 1, 2), False),
        (nn.Linear(4, 8), False),
    ],
)
def test_which_layers_have_the_defect(module: nn.Module, found: bool) -> None:
    assert is_affected(module) == found


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (2, 1)])
@pytest.mark.usefixtures("on_avx2")
def test_a_layer_that_skips_pixels_computes_the_same(stride: int | tuple[int, int]) -> None:
    """In float64, which oneDNN does not compute."""
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 6, 1, stride).double()
    guarded = nn.Conv2d(5, 6, 1, stride).double()
    guarded.load_state_dict(plain.state_dict())
    avoid_defect(guarded)
    assert isinstance(guarded, SkipsPixels)
    x = torch.randn(3, 5, 9, 8, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for layer in (plain, guarded):
        given = x.clone().requires_grad_()
        result = layer(given)
        result.square().sum().backward()
        found.append([result, *(each.grad for each in (given, layer.weight, layer.bias) if each is not None)])  # type: ignore[list-item]
    torch.testing.assert_close(found[1], found[0])
    with torch.no_grad():
        assert torch.equal(guarded(x), plain(x))


@pytest.mark.parametrize("allowed", ["AVX", "AVX2"])
def test_smaller_networks_are_guarded_where_it_is_needed(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    network = nn.Sequential(nn.Conv2d(1, 12, 3), nn.Conv2d(12, 16, 1, 2), nn.Conv2d(16, 2, 1, 2))
    keep = torch.tensor([1, 4, 9])
    small = shrink_channels(network, ChannelPlan({"0": keep}, {"1": keep}), torch.zeros(1, 1, 8, 8)).network
    assert [isinstance(layer, SkipsPixels) for layer in small] == [False, allowed == "AVX2", False]  # type: ignore[attr-defined]
    assert not any(isinstance(layer, SkipsPixels) for layer in network)


@pytest.mark.slow
def test_guarded_layers_train_on_avx2() -> None:
    """In a process of its own, since one without the guard does not live to tell."""
    code = """if True:
        import torch
        from lt_lightning.execution.shrink_channels import avoid_defect
        for inputs in range(2, 8):
            layer = torch.nn.Conv2d(inputs, 8, 1, 2)
            avoid_defect(layer)
            layer.to(memory_format=torch.channels_last)
            x = torch.randn(32, inputs, 32, 32).contiguous(memory_format=torch.channels_last)
            for _ in range(10):
                layer(x).square().sum().backward()
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=100)
    assert done.returncode == 0
