"""Ratios against a network that is built smaller by hand, and PyTorch's FLOP counter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import LayerReport, StructureInput, StructureResult, Unstructured
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Match, Refill
from lt_lightning.tickets.making import Ratios, ratios

PRUNABLE = ("3", "7", "10")


def vgg_like(widths: tuple[int, int, int, int], inputs: int = 2) -> nn.Sequential:
    """Four convolutions with BatchNorm (the second and fourth with bias), a pooling, a linear layer."""
    a, b, c, d = widths
    return nn.Sequential(
        nn.Conv2d(inputs, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(),
        nn.Conv2d(c, d, 3, bias=True), nn.BatchNorm2d(d), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * d, 5),
    )  # fmt: skip


def pruned(network: nn.Module, example: Tensor, share: float) -> StructureInput:
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    full = {f"{name}.weight": torch.ones_like(weights[f"{name}.weight"], dtype=torch.bool) for name in PRUNABLE}
    masks = prune(full, {name: weights[name].abs() for name in full}, share)
    return StructureInput(TracedNetwork(network, example), masks, weights)


def ratios_of(subject: StructureInput, structured: StructureResult) -> Ratios:
    sizes = {name: parameter.numel() for name, parameter in subject.network.named_parameters()}
    return ratios(structured.layers, PRUNABLE, structured.masks, sizes)


def count(network: nn.Module, example: Tensor) -> tuple[int, int]:
    """FLOPs of one sample, and parameters."""
    with FlopCounterMode(display=False) as counter:
        network(example)
    return counter.get_total_flops(), sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("match", ["executed", "filters"])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_a_channel_ticket_counts_what_a_network_built_smaller_does(match: Match, share: float) -> None:
    torch.manual_seed(0)
    dense = vgg_like((8, 12, 16, 10)).eval()
    example = torch.randn(1, 2, 8, 8)
    subject = pruned(dense, example, share)
    structured = Refill(match=match, round_to=1)(subject)
    plan = structured.plan
    assert isinstance(plan, ChannelPlan)
    widths = [
        len(plan.outputs.get(name, range(size))) for name, size in zip(("0", *PRUNABLE), (8, 12, 16, 10), strict=True)
    ]
    small = vgg_like((widths[0], widths[1], widths[2], widths[3])).eval()
    flops, params = count(small, example)
    dense_flops, dense_params = count(dense, example)
    found = ratios_of(subject, structured)
    assert found.flops_ratio == pytest.approx(flops / dense_flops, rel=1e-12)
    assert found.params_ratio == pytest.approx(params / dense_params, rel=1e-12)
    prunable = [sum(net.get_parameter(f"{name}.weight").numel() for name in PRUNABLE) for net in (small, dense)]
    assert found.density == pytest.approx(prunable[0] / prunable[1], rel=1e-12)
    assert found.target_density == density(subject.masks)
    assert widths != [8, 12, 16, 10]


def test_the_network_built_smaller_computes_what_the_masked_one_does() -> None:
    torch.manual_seed(0)
    dense = vgg_like((8, 12, 16, 10)).double().eval()
    example = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    structured = Refill(round_to=1)(pruned(dense, example, 0.4))
    plan = structured.plan
    assert isinstance(plan, ChannelPlan)
    widths = {"0": 8, "1": 8, "3": 12, "4": 12, "7": 16, "8": 16, "10": 10, "11": 10, "14": 5}
    kept = {name: plan.outputs.get(name, torch.arange(width)) for name, width in widths.items()}
    small = vgg_like((len(kept["0"]), len(kept["3"]), len(kept["7"]), len(kept["10"]))).double().eval()
    state = dense.state_dict()
    for name, value in small.state_dict().items():
        layer = name.partition(".")[0]
        sliced = state[name][kept[layer]] if state[name].ndim else state[name]
        if sliced.ndim > 1 and layer in plan.inputs:
            sliced = sliced[:, plan.inputs[layer]]
        assert sliced.shape == value.shape
        value.copy_(sliced)
    masked = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(structured.masks.get(name, torch.ones(())))
        images = torch.randn(3, 2, 8, 8, dtype=torch.float64)
        assert torch.allclose(masked(images), small(images), rtol=1e-12, atol=1e-12)


def test_an_unstructured_ticket_runs_whole() -> None:
    dense = vgg_like((4, 4, 4, 4))
    example = torch.randn(1, 2, 8, 8)
    subject = pruned(dense, example, 0.25)
    found = ratios_of(subject, Unstructured()(subject))
    total = sum(parameter.numel() for parameter in dense.parameters())
    zeros = sum(int((~mask).sum()) for mask in subject.masks.values())
    assert found == Ratios(density(subject.masks), density(subject.masks), (total - zeros) / total, 1.0)


def test_an_unstructured_ticket_keeps_its_masks_and_says_so() -> None:
    subject = pruned(vgg_like((4, 4, 4, 4)), torch.randn(1, 2, 8, 8), 0.25)
    structured = Unstructured()(subject)
    assert structured.plan is None
    assert all(torch.equal(structured.masks[name], mask) for name, mask in subject.masks.items())
    assert all(structured.masks[name] is not mask for name, mask in subject.masks.items())
    assert {name: report.form for name, report in structured.layers.items()} == {
        "0": "dense", **dict.fromkeys(PRUNABLE, "unstructured"), "14": "dense",
    }  # fmt: skip
    assert {report.executed - report.size for report in structured.layers.values()} == {0}


def test_ratios_worked_by_hand() -> None:
    """Padding of blocks counts as executed; masks of other parameters as stored."""
    layers = {
        "stem": LayerReport(size=10, target=10, kept=10, executed=10, positions=4, form="dense"),
        "a": LayerReport(size=100, target=30, kept=40, executed=50, positions=2, form="blocks"),
        "b": LayerReport(size=60, target=20, kept=60, executed=60, positions=1, form="dense"),
    }
    masks: Masks = {"norm.weight": torch.tensor([True, False]), "a.weight": torch.zeros(100, dtype=torch.bool)}
    sizes = {"stem.weight": 10, "a.weight": 100, "b.weight": 60, "norm.weight": 2, "other": 8}
    assert ratios(layers, ["a", "b"], masks, sizes) == Ratios(
        target_density=50 / 160,
        density=110 / 160,
        params_ratio=(10 + 50 + 60 + 1 + 8) / 180,
        flops_ratio=(40 + 100 + 60) / (40 + 200 + 60),
    )
