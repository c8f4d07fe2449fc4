"""Parameters and operations are what is counted by hand; times are those of the network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.cost import (
    Setting,
    flops,
    inputs_like,
    layer_seconds,
    network_call,
    parameters,
    time_ratio,
)
from lt_lightning.execution.timing import by_clock
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.evaluation import relative_difference

Make = Callable[[], nn.Module]


def test_costs_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2, bias=False))
    images = torch.zeros(5, 3, 4, 4)
    assert parameters(network) == 3 * 8 * 9 + 8 + 8 * 16 * 2
    assert flops(network, images) == 2 * 5 * (3 * 8 * 9 * 16 + 8 * 16 * 2)


def test_operations_of_an_encoder_with_named_arguments() -> None:
    """In evaluation PyTorch would compute the layer in one operation, which nobody counts."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    matrices = 8 * 3 * 8 + 8 * 8 + 8 * 16 + 16 * 8
    scores_and_mixture = 2 * 5 * 5 * 8
    assert flops(layer, {"src": torch.zeros(3, 5, 8)}) == 2 * 3 * (5 * matrices + scores_and_mixture)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_much_smaller_network_is_faster(training: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_lightning.execution.cost.stopwatch", lambda _: by_clock(time.process_time))
    dense, small = (
        nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for width in (128, 8)
    )
    setting = Setting(8, training, bfloat16=bfloat16)
    assert (
        time_ratio(dense, small, torch.zeros(1, 3, 16, 16), setting, samples=3, slot=0.005).ratio < 1
    )  # 256 times fewer operations


def test_ratios_leave_the_random_generators_and_the_precision_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    state = torch.get_rng_state()
    time_ratio(network, network, torch.zeros(1, 3, 2, 2).double(), Setting(4, training=True), samples=2, slot=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


def test_ratios_leave_the_networks_alone() -> None:
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    for training in (False, True):
        assert time_ratio(dense, dense, torch.zeros(1, 1, 8, 8), Setting(4, training), samples=3, slot=0.001).ratio > 0
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_inference_gives_the_networks_logits(conv_net: Make, bfloat16: bool, channels_last: bool) -> None:
    network = conv_net().eval()
    setting = Setting(4, False, bfloat16, channels_last=channels_last)
    images = inputs_like(torch.zeros(1, 1, 6, 6), setting)
    expected = network(images.float())
    logits = network_call(copy.deepcopy(network), images, setting)()
    assert logits.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    assert relative_difference(logits, expected) < (3e-2 if bfloat16 else 1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_a_network_of_token_ids_is_timed(training: bool) -> None:
    """In bfloat16, too, where ids stay what they are."""
    network = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(6 * 8, 3))
    example, setting = torch.arange(6)[None] % 5, Setting(4, training, bfloat16=True)
    assert torch.equal(inputs_like(example, setting), example.repeat(4, 1))
    assert time_ratio(network, network, example, setting, samples=3, slot=0.001).ratio > 0
    if not training:
        assert layer_seconds({"a": network}, ["2"], example, setting)["2"]["a"] > 0


def test_a_training_step_is_sgd_on_held_masks(conv_net: Make) -> None:
    network = conv_net()
    masks = {"3.weight": torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    EnforcedMasks(network, masks).zero_weights()
    before = network[3].weight.detach().clone()  # type: ignore[index]
    step = network_call(network, inputs_like(torch.zeros(1, 1, 6, 6), Setting(4, True)), Setting(4, True), masks)
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
        call = network_call(network, inputs_like(torch.zeros(1, 1, 6, 6), setting), setting)
        for _ in range(2):
            call()
    assert len(compiled) == 12


def test_settings_in_words() -> None:
    assert str(Setting(8, True, engine="compile")) == "training step, batch 8, fp32, compile, channels last"


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
        {"dense": slow, "ticket": fast},
        ["0", "2", "other"],
        torch.zeros(1, 1, 4, 4),
        Setting(2, training=False),
        passes=3,
    )
    assert list(times) == ["0", "2", "other"]
    assert times["0"]["dense"] >= 0.02
    assert 0.002 <= times["0"]["ticket"] < times["0"]["dense"]
    assert list(times["2"]) == ["dense"]
    assert times["2"]["dense"] == pytest.approx(0.01, rel=3)
    assert times["other"] == {}
    assert not slow[0]._forward_hooks  # left as they were
