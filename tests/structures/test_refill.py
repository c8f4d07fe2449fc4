"""Refill against work by hand, gradients, and networks that compute kept channels only."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import WideResNet, cifar_resnet, resnet18, resnet50
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, prunable_layers
from lt_lightning.pruning.masks import Masks, density, kept
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, retained_magnitude
from lt_lightning.structures.channel_choice import Coupling, channel_scores
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from tests.cases import slow_but

ENDS = ("stem", "classifier")
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: cifar_resnet(8, 3, width=8),
    "resnet18": lambda: resnet18(3, width=4),
    "wrn": lambda: WideResNet(10, 1, 3),
    "vgg": lambda: VGG(11, 3, width=4),
    "mobilenet": lambda: MobileNet(3, width=4),
    "resnet50": lambda: resnet50(3, width=4, stem="stride2"),
}
SHALLOW = [name for name in MODELS if name != "resnet50"]
COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)


def subject_of(
    network: nn.Module,
    example: Tensor,
    share: float,
    exempt: Sequence[str] = ENDS,
    gradients: dict[str, Tensor] | None = None,
) -> StructureInput:
    """The network pruned globally by magnitude."""
    layers = find_layers(network, example)
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    names = [layer.weight for layer in prunable_layers(layers, exempt)]
    full = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in names}
    masks = prune(full, {name: weights[name].abs() for name in names}, share)
    return StructureInput(TracedNetwork(network, example), masks, weights, gradients)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, biases and BatchNorm of generic values, filters of unequal strength."""
    generator = torch.Generator().manual_seed(seed)
    network.double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                    assert values is not None
                    values.copy_(torch.rand(values.shape, generator=generator, dtype=torch.float64) + low)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                strength = torch.rand(len(module.weight), generator=generator, dtype=torch.float64) + 0.2
                module.weight.mul_(strength.view(-1, *[1] * (module.weight.ndim - 1)))
    return network


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(MODELS[name]())


def mask_parameters(network: nn.Module, masks: Masks) -> nn.Module:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return network


# The small network, without building it: every layer sees and makes its planned channels only


def execute_plan(network: nn.Module, plan: ChannelPlan) -> nn.Module:
    """Every layer computes its kept outputs from its kept inputs, and zeros elsewhere; masks play no part."""
    for name in {*plan.outputs, *plan.inputs}:
        module = network.get_submodule(name)
        outputs = plan.outputs.get(name, torch.arange(_channels(module)))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs = plan.inputs.get(name, torch.arange(_inputs(module)))
            module.register_forward_pre_hook(_assert_zero_elsewhere(inputs))
            module.forward = _narrow(module, outputs, inputs)  # type: ignore[method-assign,assignment]
        else:
            module.forward = _narrow_norm(module, outputs)
    return network


def _channels(module: nn.Module) -> int:
    return module.num_features if isinstance(module, nn.modules.batchnorm._BatchNorm) else len(module.weight)  # type: ignore[arg-type]


def _inputs(module: nn.Conv2d | nn.Linear) -> int:
    return module.in_channels if isinstance(module, nn.Conv2d) else module.in_features


def _assert_zero_elsewhere(inputs: Tensor) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def check(_: nn.Module, args: tuple[Tensor]) -> None:
        dead = torch.ones(args[0].shape[1], dtype=torch.bool)
        dead[inputs] = False
        assert int(args[0][:, dead].count_nonzero()) == 0

    return check


def _spread(values: Tensor, outputs: Tensor, channels: int) -> Tensor:
    whole = values.new_zeros(values.shape[0], channels, *values.shape[2:])
    return whole.index_copy(1, outputs, values)


def _narrow(module: nn.Conv2d | nn.Linear, outputs: Tensor, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias[outputs]
        if isinstance(module, nn.Linear):
            return _spread(F.linear(x[:, inputs], module.weight[outputs][:, inputs], bias), outputs, len(module.weight))
        grouped = module.groups > 1
        weight = module.weight[outputs] if grouped else module.weight[outputs][:, inputs]
        groups = len(inputs) if grouped else 1
        values = F.conv2d(x[:, inputs], weight, bias, module.stride, module.padding, module.dilation, groups)
        return _spread(values, outputs, len(module.weight))

    return forward


def _narrow_norm(module: Any, outputs: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        mean, var = module.running_mean[outputs], module.running_var[outputs]
        affine = module.weight[outputs], module.bias[outputs]
        values = F.batch_norm(x[:, outputs], mean, var, *affine, module.training, module.momentum, module.eps)
        return _spread(values, outputs, module.num_features)

    return forward


def sgd_steps(network: nn.Module, masks: Masks | None, steps: int = 3) -> list[float]:
    """Trains on random images under weight decay; returns the losses."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.05)
    held = EnforcedMasks(network, masks or {})
    losses = []
    for _ in range(steps):
        images = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        torch.autograd.backward(loss)
        held.zero_gradients()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Every network once, and every coupling twice.
QUICK = [(name, COUPLINGS[index % len(COUPLINGS)]) for index, name in enumerate(MODELS)]


@pytest.mark.parametrize(("name", "coupling"), slow_but(QUICK, product(MODELS, COUPLINGS)))
def test_the_masked_network_is_the_small_one_before_and_after_training(name: str, coupling: Coupling) -> None:
    network = make(name)
    given = subject_of(network, torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.3)
    structured = Refill(coupling=coupling, round_to=1)(given)
    assert isinstance(structured.plan, ChannelPlan)
    assert structured.plan.outputs
    small = execute_plan(copy.deepcopy(network), structured.plan)  # dense values: dropped ones must play no part
    masked = mask_parameters(copy.deepcopy(network), structured.masks)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(masked.eval()(images), small.eval()(images), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(masked(images), network.eval()(images), rtol=1e-2, atol=1e-2)
    masked.train()
    small.train()
    assert sgd_steps(masked, structured.masks) == pytest.approx(sgd_steps(small, None), rel=1e-8)
    trained = dict(small.named_parameters())
    for key, parameter in masked.named_parameters():
        keep = structured.masks.get(key, torch.ones_like(parameter, dtype=torch.bool))
        assert int(parameter[~keep].count_nonzero()) == 0
        assert torch.allclose(parameter[keep], trained[key][keep], rtol=1e-7, atol=1e-9)
    still_small = execute_plan(copy.deepcopy(masked).eval(), structured.plan)  # asserts that dead inputs are zero
    with torch.no_grad():
        assert torch.allclose(masked.eval()(images), still_small(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", slow_but(SHALLOW, MODELS))
def test_what_was_dropped_can_be_anything(name: str) -> None:
    """Each side of a dropped channel alone: the writer's values, or the readers' weights for it."""
    network = make(name)
    given = subject_of(network, torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.3)
    structured = Refill(coupling="stream", round_to=1)(given)
    assert isinstance(structured.plan, ChannelPlan)
    masked = mask_parameters(copy.deepcopy(network), structured.masks).eval()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for side in ("writers", "readers"):
        changed = copy.deepcopy(masked)
        touched = 0
        for layer in given.layers.values():
            weight = changed.get_parameter(layer.weight)
            region = torch.zeros_like(weight, dtype=torch.bool)
            if side == "writers" and layer.name in structured.plan.outputs:
                region[:] = True
                region[structured.plan.outputs[layer.name]] = False
            elif side == "readers" and layer.name in structured.plan.inputs and layer.groups == 1:
                region[:] = True
                region[:, structured.plan.inputs[layer.name]] = False
            with torch.no_grad():
                weight[region] = torch.randn(int(region.sum()), dtype=torch.float64)
            touched += int(region.sum())
        assert touched > 0
        with torch.no_grad():
            assert torch.allclose(changed(images), masked(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", slow_but(SHALLOW, MODELS))
def test_executed_density_is_the_density_asked_for(name: str, coupling: Coupling) -> None:
    given = subject_of(make(name), torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.5)
    structured = Refill(coupling=coupling, round_to=1)(given)
    reports = [structured.layers[layer.name] for layer in given.prunable]
    executed = sum(report.executed for report in reports) / sum(report.size for report in reports)
    if coupling != "independent" or name in ("vgg", "mobilenet"):  # full streams may not let it go so low
        assert executed <= density(given.masks)
        assert executed == pytest.approx(density(given.masks), rel=0.06)
    for layer in given.layers.values():
        report = structured.layers[layer.name]
        full = torch.ones(layer.shape, dtype=torch.bool)
        assert report.target == int(given.masks.get(layer.weight, full).sum())
        assert report.kept == int(structured.masks.get(layer.weight, full).sum())
        assert report.kept == report.executed
        assert report.form == ("channels" if report.executed < report.size else "dense")
        assert report.form == "channels" or layer.weight not in given.masks or report.note


# Small networks of every kind of join, against gradients


class Add(nn.Module):
    """Biases and no normalisation, so that nothing but masks keeps channels at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        x = x + self.outer(F.silu(self.inner(x)))
        out: Tensor = self.last(F.silu(x).mean((2, 3)))
        return out


class Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 9, 1, bias=False)
        self.last = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        out: Tensor = self.last(F.silu(self.c(x)).mean((2, 3)))
        return out


class Depthwise(nn.Module):
    def __init__(self, multiplier: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8 * multiplier, 10, 1)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.point(F.silu(self.depth(F.silu(self.stem(x))))))
        out: Tensor = self.last(x.mean((2, 3)))
        return out


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten(),
        nn.Linear(8 * 4, 10), nn.SiLU(), nn.Linear(10, 4),
    )  # fmt: skip


class CatDepthwise(nn.Module):
    """A depthwise layer over two groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.silu(self.depth(torch.cat([self.a(x), self.b(x)], 1)))).mean((2, 3))
        return out


JOINS: dict[str, Callable[[], nn.Module]] = {
    "add": Add,
    "cat": Cat,
    "depthwise": lambda: Depthwise(1),
    "depthwise doubled": lambda: Depthwise(2),
    "cat depthwise": CatDepthwise,
    "flatten": flattened,
}


def influence(network: nn.Module, name: str, seeds: int = 3) -> Tensor:
    """Which of a parameter's values the output depends on: those with a gradient, by autograd."""
    parameter = network.get_parameter(name)
    found = torch.zeros_like(parameter, dtype=torch.bool)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        out = network(torch.randn(3, 3, 6, 6, generator=generator, dtype=torch.float64))
        probe = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((out * probe).sum(), parameter)
        found |= gradient != 0
    return found


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("exempt", [ENDS, ()])
def test_executed_weights_are_those_that_influence_the_output(
    name: str, coupling: Coupling, exempt: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    network = randomise(JOINS[name]())
    given = subject_of(network, torch.randn(1, 3, 6, 6, dtype=torch.float64), 0.4, exempt)
    structured = Refill(coupling=coupling, round_to=1)(given)
    masked = mask_parameters(copy.deepcopy(network), structured.masks).eval()
    for layer in given.layers.values():
        mask = structured.masks.get(layer.weight, torch.ones(layer.shape, dtype=torch.bool))
        live = influence(masked, layer.weight)
        executed = structured.layers[layer.name].executed
        if coupling == "independent":  # where a layer reads a stream as wide as it is anywhere
            assert executed >= int((live & mask).sum())
        else:
            assert executed == int((live & mask).sum())
            assert int((live & ~mask).sum()) == 0
    assert density(structured.masks) < 1


@pytest.mark.parametrize("name", slow_but([*JOINS, *SHALLOW], [*JOINS, *MODELS]))
def test_alternatives_are_followed_as_each_of_them_alone(name: str) -> None:
    torch.manual_seed(0)
    side = 6 if name in JOINS else 16
    graph = ChannelGraph((JOINS | MODELS)[name](), torch.randn(1, 3, side, side))
    draw = np.random.default_rng(0)
    groups = [group for group in graph.groups if not group.frozen]
    kept = {name: draw.random((5, 2, group.channels)) < 0.5 for group in groups for name in group.writers}
    together = graph.propagate(kept)
    for place in np.ndindex(5, 2):
        alone = graph.propagate({name: flags[place] for name, flags in kept.items()})
        for found, expected in ((together.outputs, alone.outputs), (together.inputs, alone.inputs)):
            assert found.keys() == expected.keys()
            for layer, flags in expected.items():
                assert np.array_equal(np.broadcast_to(found[layer], (5, 2, *flags.shape))[place], flags), layer


def test_scored_depthwise_layers_must_have_the_groups_channels() -> None:
    given = subject_of(randomise(Depthwise(2)), torch.randn(1, 3, 6, 6, dtype=torch.float64), 0.5, ())
    structured = Refill(round_to=1)(given)
    assert isinstance(structured.plan, ChannelPlan)
    kept_inputs = structured.plan.inputs["depth"]
    assert structured.plan.outputs["depth"].tolist() == [j for i in kept_inputs.tolist() for j in (2 * i, 2 * i + 1)]


# By hand


def hand_worked() -> StructureInput:
    """Stem of 2, two prunable 1x1 convolutions of 4 and 2 channels, classifier."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2, 2)
    )
    middle = torch.tensor([[3.0, -1.0], [0.5, 0.5], [-2.0, 2.0], [9.0, 1.0]])
    last = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, -2.5]])
    with torch.no_grad():
        network.get_parameter("2.weight").copy_(middle[..., None, None])
        network.get_parameter("4.weight").copy_(last[..., None, None])
    masks = {
        "2.weight": torch.tensor([[1, 1], [1, 1], [1, 1], [0, 1]], dtype=torch.bool)[..., None, None],
        "4.weight": torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)[..., None, None],
    }
    example = torch.zeros(1, 1, 1, 1)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return StructureInput(TracedNetwork(network, example), masks, weights)


def test_a_refill_worked_by_hand() -> None:
    """Layer 2 keeps 7 of 8 weights: ceil(7/8 * 4) = 4 channels. Layer 4 keeps 2 of 8: ceil(2/8 * 2) = 1 channel."""
    given = hand_worked()
    structured = Refill(match="filters", round_to=1)(given)
    assert structured.masks["2.weight"].flatten(1).tolist() == [[True, True]] * 4
    assert structured.masks["4.weight"].flatten(1).tolist() == [[False] * 4, [True] * 4]
    assert structured.masks["4.bias"].tolist() == [False, True]
    assert structured.masks["6.weight"].tolist() == [[False, True], [False, True]]
    assert set(structured.masks) == {"2.weight", "4.weight", "4.bias", "6.weight"}
    assert isinstance(structured.plan, ChannelPlan)
    assert {n: c.tolist() for n, c in structured.plan.outputs.items()} == {"4": [1]}
    assert {n: c.tolist() for n, c in structured.plan.inputs.items()} == {"6": [1]}
    assert [(n, r.target, r.kept, r.executed, r.form) for n, r in structured.layers.items()] == [
        ("0", 2, 2, 2, "dense"), ("2", 7, 8, 8, "dense"), ("4", 2, 4, 4, "channels"), ("6", 4, 2, 2, "channels"),
    ]  # fmt: skip
    assert structured.layers["2"].note == "all of its channels were kept"
    assert structured.layers["4"].retained_magnitude == 1.0


@pytest.mark.parametrize(
    ("score", "kept_channels"),
    [  # rows of the middle layer under its mask: (3, -1), (.5, .5), (-2, 2), (-, 1)
        ("l1", [0, 1, 2]),  # 4, 1, 4, 1: of equals the first
        ("l2", [0, 2, 3]),  # 3.2, 0.7, 2.8, 1
        ("count", [0, 1, 2]),  # 2, 2, 2, 1
        ("saliency", [1, 2, 3]),  # |1*3 + 3*-1| = 0, 1, |-2*1 - 2| = 4, 1
    ],
)
def test_scores_worked_by_hand(score: Any, kept_channels: list[int]) -> None:
    given = hand_worked()
    gradient = torch.tensor([[1.0, 3.0], [1.0, 1.0], [1.0, -1.0], [50.0, 1.0]])[..., None, None]
    scores = channel_scores(given.weights["2.weight"], given.masks["2.weight"], score, gradient)
    order = np.argsort(-scores.numpy(), kind="stable")
    assert sorted(order[:3].tolist()) == kept_channels


def test_saliency_is_activation_times_gradient() -> None:
    """Summed over samples and places by hooks, for convolutions without bias."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.SiLU(), nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.SiLU(), nn.Flatten(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    mask = torch.rand(6, 4, 3, 3) > 0.4
    mask_parameters(network, {"2.weight": mask})
    seen: list[Tensor] = []

    def see(_module: nn.Module, _args: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    network[2].register_forward_hook(see)
    torch.autograd.backward(F.cross_entropy(network(torch.randn(5, 3, 6, 6).double()), torch.randint(3, (5,))))
    assert seen[0].grad is not None
    expected = (seen[0] * seen[0].grad).sum((0, 2, 3)).abs()
    weight = network[2].weight
    assert isinstance(weight, nn.Parameter)
    scores = channel_scores(weight.detach(), mask, "saliency", weight.grad)
    assert torch.allclose(scores, expected, rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 120), st.data())
def test_filters_are_counted_exactly(channels: int, data: st.DataObject) -> None:
    """ceil(d C), or with `extra` ceil(k + extra (C - k)), in fractions: 0.55 * 100 is more than 55 in floats."""
    survivors = data.draw(st.integers(0, 2 * channels))
    extra = data.draw(st.sampled_from([Fraction(0), Fraction(1, 5), Fraction(1, 2), Fraction(1)]))
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, channels, 1), nn.Conv2d(channels, 1, 1))
    example = torch.zeros(1, 1, 1, 1)
    mask = (torch.arange(2 * channels) < survivors).view(channels, 2, 1, 1)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    given = StructureInput(TracedNetwork(network, example), {"1.weight": mask}, weights)
    structured = Refill(match="filters", round_to=1, extra=float(extra))(given)
    base = max(1, math.ceil(Fraction(survivors * channels, 2 * channels)))
    wanted = math.ceil(base + extra * (channels - base))
    assert structured.masks["1.weight"].any(1).sum() == wanted
    assert structured.layers["1"].executed == 2 * wanted


def chain(widths: Sequence[int]) -> nn.Module:
    """1x1 convolutions one after the other, the first and the last of which are not pruned."""
    return nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in zip([1, *widths], [*widths, 1], strict=True)])


def test_a_share_that_floats_exceed_is_not_rounded_up() -> None:
    network = chain([2, 100])
    example = torch.zeros(1, 1, 1, 1)
    mask = (torch.arange(200) < 110).view(100, 2, 1, 1)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    given = StructureInput(TracedNetwork(network, example), {"1.weight": mask}, weights)
    assert 110 / 200 * 100 > 55
    assert int(Refill(match="filters", round_to=1)(given).masks["1.weight"].any(1).sum()) == 55


@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.75])
def test_what_rounding_leaves_of_the_target_is_spent(share: float) -> None:
    """No layer could have another channel."""
    widths = [6, 24, 32, 40, 20]
    torch.manual_seed(0)
    given = subject_of(chain(widths), torch.zeros(1, 1, 1, 1), share)
    plan = Refill(round_to=1)(given).plan
    assert isinstance(plan, ChannelPlan)
    counts = [len(plan.outputs.get(str(i), range(width))) for i, width in enumerate(widths)]
    assert counts[0] == 6

    def executed(counts: Sequence[int]) -> int:
        return sum(a * b for a, b in pairwise(counts))

    target = kept(given.masks)
    assert executed(counts) <= target
    costs = [executed([*counts[:i], counts[i] + 1, *counts[i + 1 :]]) - executed(counts) for i in range(1, len(counts))]
    assert target - executed(counts) < min(costs)


@pytest.mark.parametrize(
    ("match", "counts"),
    [
        ("executed", (5, 6)),  # 8 + 32 weights: 2 * 5 + 5 * 6 = 40, where 2 * 6 + 6 * 5 were 42
        ("flops", (4, 5)),  # 16 * 8 + 32 = 160 multiply-adds: 16 * 2 * 4 + 4 * 5 = 148, where 5 channels take 160 alone
    ],
)
def test_equal_weights_and_equal_multiply_adds_by_hand(match: Any, counts: tuple[int, int]) -> None:
    """A layer of 2 inputs and 8 outputs at 16 positions, and one of 8 and 8 at one; half of the weights survive."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = {name: torch.zeros_like(weights[name], dtype=torch.bool) for name in ("1.weight", "3.weight")}
    masks["1.weight"][:, :1] = True
    masks["3.weight"][:, :4] = True
    given = StructureInput(TracedNetwork(network, torch.zeros(1, 1, 4, 4)), masks, weights)
    reports = Refill(match=match, round_to=1)(given).layers
    assert [reports[name].positions for name in ("1", "3")] == [16, 1]
    assert [reports[name].executed for name in ("1", "3")] == [2 * counts[0], counts[0] * counts[1]]


@pytest.mark.parametrize("coupling", ["stream", "inner"])
@pytest.mark.parametrize("name", ["resnet8", "vgg", "mobilenet"])
def test_refill_and_regroup_execute_equal_multiply_adds(name: str, coupling: Coupling) -> None:
    given = subject_of(make(name), torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.5)
    asked = sum(layer.positions * int(given.masks[layer.weight].sum()) for layer in given.prunable)
    regroup = Regroup(group_size=4, match="flops", clustering="random")
    for structure in (Refill(coupling=coupling, match="flops", round_to=1), regroup):
        reports = structure(given).layers
        executed = sum(reports[layer.name].executed * layer.positions for layer in given.prunable)
        assert executed <= asked
        assert executed == pytest.approx(asked, rel=0.06)


@pytest.mark.parametrize(("round_to", "step"), [(1, 1), (4, 4), (8, 8), (10, 10), (11, 5), (16, 5)])
def test_counts_are_rounded_up_to_a_multiple(round_to: int, step: int) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 40, 1), nn.Conv2d(40, 1, 1))
    given = subject_of(network, torch.zeros(1, 1, 1, 1), 0.33)
    wanted = math.ceil(Fraction(kept(given.masks), 2) / step) * step
    assert int(Refill(match="filters", round_to=round_to)(given).masks["1.weight"].any(1).sum()) == wanted


def test_executed_counts_meet_round_to_on_every_unit() -> None:
    given = subject_of(resnet18(3, width=16), torch.randn(1, 3, 16, 16), 0.4)
    structured = Refill(round_to=8)(given)
    assert isinstance(structured.plan, ChannelPlan)
    for name, outputs in structured.plan.outputs.items():
        layer = given.layers.get(name)
        if layer is not None:
            step = 8 if layer.shape[0] >= 32 else max(1, layer.shape[0] // 8)
            assert len(outputs) % step == 0


def test_inner_keeps_streams_whole_and_stream_shrinks_them() -> None:
    given = subject_of(make("resnet8"), torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.1)
    plans = {c: Refill(coupling=c, round_to=1)(given).plan for c in COUPLINGS}
    inner, stream, independent = plans["inner"], plans["stream"], plans["independent"]
    assert isinstance(inner, ChannelPlan)
    assert isinstance(stream, ChannelPlan)
    assert isinstance(independent, ChannelPlan)
    assert {name.rpartition(".")[2] for name in inner.outputs} == {"conv1", "bn1"}
    assert {name.rpartition(".")[2] for name in inner.inputs} == {"conv2"}
    first_stage = ["stem.conv", "stem.bn", "stages.0.0.conv2", "stages.0.0.bn2"]
    assert len({tuple(stream.outputs[name].tolist()) for name in first_stage}) == 1
    assert "classifier" not in stream.outputs
    assert stream.inputs["classifier"].tolist() == stream.outputs["stages.2.0.conv2"].tolist()
    # the stem is exempt, so with every layer choosing alone its stream stays alive, and conv2 adds less into it
    assert "stem.conv" not in independent.outputs
    assert "stages.0.0.conv2" in independent.outputs
    assert "stages.0.0.conv1" not in independent.inputs
    branch, shortcut = (set(independent.outputs[f"stages.1.0.{n}"].tolist()) for n in ("conv2", "shortcut.conv"))
    assert set(independent.inputs["stages.2.0.conv1"].tolist()) == branch | shortcut


def test_stream_scores_add_up_over_the_writers() -> None:
    network = Add()
    with torch.no_grad():
        network.outer.weight.zero_()
        network.outer.weight[[1, 3, 5], 0, 0, 0] = torch.tensor([3.0, 2.0, 1.0])
        network.stem.weight.zero_()
        network.stem.weight[[1, 3, 5, 7], 0, 0, 0] = torch.tensor([0.0, 0.0, 5.0, 2.5])
    example = torch.zeros(1, 3, 6, 6)
    layers = find_layers(network, example)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = {f"{name}.weight": torch.zeros(layers[name].shape, dtype=torch.bool) for name in ("stem", "outer")}
    masks["stem.weight"].view(-1)[::2] = True
    masks["stem.weight"][:, 0, 0, 0] = True
    masks["outer.weight"][:, 0, 0, 0] = True
    structured = Refill(match="filters", round_to=1)(StructureInput(TracedNetwork(network, example), masks, weights))
    count = math.ceil(Fraction(sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())) * 8)
    best = [5, 1, 7, 3]  # 6, 3, 2.5, 2
    assert isinstance(structured.plan, ChannelPlan)
    assert structured.plan.outputs["stem"].tolist() == sorted(best[:count])
    assert structured.plan.outputs["outer"].tolist() == sorted(best[:count])
    assert count == 2


def test_nothing_given_is_changed() -> None:
    given = subject_of(make("resnet8"), torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.5)
    state = copy.deepcopy(given.network.state_dict())
    masks = copy.deepcopy(given.masks)
    weights = copy.deepcopy(given.weights)
    Refill()(given)
    assert all(torch.equal(value, state[name]) for name, value in given.network.state_dict().items())
    assert all(torch.equal(mask, masks[name]) for name, mask in given.masks.items())
    assert all(torch.equal(weight, weights[name]) for name, weight in given.weights.items())


def test_a_layer_that_fell_back_says_why() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.sigmoid(self.a(self.stem(x))))
            out: Tensor = self.last(x.relu().mean((2, 3)))
            return out

    given = subject_of(Gated(), torch.zeros(1, 1, 4, 4), 0.5)
    report = Refill(match="filters", round_to=1, coupling="inner")(given).layers["a"]
    assert (report.form, report.density) == ("dense", 1.0)
    assert re.match(r"sigmoid \(test_refill.py:\d+\) turns zeros into other values", report.note)


def test_a_network_without_free_channels_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    given = subject_of(network, torch.zeros(1, 1, 2, 2), 0.5)
    with pytest.raises(ValueError, match=r"^coupling='stream'.*sigmoid \(1\).*sigmoid \(3\)"):
        Refill()(given)


def test_free_layers_do_not_pay_for_those_that_are_kept_whole() -> None:
    class MostlyFixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wide, self.narrow = nn.Conv2d(1, 64, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 10, 1)
            self.last = nn.Conv2d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.softmax(self.wide(torch.softmax(self.stem(x), 1)), 1)
            return self.last(F.relu(self.narrow(x))).mean((2, 3))  # type: ignore[no-any-return]

    given = subject_of(MostlyFixed(), torch.zeros(1, 1, 5, 5), 0.3)
    with pytest.warns(UserWarning, match=r"wide \(softmax over channels.*test_refill.py:\d+") as told:
        plan = Refill(round_to=1)(given).plan
    assert len(told) == 1
    assert isinstance(plan, ChannelPlan)
    kept_share = given.masks["narrow.weight"].double().mean()
    assert len(plan.outputs["narrow"]) == math.ceil(kept_share * 10 / 2)


def test_saliency_without_gradients_is_refused() -> None:
    given = subject_of(make("vgg"), torch.randn(1, 3, 16, 16, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match=r"^score='saliency': "):
        Refill(score="saliency")(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extra": 1.5}, "extra=1.5: "),
        ({"extra": -0.1}, "extra=-0.1: "),
        ({"round_to": 0}, "round_to=0: "),
        ({"score": "l3"}, "score='l3': "),
        ({"coupling": "none"}, "coupling='none': "),
        ({"match": "weights"}, "match='weights': "),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Refill(**arguments)


@pytest.mark.parametrize("shape", [(64, 1030, 3, 3), (1, 600_000), (2, 600_000), (600_000, 1)])
def test_large_weights_are_scored_as_small_ones(shape: tuple[int, ...]) -> None:
    """They are looked at block by block."""
    torch.manual_seed(0)
    weight, mask = torch.randn(shape), torch.rand(shape) < 0.3
    rows, flags = weight.flatten(1).double().numpy(), mask.flatten(1).numpy()
    np.testing.assert_allclose(channel_scores(weight, mask, "l1"), np.abs(rows * flags).sum(1), rtol=1e-13)
    np.testing.assert_array_equal(channel_scores(weight, mask, "count"), flags.sum(1))
    after = torch.rand(shape) < 0.5
    both = np.abs(rows * flags)[after.flatten(1).numpy()].sum() / np.abs(rows * flags).sum()
    assert retained_magnitude(weight, mask, after) == pytest.approx(both, rel=1e-12)


@pytest.mark.parametrize("model", slow_but(SHALLOW, MODELS))
def test_the_share_held_is_that_of_the_masks(model: str) -> None:
    torch.manual_seed(0)
    given = subject_of(MODELS[model](), torch.zeros(1, 3, 32, 32), 0.3)
    result = Refill(round_to=1)(given)
    for layer in given.prunable:
        name = layer.weight
        held = retained_magnitude(given.weights[name], given.masks[name], result.masks[name])
        assert result.layers[layer.name].retained_magnitude == pytest.approx(held, rel=1e-12)
    assert min(result.layers[layer.name].retained_magnitude for layer in given.prunable) < 1
