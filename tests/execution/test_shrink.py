"""A shrunk network computes what the masked one does: in float64, through training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import Shrunk, shrink_channels
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import WideResNet, cifar_resnet, resnet18, resnet50
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.resizing import Partial
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput, StructureResult
from lt_lightning.structures.channel_choice import Coupling
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from tests.cases import slow_but

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: cifar_resnet(8, 10, width=8),
    "resnet18": lambda: resnet18(10, width=8),
    "resnet50": lambda: resnet50(10, width=8, stem="imagenet"),
    "wide_resnet": lambda: WideResNet(14, 1, 10),
    "vgg": lambda: VGG(11, 10, width=8),
    "mobilenet": lambda: MobileNet(10, width=8),
}

# Through fifty layers of BatchNorm rounding errors grow tenfold a step, in a twin of the masked network whose weights
# are 1e-15 off just as in the shrunk one; at a small rate they do not, and a mistake would still show.
RATES = {"resnet50": 1e-5, "mobilenet": 1e-5}


def refilled(network: nn.Module, example: Tensor, density: float, coupling: Coupling) -> StructureResult:
    """A refilled ticket of a network at random values."""
    layers = find_layers(network, example)
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, density)
    return Refill(coupling=coupling, round_to=2)(StructureInput(TracedNetwork(network, example), masks, weights))


def in_float64(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """With random affine parameters: at their initial values BatchNorm's shifts are zero and hide mistakes."""
    torch.manual_seed(seed)
    network = make().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def check_equal(
    network: nn.Module, structured: StructureResult, images: Tensor, steps: int, tolerance: float, rate: float = 0.01
) -> Shrunk:
    """Trains both side by side and compares outputs, gradients and all that they hold."""
    assert isinstance(structured.plan, ChannelPlan)
    masked = copy.deepcopy(network)
    held = EnforcedMasks(masked, structured.masks)
    held.zero_weights()
    shrunk = shrink_channels(masked, structured.plan, images[:1])
    small = shrunk.network
    stored = sum(
        int(structured.masks[name].sum()) if name in structured.masks else parameter.numel()
        for name, parameter in network.named_parameters()
    )
    zeros = sum(int((~mask).sum()) for mask in shrunk.masks.values())
    assert sum(parameter.numel() for parameter in small.parameters()) - zeros == stored
    holds = [held, EnforcedMasks(small, shrunk.masks)]

    optimizers = [torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=1e-2) for net in (masked, small)]
    for training in (True, False):
        masked.train(training)
        small.train(training)
        torch.testing.assert_close(small(images), masked(images), rtol=0, atol=tolerance)
    masked.train()
    small.train()
    labels = torch.arange(len(images)) % 2
    for _ in range(steps):
        inputs = [images.clone().requires_grad_() for _ in range(2)]
        for net, given_images, optimizer in zip((masked, small), inputs, optimizers, strict=True):
            optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(net(given_images).flatten(1), labels)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=0, atol=tolerance)
        gradients = {name: p.grad for name, p in masked.named_parameters() if p.grad is not None}
        mine = {name: p.grad for name, p in small.named_parameters()}
        for name, (source, part) in shrunk.slices.parts.items():
            if name in mine and source in gradients:
                torch.testing.assert_close(mine[name], part.take(gradients[source]), rtol=0, atol=tolerance)
        for hold, optimizer in zip(holds, optimizers, strict=True):
            hold.zero_gradients()
            optimizer.step()
    state = small.state_dict()
    for name, value in shrunk.slices.take(masked.state_dict()).items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=tolerance)
    _check_put_back(masked, shrunk, structured)
    return shrunk


def _check_put_back(masked: nn.Module, shrunk: Shrunk, structured: StructureResult) -> None:
    """The small network's state under the full network's names computes the same again."""
    whole = shrunk.slices.put(shrunk.network.state_dict(), masked.state_dict())
    assert {name: value.shape for name, value in whole.items()} == {
        name: value.shape for name, value in masked.state_dict().items()
    }
    for name, mask in structured.masks.items():
        assert not whole[name][~mask].any()
    again = shrunk.slices.take(whole)
    assert all(torch.equal(value, shrunk.network.state_dict()[name]) for name, value in again.items())


COUPLINGS: tuple[Coupling, ...] = ("stream", "inner", "independent")
# Every network and every coupling once, but for the one of fifty layers.
QUICK = [
    ("resnet8", "inner", 0.1), ("resnet18", "stream", 0.1), ("wide_resnet", "independent", 0.1), ("vgg", "stream", 0.6),
    ("mobilenet", "stream", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "coupling", "density"), slow_but(QUICK, product(NETWORKS, COUPLINGS, (0.6, 0.1))))
def test_every_network_equals_its_masked_one(name: str, coupling: Coupling, density: float) -> None:
    network = in_float64(NETWORKS[name])
    size = 64 if name in ("resnet50", "mobilenet") else 16  # so that BatchNorm has more than a few values
    images = torch.randn(6, 3, size, size, dtype=torch.float64)
    structured = refilled(network, images[:1], density, coupling)
    shrunk = check_equal(network, structured, images, steps=2, tolerance=1e-10)
    if coupling != "independent":
        assert not any(isinstance(module, Partial) for module in shrunk.network.modules())
    assert type(shrunk.network) is type(network)


@pytest.mark.parametrize("coupling", ["stream", "independent"])
def test_twenty_steps_of_training_stay_equal(coupling: Coupling) -> None:
    network = in_float64(NETWORKS["resnet8"])
    images = torch.randn(16, 3, 12, 12, dtype=torch.float64)
    check_equal(network, refilled(network, images[:1], 0.3, coupling), images, steps=20, tolerance=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["stream", "inner", "independent"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("density", [0.6, 0.1])
def test_twenty_steps_of_every_network(name: str, coupling: Coupling, density: float) -> None:
    network = in_float64(NETWORKS[name])
    size = 64 if name in ("resnet50", "mobilenet") else 16
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    ticket = refilled(network, images[:1], density, coupling)
    tolerance = 1e-9 if name == "resnet50" else 1e-10  # even so, of gradients that sum over 4096 places
    check_equal(network, ticket, images, steps=20, tolerance=tolerance, rate=RATES.get(name, 0.01))


class Branches(nn.Module):
    """A stream that several layers write in part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.relu(self.first(x))
        x = F.relu(x + self.second(x))
        x = F.dropout(x, 0.0, self.training)
        return self.head(F.adaptive_avg_pool2d(x, 1).view(-1, 8))  # type: ignore[no-any-return]


def plan_and_masks(network: nn.Module, keep: dict[str, list[int]]) -> StructureResult:
    """A ticket that keeps given output channels of given layers, masks made by hand from the names."""
    masks = {}
    for name, channels in keep.items():
        layer = network.get_submodule(name)
        for part_name, value in layer.named_parameters():
            mask = torch.zeros(value.shape, dtype=torch.bool)
            mask[channels] = True
            masks[f"{name}.{part_name}"] = mask
    plan = ChannelPlan({name: torch.tensor(channels, dtype=torch.int64) for name, channels in keep.items()}, {})
    return StructureResult(masks, {}, plan)


def test_layers_that_write_a_part_of_a_stream() -> None:
    network = in_float64(Branches)
    keep = {"stem": [1, 2, 4, 5, 7], "norm": [1, 2, 4, 5, 7], "first": [2, 4, 7], "second": [4, 7]}
    structured = plan_and_masks(network, keep)
    for name in ("first.weight", "second.weight"):
        structured.masks[name] &= torch.isin(torch.arange(8), torch.tensor(keep["stem"])).view(1, 8, 1, 1)
    structured.masks["head.weight"] = torch.isin(torch.arange(8), torch.tensor(keep["stem"])).expand(2, 8).clone()
    images = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    small = check_equal(network, structured, images, steps=3, tolerance=1e-10).network
    partial = {name for name, module in small.named_modules() if isinstance(module, Partial)}
    assert partial >= {"first", "second"}


def test_a_dead_branch_keeps_one_channel_of_zeros() -> None:
    network = in_float64(Branches)
    masks = {"second.weight": torch.zeros(8, 8, 1, 1, dtype=torch.bool)}
    images = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    plan = ChannelPlan({"second": torch.empty(0, dtype=torch.int64)}, {})
    EnforcedMasks(network, masks).zero_weights()
    small = shrink_channels(network, plan, images[:1]).network
    assert len(small.get_parameter("second.weight")) == 1
    torch.testing.assert_close(small(images), network(images), rtol=0, atol=1e-12)


class RandomGraph(nn.Module):
    """Residual, concatenated and depthwise parts in a drawn order."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        width = 6
        for number, kind in enumerate(parts):
            if kind == "residual":
                self.add_module(f"a{number}", nn.Conv2d(width, 5, 3, padding=1, bias=False))
                self.add_module(f"n{number}", nn.BatchNorm2d(5))
                self.add_module(f"b{number}", nn.Conv2d(5, width, 1))
            elif kind == "cat":
                self.add_module(f"a{number}", nn.Conv2d(width, 4, 1))
                width += 4
            elif kind == "depthwise":
                self.add_module(f"a{number}", nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
                self.add_module(f"n{number}", nn.BatchNorm2d(width))
            else:  # strided, dilated
                self.add_module(f"a{number}", nn.Conv2d(width, 6, 3, stride=2, padding=2, dilation=2))
                width = 6
        self.head = nn.Linear(width * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        for number, kind in enumerate(self.parts):
            first = self.get_submodule(f"a{number}")
            if kind == "residual":
                inner = F.relu(self.get_submodule(f"n{number}")(first(x)))
                x = F.gelu(x + self.get_submodule(f"b{number}")(inner))
            elif kind == "cat":
                x = torch.cat([F.relu(first(x)), x], 1)
            elif kind == "depthwise":
                x = F.leaky_relu(self.get_submodule(f"n{number}")(first(x)))
            else:
                x = torch.tanh(first(x))
        return self.head(torch.flatten(F.adaptive_max_pool2d(x, 2), 1))  # type: ignore[no-any-return]


@settings(max_examples=5, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["residual", "cat", "depthwise", "strided"]), max_size=4),
    density=st.sampled_from([0.15, 0.4, 0.8]),
    coupling=st.sampled_from(["stream", "independent"]),
    seed=st.integers(0, 1000),
)
def test_random_graphs(parts: list[str], density: float, coupling: Coupling, seed: int) -> None:
    network = in_float64(lambda: RandomGraph(["residual", *parts]), seed)
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    check_equal(network, refilled(network, images[:1], density, coupling), images, steps=2, tolerance=1e-10)


class WithUnknown(nn.Module):
    """A softmax over channels mixes them: nothing may be dropped around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.mid = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(F.relu(self.stem(x))))
        x = torch.softmax(self.last(x), 1)
        return self.head(x).mean((2, 3))  # type: ignore[no-any-return]


def test_a_softmax_over_channels_keeps_them() -> None:
    network = in_float64(WithUnknown)
    images = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    structured = refilled(network, images[:1], 0.5, "stream")
    shrunk = check_equal(network, structured, images, steps=2, tolerance=1e-10)
    widths = {name: len(parameter) for name, parameter in shrunk.network.named_parameters()}
    assert widths["last.weight"] == 4
    assert widths["mid.weight"] < 4


def test_a_layer_without_channels_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plan = ChannelPlan({"0": torch.empty(0, dtype=torch.int64)}, {})
    with pytest.raises(ValueError, match=r"\b0\b"):
        shrink_channels(network, plan, torch.zeros(1, 2, 6, 6))


def test_network_given_is_left_as_it_was() -> None:
    network = cifar_resnet(8, 10, width=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    structured = refilled(network, torch.zeros(1, 3, 8, 8), 0.3, "stream")
    assert isinstance(structured.plan, ChannelPlan)
    shrink_channels(network, structured.plan, torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
