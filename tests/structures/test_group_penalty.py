"""The group lasso's proximal operator, against a minimiser; its groups, against what structures keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from lt_lightning.execution.execute import execute
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import Structure, StructureInput
from lt_lightning.structures.group_penalty import GroupPenalty, penalised_groups
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket

EXAMPLE = torch.zeros(2, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(depth=8, width=8, classes=5, channels=3)


def made(structure: Structure) -> tuple[Ticket, TracedNetwork]:
    traced = TracedNetwork(network(), EXAMPLE)
    full = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    weights = {name: value.detach() for name, value in traced.network.state_dict().items()}
    masks = prune(full, Magnitude()(weights, full), 0.4)
    return make_ticket("structured", structure, StructureInput(traced, masks, weights), weights), traced


def test_a_step_is_the_minimum_that_defines_it() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(4, 6, bias=False)
    start = layer.weight.detach().double().numpy().copy()
    groups = torch.randint(0, 5, (6, 4))
    rate, strength = 0.3, 0.7

    def cost(flat: np.ndarray) -> float:
        values = flat.reshape(6, 4)
        penalty = 0.0
        for number in range(1, 5):
            mine = values[groups.numpy() == number]
            penalty += np.sqrt(mine.size) * np.sqrt((mine**2).sum() + 1e-18)
        return float(((values - start) ** 2).sum() / 2 + rate * strength * penalty)

    best = minimize(cost, start.ravel(), method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10})
    GroupPenalty(strength, {"weight": groups}).shorten(layer, rate)
    ours = layer.weight.detach().double().numpy()
    assert cost(ours.ravel()) <= best.fun + 1e-6
    np.testing.assert_allclose(ours, best.x.reshape(6, 4), atol=1e-2)
    untouched = groups.numpy() == 0
    np.testing.assert_array_equal(ours[untouched], start[untouched])


@pytest.mark.parametrize("granularity", ["kernel_position", "input_channel"])
def test_groups_are_the_columns_of_the_blocks(granularity: str) -> None:
    ticket, traced = made(Regroup(granularity=granularity, group_size=4))  # type: ignore[arg-type]
    groups = penalised_groups(ticket.plan, ticket.masks, traced)
    seen: set[int] = set()
    for weight, numbers in groups.items():
        assert torch.equal(numbers > 0, ticket.masks[weight])
        for number in sorted(set(numbers[numbers > 0].tolist())):
            assert number not in seen
            seen.add(number)
            rows, inputs, *_ = (numbers == number).nonzero(as_tuple=True)
            assert len(set(inputs.tolist())) == 1
            assert len(set(rows.tolist())) == 4
            whole = 1 if granularity == "kernel_position" else numbers[0, 0].numel()
            assert len(rows) == len(set(rows.tolist())) * whole
    assert seen == set(range(1, len(seen) + 1))


def test_channels_of_a_stream_are_one_group() -> None:
    ticket, traced = made(Refill(round_to=1))
    groups = penalised_groups(ticket.plan, ticket.masks, traced)
    first, second = (groups[f"stages.0.0.conv{number}.weight"] for number in (1, 2))
    inner, stream = (set(numbers[numbers > 0].tolist()) for numbers in (first, second))
    assert inner
    assert stream
    assert not inner & stream
    assert all(len(set(row.flatten().tolist()) - {0}) <= 1 for numbers in (first, second) for row in numbers)


def test_channels_of_a_transposed_convolution_are_its_second_dimension() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 3, 1))
    traced = TracedNetwork(layers, torch.zeros(1, 2, 4, 4))
    masks = {"1.weight": torch.ones(4, 6, 2, 2, dtype=torch.bool)}
    plan = ChannelPlan({"1": torch.arange(5)}, {})
    numbers = penalised_groups(plan, masks, traced)["1.weight"]
    assert numbers.shape == (4, 6, 2, 2)
    assert [len(set(numbers[:, channel].flatten().tolist())) for channel in range(6)] == [1] * 6
    assert len(set(numbers[0, :, 0, 0].tolist())) == 6


@pytest.mark.parametrize("structure", [Regroup(group_size=4), Refill(round_to=1)])
def test_the_smaller_network_is_penalised_as_the_masked_one(structure: Structure) -> None:
    ticket, traced = made(structure)
    masked = ticket.apply(network())
    small = execute(masked, ticket.plan, ticket.masks, EXAMPLE)
    assert small is not None
    groups = penalised_groups(ticket.plan, ticket.masks, traced)
    GroupPenalty(0.5, groups).shorten(masked, rate=0.1)
    GroupPenalty(0.5, small.slices.take_known(groups)).shorten(small.network, rate=0.1)
    expected = small.slices.take(masked.state_dict())
    for name, value in small.network.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
