"""Fixed blocks against loops over every tile, and the layers that execute them."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from lt_lightning.execution.execute import execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import find_layers, prunable_layers
from lt_lightning.pruning.masks import kept
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.fixed_blocks import FixedBlocks
from lt_lightning.structures.plan import BlockPlan, Granularity

GRANULARITIES: tuple[Granularity, ...] = ("kernel_position", "input_channel")


def network_of(*widths: int) -> nn.Sequential:
    """Convolutions from 3 channels through `widths`, a linear layer, and a classifier."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, *widths))]
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 24), nn.Linear(24, 4))
    return nn.Sequential(*convolutions, *ends).double()


def subject_of(network: nn.Module, share: float) -> StructureInput:
    example = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    layers = find_layers(network, example)
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for name, weight in weights.items():
        if weight.dim() > 1:
            weights[name] = weight * torch.exp(torch.randn(weight.shape[:2])).view(
                *weight.shape[:2], *[1] * (weight.dim() - 2)
            )
    names = [layer.weight for layer in prunable_layers(layers, ("stem", "classifier"))]
    full = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    return StructureInput(
        TracedNetwork(network, example), prune(full, {n: weights[n].abs() for n in names}, share), weights
    )


def tile_size(outputs: int, inputs: int, options: FixedBlocks) -> tuple[int, int]:
    """By trying: the smallest number of filters that divides them and is large enough; channels likewise the most."""
    least = options.filters if outputs >= 2 * options.filters else outputs
    filters = next(number for number in range(least, outputs + 1) if outputs % number == 0)
    channels = max(
        number
        for number in range(1, options.channels + 1)
        if options.channels % number == inputs % number == max(inputs // 4, 1) % number == 0
    )
    return filters, channels


def tiles_of(given: StructureInput, name: str, options: FixedBlocks) -> list[tuple[float, int, tuple[slice, ...]]]:
    """Surviving magnitude, row of tiles and place of every tile of a layer."""
    weight = given.weights[name] * given.masks[name]
    outputs, inputs = weight.shape[:2]
    filters, channels = tile_size(outputs, inputs, options)
    kernel: list[tuple[slice, ...]] = [()]
    if weight.dim() == 4:
        whole = [(slice(None), slice(None))]
        single = [(slice(y, y + 1), slice(x, x + 1)) for y in range(3) for x in range(3)]
        kernel = [*whole] if options.granularity == "input_channel" else [*single]
    tiles = []
    for row, column, position in product(range(0, outputs, filters), range(0, inputs, channels), kernel):
        place = (slice(row, row + filters), slice(column, column + channels), *position)
        tiles.append((float(weight[place].abs().sum()), row, place))
    return tiles


def check_choice(result: StructureResult, given: StructureInput, options: FixedBlocks) -> int:
    """That each layer keeps whole tiles, and no dropped one is stronger than a kept one; returns the largest step."""
    steps = []
    for name, mask in result.masks.items():
        tiles = tiles_of(given, name, options)
        rows = {row for _, row, _ in tiles}
        of_tile = [mask[place] for _, _, place in tiles]
        assert all(bool(part.all()) or not bool(part.any()) for part in of_tile)
        steps.append(of_tile[0].numel() * (len(rows) if options.granularity == "input_channel" else 1))
        compared = [{row} for row in rows] if options.granularity == "input_channel" else [rows]
        numbers = set()
        for those in compared:
            mine = [(value, bool(mask[place].all())) for value, row, place in tiles if row in those]
            inside = [value for value, is_kept in mine if is_kept]
            numbers.add(len(inside))
            assert min(inside) >= max((value for value, is_kept in mine if not is_kept), default=0.0)
        assert len(numbers) == 1
    return max(steps)


@pytest.mark.parametrize(("granularity", "share", "filters"), list(product(GRANULARITIES, (0.6, 0.2), (4, 8))))
def test_the_strongest_tiles_are_kept_and_as_many_weights_as_the_masks_have(
    granularity: Granularity, share: float, filters: int
) -> None:
    network = network_of(8, 20, 36)
    given = subject_of(network, share)
    options = FixedBlocks(granularity, filters=filters, channels=4)
    result = options(given)
    step = check_choice(result, given, options)
    assert kept(given.masks) - step < kept(result.masks) <= kept(given.masks)
    for layer in given.prunable:
        report = result.layers[layer.name]
        assert report.executed == report.kept == int(result.masks[layer.weight].sum())
        assert report.form == "blocks"
    assert {name for name, report in result.layers.items() if report.form == "dense"} == {"0", "6"}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_layers_that_compute_the_blocks_equal_the_masked_ones(granularity: Granularity) -> None:
    network = network_of(8, 20, 36)
    given = subject_of(network, 0.3)
    result = FixedBlocks(granularity, filters=4, channels=4)(given)
    assert isinstance(result.plan, BlockPlan)
    masked = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.copy_(given.weights[name] * result.masks.get(name, torch.ones(())))
    example = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert "dense" not in choose_forms(masked, result.plan, example).forms.values()
    small = execute(masked, result.plan, result.masks, example)
    assert small is not None
    assert set(small.choice) == {"1", "2", "5"}
    assert "dense" not in small.choice.values()
    assert not small.masks
    with torch.no_grad():
        assert (small.network(given.traced.example) - masked(given.traced.example)).abs().max() < 1e-10
    stored = [
        sum(p.numel() for key, p in small.network.get_submodule(name).named_parameters() if "bias" not in key)
        for name in result.plan.blocks
    ]
    assert sum(stored) == kept(result.masks)


def test_layers_that_cannot_be_divided_stay_dense_and_small_ones_are_one_row_of_tiles() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    ).double()  # fmt: skip
    given = subject_of(network, 0.5)
    result = FixedBlocks(filters=32, channels=16)(given)
    assert "grouped" in result.layers["1"].note
    assert bool(result.masks["1.weight"].all())
    assert isinstance(result.plan, BlockPlan)
    (block,) = result.plan.blocks["2"]
    assert block.rows.tolist() == list(range(6))
    assert len(block.columns) % 2 == 0  # tiles of a fourth of eight channels
    weights = {**given.weights, "2.weight": given.weights["2.weight"] * float("nan")}
    broken = replace(given, weights=weights)
    with pytest.raises(ValueError, match=r"weight: "):
        FixedBlocks()(broken)


@pytest.mark.parametrize("options", [{"granularity": "rows"}, {"filters": 0}, {"channels": -1}])
def test_impossible_options_are_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}="):
        FixedBlocks(**options)  # type: ignore[arg-type]
