"""Networks as functions to be timed, and the comparison of what they compute."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lt_lightning.execution.network_timing import (
    Setting,
    largest_difference,
    network_call,
    random_images,
    relative_difference,
    time_ratio,
    training_difference,
)
from lt_lightning.execution.timing import by_clock
from lt_lightning.pruning.enforcement import EnforcedMasks

Make = Callable[[], nn.Module]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_much_smaller_network_is_faster(training: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_lightning.execution.network_timing.stopwatch", lambda _: by_clock(time.process_time))
    dense, small = (
        nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for width in (128, 8)
    )
    setting = Setting(8, training, bfloat16=bfloat16)
    assert time_ratio(dense, small, (3, 16, 16), setting, samples=3, slot=0.005) < 1  # 256 times fewer operations


def test_ratios_leave_the_networks_alone() -> None:
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    for training in (False, True):
        assert time_ratio(dense, dense, (1, 8, 8), Setting(4, training), samples=3, slot=0.001) > 0
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_inference_gives_the_networks_logits(conv_net: Make, bfloat16: bool, channels_last: bool) -> None:
    network = conv_net().eval()
    setting = Setting(4, False, bfloat16, channels_last=channels_last)
    images = random_images(setting, (1, 6, 6))
    expected = network(images.float())
    logits = network_call(copy.deepcopy(network), images, setting)()
    assert logits.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    assert relative_difference(logits, expected) < (3e-2 if bfloat16 else 1e-6)


def test_a_training_step_is_sgd_on_held_masks(conv_net: Make) -> None:
    network = conv_net()
    masks = {"3.weight": torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    EnforcedMasks(network, masks).zero_weights()
    before = network[3].weight.detach().clone()  # type: ignore[index]
    step = network_call(network, random_images(Setting(4, True), (1, 6, 6)), Setting(4, True), masks)
    first, second = float(step()), float(step())
    after = network[3].weight.detach()  # type: ignore[index]
    assert second < first
    assert bool((after[~masks["3.weight"]] == 0).all())
    assert not torch.equal(before, after)


def test_every_compiled_network_is_compiled(conv_net: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives up on a code after eight variants, and networks of a class share theirs."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: whole(*args, **{**kwargs, "backend": backend}))
    for width in range(1, 13):
        network = nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        setting = Setting(2, False, engine="compile")
        call = network_call(network, random_images(setting, (1, 6, 6)), setting)
        for _ in range(2):
            call()
    assert len(compiled) == 12


def test_largest_difference() -> None:
    first, second = (nn.Linear(2, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0]]))
        second.weight.copy_(torch.tensor([[1.0, 1.25]]))
    assert largest_difference(first, second, torch.ones(1, 2)) == pytest.approx(0.125)
    assert largest_difference(first, first, torch.ones(1, 2)) == 0
    assert first.training


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
    images = random_images(Setting(8, True), (1, 6, 6))
    assert largest_difference(right, wrong, images) < 1e-6
    same = training_difference(right, {}, copy.deepcopy(right), {}, images, Setting(8, True))
    other = training_difference(right, {}, wrong, {}, images, Setting(8, True))
    assert same < 1e-6
    assert other > 1e-3


def test_settings_in_words() -> None:
    assert str(Setting(8, True, engine="compile")) == "training step, batch 8, fp32, compile, channels last"
