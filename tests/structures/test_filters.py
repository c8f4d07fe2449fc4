"""Whole filters against a brute-force choice, the network that executes them, and rounds that go on from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import shrink_channels
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import WideResNet, cifar_resnet
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import find_layers, prunable_layers
from lt_lightning.pruning.masks import Masks, kept
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.filters import Filters, Scope, Score
from lt_lightning.structures.plan import ChannelPlan
from tests.cases import slow_but

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: cifar_resnet(8, 3, width=8),
    "wrn": lambda: WideResNet(10, 1, 3),
    "vgg": lambda: VGG(11, 3, width=4),
    "mobilenet": lambda: MobileNet(3, width=4),
}
SCORES: tuple[Score, ...] = get_args(Score)
SCOPES: tuple[Scope, ...] = get_args(Scope)


def randomised(network: nn.Module) -> nn.Module:
    """Float64, with filters of unequal strength, and BatchNorm of generic values."""
    generator = torch.Generator().manual_seed(0)
    network.double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            strength = torch.rand(len(parameter), generator=generator, dtype=torch.float64) + 0.1
            if parameter.dim() > 1:
                parameter.mul_(strength.view(-1, *[1] * (parameter.dim() - 1)))
            elif "bias" in name:
                parameter.copy_(strength - 0.6)
            else:
                parameter.copy_(strength)
    return network


def subject_of(network: nn.Module, example: Tensor, share: float, masks: Masks | None = None) -> StructureInput:
    layers = find_layers(network, example)
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    names = [layer.weight for layer in prunable_layers(layers, ("stem", "classifier"))]
    masks = masks or {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    return StructureInput(
        TracedNetwork(network, example), prune(masks, {n: weights[n].abs() for n in names}, share), weights
    )


def chain(*widths: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *widths), widths, strict=False)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))


# The choice


@pytest.mark.parametrize(("scope", "share"), list(product(SCOPES, (0.7, 0.3, 0.08))))
def test_channels_are_those_of_a_brute_force_choice(scope: Scope, share: float) -> None:
    torch.manual_seed(1)
    widths = (6, 8, 10, 7)
    network = randomised(chain(*widths))
    given = subject_of(network, torch.zeros(1, 3, 8, 8, dtype=torch.float64), share)
    result = Filters(scope=scope)(given)
    pruned = ["1", "2", "3"]  # the stem keeps all
    strength = {name: given.weights[f"{name}.weight"].abs().flatten(1).mean(1).tolist() for name in pruned}
    order = {name: sorted(range(len(s)), key=lambda c, s=s: -s[c]) for name, s in strength.items()}  # type: ignore[misc]

    def executed(counts: dict[str, int]) -> int:
        return 9 * (6 * counts["1"] + counts["1"] * counts["2"] + counts["2"] * counts["3"])

    # Every threshold there is, of scores or of shares, to be passed by a channel.
    steps = [
        (-strength[name][channel] if scope == "global" else (rank + 1) / len(order[name]), rank, name)
        for name in pruned
        for rank, channel in enumerate(order[name])
    ]
    best = dict.fromkeys(pruned, 1)
    for number in range(len(steps) + 1):
        taken = [name for _, _, name in sorted(steps, key=lambda step: step[:2])[:number]]
        counts = {name: max(1, taken.count(name)) for name in pruned}
        if executed(counts) <= kept(given.masks):
            best = counts
    assert isinstance(result.plan, ChannelPlan)
    outputs = {name: result.plan.outputs[name].tolist() for name in result.plan.outputs}
    assert outputs == {name: sorted(order[name][: best[name]]) for name in pruned if best[name] < len(order[name])}
    assert sum(result.layers[name].executed for name in pruned) == executed(best)
    assert kept({name: result.masks[name] for name in given.masks}) == executed(best)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_scale_of_the_batch_norm_decides_whatever_the_weights(scope: Scope) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    norm = network[3]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, -0.9, 0.2, 0.8, -0.05, 0.7]))
    given = subject_of(network, torch.zeros(1, 3, 8, 8), 0.5)
    plan = Filters("scale", scope)(given).plan
    assert isinstance(plan, ChannelPlan)
    assert plan.outputs["2"].tolist() == plan.outputs["3"].tolist() == [1, 3, 5]
    plan = Filters("l1", scope)(replace(given, weights={**given.weights, "2.weight": torch.ones(6, 4, 3, 3)})).plan
    assert isinstance(plan, ChannelPlan)
    assert plan.outputs["2"].tolist() == [0, 1, 2]


def test_where_no_batch_norm_scales_the_channels_it_says_so() -> None:
    with pytest.raises(ValueError, match=r"^score='scale': .* 0$"):
        Filters("scale").check(TracedNetwork(chain(4, 4), torch.zeros(1, 3, 8, 8)))
    Filters("l1").check(TracedNetwork(chain(4, 4), torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize("options", [{"score": "l3"}, {"scope": "erk"}, {"coupling": "some"}, {"round_to": 0}])
def test_impossible_options_are_named(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}="):
        Filters(**options)  # type: ignore[arg-type]


# Execution


# Every network once, with every score and scope.
QUICK = [(name, SCORES[index % len(SCORES)], SCOPES[index // 2 % len(SCOPES)]) for index, name in enumerate(MODELS)]


@pytest.mark.parametrize(("name", "score", "scope"), slow_but(QUICK, product(MODELS, SCORES, SCOPES)))
def test_the_smaller_network_computes_what_the_masked_one_does(name: str, score: Score, scope: Scope) -> None:
    torch.manual_seed(0)
    network = randomised(MODELS[name]())
    example = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    given = subject_of(network, example, 0.4)
    structure = Filters(score, scope)
    structure.check(TracedNetwork(network, example))
    result = structure(given)
    assert isinstance(result.plan, ChannelPlan)
    masked = copy.deepcopy(network)
    with torch.no_grad():
        for key, parameter in masked.named_parameters():
            if key in result.masks:
                parameter.mul_(result.masks[key])
        small = shrink_channels(masked, result.plan, example).network
        assert (small(example) - masked(example)).abs().max() < 1e-10
    held = {key: mask for key, mask in result.masks.items() if key in given.masks}
    assert kept(held) == sum(result.layers[layer.name].executed for layer in given.prunable)
    assert 0.8 * kept(given.masks) < kept(held) <= kept(given.masks)
    sizes = dict(small.named_parameters())
    assert sum(sizes[layer.weight].numel() for layer in given.prunable if layer.weight in sizes) == kept(held)


@pytest.mark.parametrize("scope", SCOPES)
def test_rounds_drop_their_share_of_what_is_left_and_revive_nothing(scope: Scope) -> None:
    network = randomised(MODELS["resnet8"]())
    example = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    given = subject_of(network, example, 1.0)
    for _ in range(4):
        before = given.masks
        total = sum(mask.numel() for mask in before.values())
        asked = kept(before) * 0.7
        result = Filters(scope=scope)(subject_of(network, example, asked / total, before))
        masks = {name: result.masks[name] for name in before}
        assert 0.8 * asked < kept(masks) <= asked + 1
        assert all(not bool((masks[name] & ~before[name]).any()) for name in before)
        with torch.no_grad():  # as trained with held masks
            for name, parameter in network.named_parameters():
                if name in result.masks:
                    parameter.mul_(result.masks[name])
        given = replace(given, masks=masks)
