"""A network that computes its blocks learns as the masked one does."""

from __future__ import annotations

import copy
import time
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.execution.cost import flops
from lt_lightning.execution.execute import (
    DENSE_FORM,
    FastestForm,
    choose_forms,
    execute,
    forms_of,
    input_shapes,
    swap_layers,
)
from lt_lightning.execution.shrink_channels import cut_point
from lt_lightning.execution.timing import by_clock
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.plan import BlockPlan, ChannelPlan, Granularity
from lt_lightning.structures.regroup import Regroup


def regrouped(network: nn.Module, example: Tensor, granularity: Granularity, density: float = 0.3) -> StructureResult:
    layers = find_layers(network, example)
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, density)
    return Regroup(granularity=granularity, group_size=4, clustering="kmeans")(
        StructureInput(TracedNetwork(network, example), masks, weights)
    )


def train(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, held: EnforcedMasks | None) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(network(images), torch.arange(len(images)) % 10)
        loss.backward()  # type: ignore[no-untyped-call]
        if held is not None:
            held.zero_gradients()
        optimizer.step()


@pytest.mark.parametrize("refuse", [False, True])
@pytest.mark.parametrize(
    ("granularity", "form"),
    [("kernel_position", "blocks"), *(("input_channel", form) for form in ("grouped", "loop", "blocks"))],
)
def test_training_on_blocks_equals_masked_training_from_the_same_momentum(
    granularity: Granularity, form: str, refuse: bool
) -> None:
    torch.manual_seed(0)
    masked = cifar_resnet(8, 10, width=8).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(masked.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
    train(masked, optimizer, images, None)
    point = RewindPoint.capture(masked, [optimizer], [])
    structured = regrouped(masked, images[:1], granularity)
    held = EnforcedMasks(masked, structured.masks)
    held.zero_weights()
    held.zero_optimizer_state([optimizer])

    assert isinstance(structured.plan, BlockPlan)
    names = list(structured.plan.blocks)
    refused = names[0] if refuse else ""  # one layer stays dense, and masked

    forms = {name: forms_of(masked, structured.plan, name) for name in names}
    choice = {name: form if form in forms[name] else next(iter(forms[name])) for name in names}
    choice |= {refused: DENSE_FORM} if refuse else {}
    shrunk = swap_layers(masked, structured.plan, structured.masks, choice)
    assert shrunk.choice == choice
    assert choice[names[1]] == form
    again = execute(masked, structured.plan, structured.masks, images[:1], choice=choice)
    assert again is not None
    assert str(again.network) == str(shrunk.network)
    small = shrunk.network
    assert (f"{names[0]}.weight" in shrunk.masks) is refuse
    assert f"{names[1]}.weight" not in shrunk.masks
    torch.testing.assert_close(small(images), masked(images), rtol=0, atol=1e-10)
    small.load_state_dict({**small.state_dict(), **shrunk.slices.take(masked.state_dict())})  # of the step above

    smaller = torch.optim.SGD(small.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
    cut_point(point, shrunk.slices, small, [smaller]).restore_schedule([smaller], [])
    rest = EnforcedMasks(small, shrunk.masks)
    rest.zero_optimizer_state([smaller])
    train(masked, optimizer, images, held)
    train(small, smaller, images, rest)
    whole = shrunk.slices.put(small.state_dict(), masked.state_dict())
    for name, value in masked.state_dict().items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_parameters_stored_are_those_kept(granularity: Granularity) -> None:
    network = VGG(11, 10, width=8).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    structured = regrouped(network, images[:1], granularity)
    EnforcedMasks(network, structured.masks).zero_weights()
    assert isinstance(structured.plan, BlockPlan)
    shrunk = execute(network, structured.plan, structured.masks, images[:1])
    assert shrunk is not None
    kept = sum(
        int(structured.masks[name].sum()) if name in structured.masks else parameter.numel()
        for name, parameter in network.named_parameters()
    )
    assert sum(parameter.numel() for parameter in shrunk.network.parameters()) == kept
    torch.testing.assert_close(shrunk.network.eval()(images), network.eval()(images), rtol=0, atol=1e-10)


def test_input_shapes_are_those_of_the_run() -> None:
    network = copy.deepcopy(VGG(11, 10, width=8)).train()
    shapes = input_shapes(network, ["stages.1.conv1", "classifier"], torch.zeros(1, 3, 32, 32))
    assert shapes == {"stages.1.conv1": (8, 16, 16), "classifier": (64,)}
    assert network.training


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_operations_counted_are_those_of_the_blocks(granularity: Granularity) -> None:
    network = VGG(11, 10, width=8)
    example = torch.zeros(1, 3, 32, 32)
    structured = regrouped(network, example, granularity)
    assert isinstance(structured.plan, BlockPlan)
    shrunk = execute(network, structured.plan, structured.masks, example)
    assert shrunk is not None
    by_hand = sum(report.executed * report.positions for report in structured.layers.values())
    assert flops(shrunk.network, example) == 2 * by_hand
    assert flops(network, example) == 2 * sum(report.size * report.positions for report in structured.layers.values())


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_is_replaced_by_its_fastest_form_if_that_is_faster(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_lightning.execution.timing.stopwatch", lambda _: by_clock(time.process_time))
    layer, small, middle, large = (nn.Conv2d(16, width, 3, padding=1) for width in (256, 4, 128, 1024))
    fastest = FastestForm({"a": (16, 16, 16)}, 8, training)
    assert fastest("a", layer, {"middle": middle, "small": small, "large": large}) == "small"
    assert fastest("a", layer, {"large": large}) == DENSE_FORM
    assert fastest("a", layer, {}) == DENSE_FORM


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = FastestForm({"a": (2, 4, 4), "b": (2, 4, 4)}, 1, training=False)
    layer, small = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 2, 3)
    first = fastest("a", layer, {"small": small})
    monkeypatch.setattr(FastestForm, "_measure", lambda *_: pytest.fail("measured again"))
    assert fastest("b", nn.Conv2d(2, 4, 3), {"small": nn.Conv2d(2, 2, 3)}) == first
    assert torch.is_grad_enabled()


def test_the_forms_are_chosen_without_making_the_network() -> None:
    network = VGG(11, 10, width=8)
    example = torch.zeros(1, 3, 32, 32)
    plan = regrouped(network, example, "input_channel").plan
    assert isinstance(plan, BlockPlan)
    chosen = choose_forms(network, plan, example)
    made = execute(network, plan, {}, example)
    assert made is not None
    assert chosen == made.choice == dict.fromkeys(plan.blocks, "grouped")
    for other in (None, ChannelPlan({}, {})):
        assert choose_forms(network, other, example) == {}
