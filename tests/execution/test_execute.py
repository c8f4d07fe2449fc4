"""A network that computes its blocks learns as the masked one does."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.execution.cost import flops
from lt_lightning.execution.execute import (
    DENSE_FORM,
    execute,
    forms_of,
    swap_layers,
)
from lt_lightning.execution.shrink_channels import cut_point
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.plan import BlockPlan, Granularity
from lt_lightning.structures.regroup import Regroup


def regrouped(network: nn.Module, example: Tensor, granularity: Granularity, density: float = 0.3) -> StructureResult:
    layers = find_layers(network, example)
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, density)
    return Regroup(granularity=granularity, group_size=4, clustering="random")(
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
