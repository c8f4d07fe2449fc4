"""N:M: masks against brute force, and reports that claim nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.nm import NM, nm_mask
from lt_lightning.structures.plan import NMPlan


def brute_force(weight: Tensor, survives: Tensor, n: int, m: int) -> Tensor:
    """One group of m after the other: survivors first, then the larger, then the first."""
    keep = torch.zeros(weight.shape, dtype=torch.bool)
    for row, *position in product(*map(range, (weight.shape[0], *weight.shape[2:]))):
        for start in range(0, weight.shape[1], m):
            places = [(row, channel, *position) for channel in range(start, start + m)]
            places.sort(key=lambda place: (not survives[place], -abs(float(weight[place].detach())), place[1]))
            for place in places[:n]:
                keep[place] = True
    return keep


def network_of(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def subject_of(network: nn.Module, example: Tensor, masks: Masks | None = None) -> StructureInput:
    layers = find_layers(network, example)
    masks = masks or full_masks(prunable_layers(layers, ("stem",)))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return StructureInput(TracedNetwork(network, example), masks, weights)


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5), (4, 8)]),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([None, (1, 1), (3, 2)]),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_masks_are_those_of_brute_force(
    pattern: tuple[int, int], groups: int, kernel: tuple[int, int] | None, density: float, seed: int
) -> None:
    torch.manual_seed(seed)
    n, m = pattern
    layer = nn.Conv2d(groups * m, 3, kernel) if kernel else nn.Linear(groups * m, 3)
    layer.weight.data = (layer.weight.data * 20).round()  # ties
    survives = torch.rand(layer.weight.shape) < density
    inputs = torch.zeros(1, groups * m, 4, 4) if kernel else torch.zeros(1, groups * m)
    structured = NM(n, m)(subject_of(network_of(layer), inputs, {"0.weight": survives}))
    assert torch.equal(structured.masks["0.weight"], brute_force(layer.weight, survives, n, m))
    assert structured.layers["0"].kept * m == layer.weight.numel() * n


@pytest.mark.parametrize("groups", [1, 2])
def test_the_inputs_of_a_transposed_convolution_are_those_of_the_convolution_that_it_transposes(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 6, 3, groups=groups)
    survives = torch.rand(layer.weight.shape) < 0.4
    network = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    result = NM(1, 4)(subject_of(network, torch.zeros(1, 3, 4, 4), {"1.weight": survives}))
    expected = brute_force(layer.weight.transpose(0, 1), survives.transpose(0, 1), 1, 4).transpose(0, 1)
    assert torch.equal(result.masks["1.weight"], expected)
    assert result.layers["1"].kept * 4 == layer.weight.numel()
    whole = {"0.weight": torch.ones(6, 8 // groups, 3, 3, dtype=torch.bool)}
    narrow = subject_of(nn.Sequential(nn.ConvTranspose2d(6, 8, 3, groups=groups)), torch.zeros(1, 6, 4, 4), whole)
    assert NM(1, 4)(narrow).layers["0"].form == "dense"


def mixed() -> nn.Sequential:
    return network_of(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 32, 1), nn.Conv2d(32, 30, 3),
        nn.Conv2d(30, 64, 1), nn.Conv2d(64, 64, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 96),
        nn.Linear(96, 10),
    )  # fmt: skip


def test_reports_count_nothing_as_skipped_and_say_why() -> None:
    structured = NM()(subject_of(mixed(), torch.zeros(1, 3, 9, 9)))
    told = {name: (report.form, report.density, report.note) for name, report in structured.layers.items()}
    sparse = "2:4: runs sparse on CUDA, in half precision and inference, where that is measured faster"
    whole = "2:4: runs whole, as no kernel is there for it"
    assert told == {
        "0": ("dense", 1.0, ""),
        "1": ("dense", 1.0, "1 inputs are no multiple of 4"),
        "2": ("unstructured", 0.5, sparse),
        "3": ("unstructured", 0.5, whole),
        "4": ("dense", 1.0, "30 inputs are no multiple of 4"),
        "5": ("unstructured", 0.5, whole),
        "8": ("unstructured", 0.5, sparse),
        "9": ("unstructured", 0.5, whole),
    }
    assert all(report.executed == report.size for report in structured.layers.values())
    assert structured.plan == NMPlan(2, 4, ("2", "8"))
    assert structured.masks["1.weight"].all()
    assert 0.5 < structured.layers["2"].retained_magnitude < 1


def test_no_kernel_runs_other_patterns() -> None:
    assert NM(1, 4)(subject_of(mixed(), torch.zeros(1, 3, 9, 9))).plan is None


def test_what_is_given_is_left_as_it_was() -> None:
    given = subject_of(mixed(), torch.zeros(1, 3, 9, 9))
    before = {name: mask.clone() for name, mask in given.masks.items()}
    NM()(given)
    assert all(torch.equal(mask, before[name]) for name, mask in given.masks.items())


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4)])
def test_impossible_patterns_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=rf"^n={n}, m={m}: "):
        NM(n, m)


def test_a_network_that_the_pattern_does_not_fit_is_refused() -> None:
    network, example = network_of(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)), torch.zeros(1, 3, 2, 2)
    NM(1, 3).check(TracedNetwork(network, example))
    with pytest.raises(ValueError, match=r"^m=4: "):
        NM(2, 4).check(TracedNetwork(network, example))


def test_weights_that_are_not_finite_are_refused() -> None:
    network = network_of(nn.Linear(4, 2))
    network.get_parameter("0.weight").data[0, 1] = float("nan")
    given = subject_of(network, torch.zeros(1, 4), {"0.weight": torch.ones(2, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"^0\.weight: "):
        NM()(given)


def test_the_highest_of_each_group_are_kept() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 0, 0, 7, 0]])
    assert nm_mask(scores, 2, 4).int().tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]
