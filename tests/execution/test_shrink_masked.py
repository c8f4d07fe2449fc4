"""Networks shrunk by their masks or values alone compute what they did: in float64, through training."""

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
from torch.nn.utils import prune as torch_prune

from lt_lightning.execution.shrink_channels import Shrunk
from lt_lightning.execution.shrink_masked import shrink_masked
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import WideResNet, cifar_resnet, resnet18, resnet50
from lt_lightning.models.vgg import VGG
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.selection import prune
from tests.cases import slow_but

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: cifar_resnet(8, 10, width=8),
    "resnet18": lambda: resnet18(10, width=8),
    "resnet50": lambda: resnet50(10, width=8, stem="imagenet"),
    "wide_resnet": lambda: WideResNet(14, 1, 10),
    "vgg": lambda: VGG(11, 10, width=8),
    "mobilenet": lambda: MobileNet(10, width=8),
}
SIZES = {"resnet50": 64, "mobilenet": 64}  # so that BatchNorm has more than a few values
# Through fifty layers of BatchNorm rounding errors grow tenfold a step, in a twin of the masked network whose weights
# are 1e-15 off just as in the shrunk one; at a small rate they do not, and a mistake would still show.
RATES = {"resnet50": 1e-5, "mobilenet": 1e-5}
LAYERS = (nn.Conv2d, nn.Linear)


def in_float64(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """With random affine parameters and statistics: at their initial values they hide mistakes."""
    torch.manual_seed(seed)
    network = make().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean = torch.where(torch.rand(module.num_features) < 0.5, 0.0, 0.3).double()
    return network


def random_masks(network: nn.Module, dead: float, seed: int) -> Masks:
    """Weights pruned one by one, by rows and by columns; biases, scales and shifts pruned by channel."""
    generator = torch.Generator().manual_seed(seed)

    def chance(*shape: int, of: float) -> Tensor:
        return torch.rand(shape, generator=generator) < of

    masks = {}
    for name, module in network.named_modules():
        if isinstance(module, LAYERS):
            shape = module.weight.shape
            rows, columns = chance(shape[0], 1, of=1 - dead), chance(1, shape[1], of=1 - dead)
            columns |= shape[1] == 1  # of which a depthwise layer would die
            pairs = (rows & columns).view(*shape[:2], *[1] * (len(shape) - 2))
            masks[f"{name}.weight"] = chance(*shape, of=0.5) & pairs
            if module.bias is not None:
                masks[f"{name}.bias"] = rows.flatten() | chance(shape[0], of=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            masks[f"{name}.weight"] = chance(module.num_features, of=1 - dead / 2)
            masks[f"{name}.bias"] = chance(module.num_features, of=1 - dead)
    return masks


def compare(network: nn.Module, masks: Masks, images: Tensor, steps: int = 20, rate: float = 0.01) -> Shrunk:
    """Trains the masked and the shrunk network side by side; outputs, gradients and parameters stay equal."""
    masked = copy.deepcopy(network)
    held = EnforcedMasks(masked, masks)
    held.zero_weights()
    shrunk = shrink_masked(masked, images[:1], masks)
    small = shrunk.network
    holds = [held, EnforcedMasks(small, shrunk.masks)]
    assert all(parameter.numel() for parameter in small.parameters())
    optimizers = [torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=1e-2) for net in (masked, small)]
    labels = torch.arange(len(images)) % 2
    assert_same_outputs(masked, small, images)
    masked.train()
    small.train()
    for _ in range(steps):
        inputs = [images.clone().requires_grad_() for _ in range(2)]
        for net, given_images, optimizer, hold in zip((masked, small), inputs, optimizers, holds, strict=True):
            optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(net(given_images).flatten(1), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            hold.zero_gradients()
            optimizer.step()
        gradients = [torch.zeros_like(images) if x.grad is None else x.grad for x in inputs]
        torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)
    assert_same_outputs(masked, small, images)
    state = shrunk.slices.take(masked.state_dict())
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.detach(), state[name], rtol=0, atol=1e-10)
    again = copy.deepcopy(network)
    again.load_state_dict(shrunk.slices.put(small.state_dict(), masked.state_dict()))
    assert_same_outputs(masked, again, images)
    return shrunk


def assert_same_outputs(first: nn.Module, second: nn.Module, images: Tensor) -> None:
    """In both modes; statistics are left as they were."""
    for training in (True, False):
        copies = [copy.deepcopy(net).train(training) for net in (first, second)]
        torch.testing.assert_close(copies[1](images), copies[0](images), rtol=0, atol=1e-10)


def widths(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(m.weight.shape[:2]) for name, m in network.named_modules() if isinstance(m, LAYERS)}


QUICK = [("resnet8", 0.3), ("resnet18", 0.1), ("wide_resnet", 0.3), ("vgg", 0.1)]


@pytest.mark.parametrize(("name", "dead"), slow_but(QUICK, product(NETWORKS, (0.1, 0.3))))
def test_every_network_at_random_masks(name: str, dead: float) -> None:
    network = in_float64(NETWORKS[name])
    size = SIZES.get(name, 16)
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    masks = random_masks(network, dead, 1)
    shrunk = compare(network, masks, images, steps=2, rate=RATES.get(name, 0.01))
    assert sum(map(torch.numel, shrunk.network.parameters())) < sum(map(torch.numel, network.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dead", [0.1, 0.3])
def test_twenty_steps_of_every_network(name: str, dead: float) -> None:
    network = in_float64(NETWORKS[name])
    size = SIZES.get(name, 16)
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    compare(network, random_masks(network, dead, 2), images, steps=20, rate=RATES.get(name, 0.01))


@pytest.mark.parametrize("name", slow_but(["resnet8"], ["resnet8", "vgg", "mobilenet"]))
def test_an_unstructured_ticket_at_extreme_sparsity(name: str) -> None:
    """Only weights are pruned; filters that die are left out, though BatchNorm emits a shift in their place."""
    network = in_float64(NETWORKS[name])
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    masks = full_masks(prunable_layers(find_layers(network, images[:1]), ("stem", "classifier")))
    masks = prune(masks, {key: network.get_parameter(key).detach().abs() for key in masks}, 0.005)
    shrunk = compare(network, masks, images, steps=3)
    computed = {key: len(parameter) for key, parameter in shrunk.network.named_parameters() if key in masks}
    assert sum(computed.values()) < 0.7 * sum(len(mask) for mask in masks.values())


PARTS = (
    "residual", "projection", "minus", "cat", "depthwise", "grouped", "twice", "squeeze", "sigmoid", "softplus",
    "strided", "prelu", "pooled", "softmax", "shifted",
)  # fmt: skip


class RandomGraph(nn.Module):
    """Parts in a drawn order."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        width = 6
        for number, kind in enumerate(parts):
            layers: list[nn.Module] = []
            match kind:
                case "residual" | "minus":
                    layers = [nn.Conv2d(width, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, width, 1)]
                case "projection":
                    layers = [nn.Conv2d(width, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(width, 6, 1, 2)]
                    width = 6
                case "cat":
                    layers = [nn.Conv2d(width, 4, 1)]
                    width += 4
                case "depthwise":
                    layers = [nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), nn.BatchNorm2d(2 * width)]
                    width *= 2
                case "grouped":
                    layers = [nn.Conv2d(width, 9, 1), nn.Conv2d(9, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6)]
                    width = 6
                case "twice":
                    layers = [nn.Conv2d(width, width, 1)]
                case "squeeze":
                    layers = [nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)]
                case "strided":
                    layers = [nn.Conv2d(width, 6, 3, stride=2, padding=2, dilation=2)]
                    width = 6
                case "prelu":
                    layers = [nn.Conv2d(width, 7, 1), nn.PReLU(7)]
                    width = 7
                case "sigmoid" | "softplus" | "softmax" | "shifted":
                    layers = [nn.Conv2d(width, 6, 1)]
                    width = 6
            for index, layer in enumerate(layers):
                self.add_module(f"p{number}_{index}", layer)
        self.head = nn.Linear(width * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for number, kind in enumerate(self.parts):
            layers = [self.get_submodule(f"p{number}_{i}") for i in range(3) if hasattr(self, f"p{number}_{i}")]
            match kind:
                case "residual":
                    x = F.gelu(x + layers[2](F.silu(layers[1](layers[0](x)))))
                case "minus":
                    x = x - layers[2](F.silu(layers[1](layers[0](x))))
                case "projection":
                    x = layers[1](layers[0](x)) + layers[2](x)
                case "cat":
                    x = torch.cat([layers[0](x), x], 1)
                case "depthwise":
                    x = F.leaky_relu(layers[1](layers[0](x)))
                case "grouped":
                    x = torch.tanh(layers[2](layers[1](layers[0](x))))
                case "twice":
                    x = layers[0](torch.tanh(layers[0](x)))
                case "squeeze":
                    x = x * torch.sigmoid(layers[1](F.relu(layers[0](x.mean((2, 3), keepdim=True)))))
                case "pooled":
                    x = F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 2, ceil_mode=True)
                case "sigmoid":
                    x = torch.sigmoid(layers[0](x))
                case "softplus":
                    x = F.softplus(layers[0](x))
                case "shifted":
                    x = 1 - layers[0](x)
                case "softmax":
                    x = torch.softmax(layers[0](x), 1)
                case "prelu":
                    x = layers[1](layers[0](x))
                case _:
                    x = layers[0](x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))  # type: ignore[no-any-return]


@settings(max_examples=6, deadline=None)
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=5),
    dead=st.sampled_from([0.0, 0.3, 0.6, 0.9]),
    seed=st.integers(0, 1000),
)
def test_random_graphs(parts: list[str], dead: float, seed: int) -> None:
    network = in_float64(lambda: RandomGraph(parts), seed)
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    masks = random_masks(network, dead, seed)
    compare(network, masks, images, steps=5)

    EnforcedMasks(network, masks).zero_weights()
    by_value = shrink_masked(network, images[:1])
    assert by_value.masks == {}
    torch.testing.assert_close(by_value.network.eval()(images), network.eval()(images), rtol=0, atol=1e-10)


def test_channels_of_zeros_are_left_out_and_shifts_stay() -> None:
    conv, norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
    network = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        conv.weight[:3] = 0
        norm.bias.copy_(torch.tensor([-0.5, 0.5, 0.0, 0.0]))
    images = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    small = shrink_masked(network, images[:1]).network
    assert widths(small) == {"0": (3, 1), "3": (2, 3)}  # all but the one without a filter and a shift
    torch.testing.assert_close(small.eval()(images), network.eval()(images), rtol=0, atol=1e-12)

    # In training any shift may move: only what is masked is dead.
    masks = {"0.weight": conv.weight != 0}
    assert widths(shrink_masked(network, images[:1], masks).network) == {"0": (4, 1), "3": (2, 4)}
    masks["1.bias"] = torch.tensor([True, True, False, True])
    assert widths(shrink_masked(network, images[:1], masks).network) == {"0": (3, 1), "3": (2, 3)}


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(1, 8)], ids=["layer norm", "group norm"])
@pytest.mark.parametrize("by_mask", [True, False])
def test_a_channel_that_nobody_reads_counts_in_the_statistics_of_its_normalisation(
    norm: nn.Module, by_mask: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2)).double()
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 0] = False
    with torch.no_grad():
        network.get_parameter("2.weight").mul_(mask)
        network.get_parameter("0.bias")[0] = 3.0
    inputs = torch.randn(5, 4, dtype=torch.float64)
    small = shrink_masked(network, inputs, {"2.weight": mask} if by_mask else None).network
    torch.testing.assert_close(small.eval()(inputs), network.eval()(inputs), rtol=0, atol=1e-12)


def test_dead_blocks_keep_one_channel() -> None:
    network = in_float64(NETWORKS["resnet18"])
    masks = {
        f"{name}.{part}": torch.zeros_like(parameter, dtype=torch.bool)
        for name in ("stages.1.1.conv1", "stages.1.1.bn1", "stages.3.1.conv1", "stages.3.1.bn1")
        for part, parameter in network.get_submodule(name).named_parameters()
    }
    small = compare(network, masks, torch.randn(4, 3, 16, 16, dtype=torch.float64), steps=2).network
    found = widths(small)
    assert (found["stages.1.1.conv1"][0], found["stages.1.1.conv2"][1], found["stages.3.1.conv1"][0]) == (1, 1, 1)


@pytest.mark.parametrize("name", ["conv.weight", "last.weight"])
def test_a_network_cut_through_emits_its_biases(name: str) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mid = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 3, 1, bias=False)
            self.last = nn.Conv2d(3, 2, 1, bias=name == "conv.weight")

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.mid(torch.tanh(self.conv(x))))).mean((2, 3))  # type: ignore[no-any-return]

    network = in_float64(Chain)
    masks = {name: torch.zeros_like(network.get_parameter(name), dtype=torch.bool)}
    compare(network, masks, torch.randn(4, 2, 5, 5, dtype=torch.float64), steps=2)


def test_a_result_that_is_also_read_inside_is_kept() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            early = self.a(x)
            return torch.stack([early.sum((1, 2, 3)), self.b(early).sum((1, 2, 3))], 1)

    class Tuple(Heads):
        def forward(self, x: Tensor) -> Tensor:
            early = self.a(x)
            return early, self.b(early)  # type: ignore[return-value]

    masks = {"b.weight": torch.tensor([True, False, True, False]).view(1, 4, 1, 1).expand(3, 4, 1, 1)}
    images = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    compare(in_float64(Heads), masks, images, steps=2)
    network = in_float64(Tuple)
    EnforcedMasks(network, masks).zero_weights()
    for got, expected in zip(shrink_masked(network, images, masks).network(images), network(images), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_parameter_with_two_uses_keeps_its_size() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 1, bias=False) for _ in range(3))
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out = self.b(torch.tanh(self.a(x))) + F.conv2d(x, self.c.weight) + self.c(x)
            return out.mean((2, 3))  # type: ignore[no-any-return]

    network = in_float64(Tied)
    rows = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    images = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    small = compare(network, {"a.weight": rows, "c.weight": rows.transpose(0, 1)}, images, steps=2).network
    assert small.get_parameter("a.weight") is small.get_submodule("b").weight


def test_masks_that_are_not_applied_yet_leave_a_layer_unknown() -> None:
    """torch.nn.utils.prune computes the weight from two others; made permanent, the network shrinks."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    torch_prune.custom_from_mask(network[0], "weight", torch.tensor([1.0, 0, 1, 0]).view(4, 1, 1, 1).expand(4, 1, 3, 3))  # type: ignore[no-untyped-call]
    torch_prune.custom_from_mask(network[0], "bias", torch.tensor([1.0, 0, 1, 0]))  # type: ignore[no-untyped-call]
    images = torch.randn(2, 1, 5, 5)
    expected = network(images)
    before = shrink_masked(network, images)
    assert sum(map(torch.numel, before.network.parameters())) == sum(map(torch.numel, network.parameters()))
    torch.testing.assert_close(before.network(images), expected)
    for part in ("weight", "bias"):
        torch_prune.remove(network[0], part)  # type: ignore[no-untyped-call]
    after = shrink_masked(network, images)
    assert after.kept_whole == ()
    assert widths(after.network) == {"0": (2, 1), "2": (2, 2)}
    torch.testing.assert_close(after.network(images), expected)


class OnPositions(nn.Module):
    """A perceptron on a table of positions, whose results are added to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.randn(5, 2))
        self.first, self.second, self.tokens = nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x) + self.second(self.first(self.table).tanh()))  # type: ignore[no-any-return]


def test_a_bias_keeps_a_channel_that_is_computed_from_a_table() -> None:
    torch.manual_seed(0)
    network = OnPositions().double()
    dead = torch.tensor([True, True, False, False, False, False])
    masks = {"first.weight": ~dead[:, None].expand(6, 2), "first.bias": torch.tensor([False, *[True] * 5])}
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    small = shrink_masked(network, x[:1], masks).network
    assert small.first.weight.shape == (5, 2)  # type: ignore[union-attr]
    torch.testing.assert_close(small(x), network(x))
