"""Scores of `BlockMagnitude` by hand, and what they do to masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Context, Magnitude
from lt_lightning.pruning.masks import Masks, kept
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.block_magnitude import BlockMagnitude
from lt_lightning.structures.plan import Granularity
from lt_lightning.structures.regroup import Regroup

WEIGHTS = torch.tensor([[4.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [-4.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 5.0]])


def context_of(network: nn.Module, example: Tensor, density: float) -> Context:
    return Context(network, network.state_dict(), example, lambda _: [], density, "global")


def scored(
    criterion: BlockMagnitude,
    weights: Mapping[str, Tensor],
    masks: Masks,
    density: float,
    network: nn.Module | None = None,
) -> dict[str, Tensor]:
    network = network or nn.Sequential(nn.Linear(4, 4, bias=False))
    return criterion(weights, masks, context_of(network, torch.zeros(1, 4), density))


def test_a_blend_by_hand() -> None:
    # Rows 0 and 2 are a group, rows 1 and 3 the other. Of 8 survivors 4 are to stay: two columns of two rows, the first
    # of the one group (8) and the last of the other (6). At density 1/4 the share of the blocks is 2/3 x 3/4 = 1/2.
    # Mean magnitudes of the columns: 4, 1, 0 and 0; 0, 0, 1 and 3. The third weight of row 2 is pruned.
    mask = WEIGHTS != 0
    mask[2, 2] = False
    scores = scored(BlockMagnitude(group_size=2, blend=2 / 3), {"0.weight": WEIGHTS}, {"0.weight": mask}, 1 / 4)
    expected = torch.tensor([[16, 1, 0, 0], [0, 0, 1, 3], [16, 1, 0, 0], [0, 0, 1, 15]], dtype=torch.float64).sqrt()
    expected *= 18 / expected.sum()  # the survivors' magnitudes add up to 18
    torch.testing.assert_close(scores["0.weight"] * mask, expected)


def test_channels_count_at_all_of_their_positions() -> None:
    # One group of two filters, two channels of three positions: means (1 + 2 + 3 + 6) / 6 = 2 and 3 / 6.
    weight = torch.tensor([[[1.0, 2, 3], [0, 0, 0]], [[0, 0, -6], [0, 3, 0]]]).reshape(2, 2, 1, 3)
    network = nn.Sequential(nn.Conv2d(2, 2, (1, 3), bias=False))
    criterion = BlockMagnitude("input_channel", group_size=2, blend=1.0)
    context = context_of(network, torch.zeros(1, 2, 4, 4), 0.5)
    (scores,) = criterion({"0.weight": weight}, {"0.weight": weight != 0}, context).values()
    expected = (weight.abs() * torch.tensor([2.0, 0.5])[:, None, None]).sqrt().double()
    torch.testing.assert_close(scores, expected * (15 / expected.sum()))


def test_without_blend_and_in_a_dense_network_scores_are_magnitudes() -> None:
    masks = {"0.weight": torch.ones(4, 4, dtype=torch.bool)}
    for blend, density in ((0.0, 0.1), (1.0, 1.0)):
        scores = scored(BlockMagnitude(group_size=2, blend=blend), {"0.weight": WEIGHTS}, masks, density)
        torch.testing.assert_close(scores["0.weight"], WEIGHTS.abs().double())


def test_layers_without_blocks_are_scored_by_magnitude_and_nothing_given_is_changed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 8))
    weights = {name: value.clone() for name, value in network.named_parameters() if value.dim() > 1}
    masks = {name: value.abs() > value.abs().median() for name, value in weights.items()}
    before = {name: (weights[name].clone(), masks[name].clone()) for name in weights}
    scores = BlockMagnitude(group_size=4)(weights, masks, context_of(network, torch.zeros(1, 4, 4, 4), 0.3))
    assert torch.equal(scores["0.weight"], Magnitude()(weights, masks)["0.weight"])
    assert not torch.equal(
        scores["2.weight"].float() * masks["2.weight"], weights["2.weight"].abs() * masks["2.weight"]
    )
    assert all(torch.equal(weights[name], w) and torch.equal(masks[name], m) for name, (w, m) in before.items())


def test_an_emptied_layer_has_scores_of_zero() -> None:
    masks = {"0.weight": torch.zeros(4, 4, dtype=torch.bool)}
    masks["0.weight"][0, 3] = True  # where the weight itself is zero
    assert (
        scored(BlockMagnitude(group_size=2), {"0.weight": WEIGHTS}, masks, 0.05)["0.weight"].tolist() == [[0.0] * 4] * 4
    )


@pytest.mark.parametrize("granularity", ["kernel_position", "input_channel"])
def test_pruned_by_it_columns_hold_more(granularity: Granularity) -> None:
    """Round by round, as in a search, a mask of blended scores leaves fewer columns with a weight in them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False))
    weights = {"0.weight": torch.randn(32, 16, 3, 3)}
    held = {}
    for criterion in (Magnitude(), BlockMagnitude(granularity, group_size=8, blend=0.9)):
        masks = {"0.weight": torch.ones(32, 16, 3, 3, dtype=torch.bool)}
        for density in (0.6, 0.36, 0.2):
            scores = criterion(weights, masks, context_of(network, torch.zeros(1, 16, 4, 4), density))
            masks = prune(masks, scores, density)
            assert kept(masks) == round(density * 32 * 16 * 9)
        held[type(criterion).__name__] = (
            Regroup(granularity, group_size=8)(
                StructureInput(TracedNetwork(network, torch.zeros(1, 16, 4, 4)), masks, weights)
            )
            .layers["0"]
            .retained_magnitude
        )
    assert held["BlockMagnitude"] > 1.1 * held["Magnitude"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "rows"}, "granularity='rows': "),
        ({"clustering": "hmetis"}, "clustering='hmetis': "),
        ({"group_size": 0}, "group_size=0: "),
        ({"blend": -0.1}, "blend=-0.1: "),
        ({"blend": 1.5}, "blend=1.5: "),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        BlockMagnitude(**options)
