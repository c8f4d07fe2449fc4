"""Networks of random parts, cut at random, compute what the masked ones do, and no trial had to find a fault."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import keep_channels
from lt_lightning.network_graph.graph import ChannelGraph, Flags
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks


class Part(nn.Module):
    """A step that keeps the number of channels."""

    def __init__(self, step: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter | int) -> None:
        super().__init__()
        self.step = step
        for name, module in parts.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.step(self, x)
        return out


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        out: Tensor = self._conv_forward(x, w / (w.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-5), self.bias)
        return out


def conv(a: int, b: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups)


def _swapped(part: Any, x: Tensor) -> Any:
    a, b = part.a(x).chunk(2, 1)
    return torch.cat([b, a.relu()], 1)


def _shuffled(part: Any, x: Tensor) -> Any:
    x = part.a(x)
    return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def _gated(part: Any, x: Tensor) -> Any:
    squeezed = F.silu(part.a(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(part.b(squeezed))


def _dropped_path(part: Any, x: Tensor) -> Any:
    y = part.b(F.gelu(part.a(x)))
    if part.training:
        y = y * (torch.rand(len(y), 1, 1, 1, dtype=y.dtype) < 0.5) * 2
    return x + y


def _auxiliary(part: Any, x: Tensor) -> Any:
    x = F.relu(part.a(x))
    return x + 0.1 * part.b(x).mean() if part.training else x


IMAGES: dict[str, Callable[[int], Part]] = {
    "residual": lambda c: Part(
        lambda p, x: F.relu(x + p.b(F.relu(p.n(p.a(x))))), a=conv(c, 10), n=nn.BatchNorm2d(10), b=conv(10, c)
    ),
    "preact": lambda c: Part(lambda p, x: x - p.a(F.relu(p.n(x))), n=nn.BatchNorm2d(c), a=conv(c, c)),
    "swapped halves": lambda c: Part(_swapped, a=conv(c, c)),
    "shuffled": lambda c: Part(_shuffled, a=conv(c, c, 1)),
    "depthwise": lambda c: Part(lambda p, x: F.hardswish(p.b(p.a(x))), a=conv(c, c, 3, c), b=nn.BatchNorm2d(c)),
    "grouped": lambda c: Part(
        lambda p, x: p.c(F.elu(p.b(p.a(x)))), a=conv(c, 12, 1), b=conv(12, 6, 3, 3), c=conv(6, c, 1)
    ),
    "transposed": lambda c: Part(
        lambda p, x: F.avg_pool2d(p.a(F.relu(p.b(x))), 2), b=conv(c, 8), a=nn.ConvTranspose2d(8, c, 2, 2)
    ),
    "one group": lambda c: Part(lambda p, x: F.relu(p.n(p.a(x))), a=conv(c, c), n=nn.GroupNorm(1, c)),
    "two groups": lambda c: Part(lambda p, x: F.relu(p.n(p.a(x))), a=conv(c, c), n=nn.GroupNorm(2, c)),
    "instance norm": lambda c: Part(
        lambda p, x: torch.tanh(p.n(p.a(x))), a=conv(c, c), n=nn.InstanceNorm2d(c, affine=True)
    ),
    "prelu": lambda c: Part(lambda p, x: p.r(p.a(x)), a=conv(c, c, 1), r=nn.PReLU(c)),
    "gate": lambda c: Part(_gated, a=conv(c, 5, 1), b=conv(5, c, 1)),
    "functional": lambda c: Part(
        lambda p, x: F.conv2d(F.leaky_relu(F.conv2d(x, p.w)), p.v, padding=1),
        w=nn.Parameter(torch.randn(9, c, 1, 1) / c),
        v=nn.Parameter(torch.randn(c, 9, 3, 3) / 9),
    ),
    "standardised": lambda c: Part(lambda p, x: x + p.s(p.a(x)), a=conv(c, 7), s=Standardised(7, c, 1)),
    "stochastic depth": lambda c: Part(_dropped_path, a=conv(c, 8), b=conv(8, c, 1)),
    "auxiliary head": lambda c: Part(_auxiliary, a=conv(c, c), b=conv(c, 3, 1)),
    "dense connection": lambda c: Part(
        lambda p, x: p.b(torch.cat([x, F.relu(p.a(x)), x[:, ::2]], 1)), a=conv(c, 6), b=conv(c + 6 + c // 2, c, 1)
    ),
    "scale and shift": lambda c: Part(
        lambda p, x: p.a(x) * p.g + p.b,
        a=conv(c, c, 1),
        g=nn.Parameter(torch.rand(c, 1, 1)),
        b=nn.Parameter(torch.rand(c, 1, 1)),
    ),
    "twice": lambda c: Part(lambda p, x: p.a(torch.tanh(p.a(x))), a=conv(c, c, 1)),
    "resized": lambda c: Part(lambda p, x: F.interpolate(F.max_pool2d(p.a(x), 2), scale_factor=2.0), a=conv(c, c)),
    "number added": lambda c: Part(lambda p, x: p.a(x) + 1, a=conv(c, c, 1)),
    "softmax": lambda c: Part(lambda p, x: torch.softmax(p.a(x), 1), a=conv(c, c, 1)),
}


def _attended(part: Any, x: Tensor) -> Any:
    q, k, v = (each(part.n(x)).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (part.q, part.k, part.v))
    return x + part.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _attended_by_hand(part: Any, x: Tensor) -> Any:
    q, k, v = part.q(x).view(*x.shape[:2], 3, -1, 3).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2) / 3**0.5).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, -1e9)
    return x + part.o((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


def _shared_keys(part: Any, x: Tensor) -> Any:
    q, k, v = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (part.q, part.k, part.v))
    k, v = (each.repeat_interleave(2, 1) for each in (k, v))
    return x + part.o((torch.softmax(torch.einsum("bhtd,bhsd->bhts", q, k), -1) @ v).transpose(1, 2).flatten(2))


def _attended_beside_zeros(part: Any, x: Tensor) -> Any:
    q, k, v = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (part.q, part.k, part.v))
    bias = x.new_zeros((1, part.heads, 1, x.shape[1]))
    return x + part.o(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


def _glu(part: Any, x: Tensor) -> Any:
    a, b = part.a(x).chunk(2, -1)
    return x + part.b(F.silu(a) * b)


def linears(**sizes: tuple[int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(*size) for name, size in sizes.items()}


TOKENS: dict[str, Callable[[int], Part]] = {
    "perceptron": lambda c: Part(
        lambda p, x: x + p.b(F.gelu(p.a(p.n(x)))), n=nn.LayerNorm(c), **linears(a=(c, 14), b=(14, c))
    ),
    "attention": lambda c: Part(_attended, n=nn.LayerNorm(c), **linears(q=(c, 12), k=(c, 12), v=(c, 12), o=(12, c))),
    "attention by hand": lambda c: Part(_attended_by_hand, **linears(q=(c, 36), o=(12, c))),
    "shared keys": lambda c: Part(_shared_keys, **linears(q=(c, 12), k=(c, 6), v=(c, 6), o=(12, c))),
    "number of heads": lambda c: Part(
        _attended_beside_zeros, **linears(q=(c, 12), k=(c, 12), v=(c, 12), o=(12, c)), heads=4
    ),
    "attention of PyTorch": lambda c: Part(
        lambda p, x: p.n(x + p.m(x, x, x)[0]), n=nn.LayerNorm(c), m=nn.MultiheadAttention(c, c // 2, batch_first=True)
    ),
    "gated perceptron": lambda c: Part(_glu, **linears(a=(c, 18), b=(9, c))),
    "norm behind": lambda c: Part(lambda p, x: p.n(x + p.a(x)), n=nn.LayerNorm(c), **linears(a=(c, c))),
    "norm without a scale": lambda c: Part(
        lambda p, x: p.n(x + p.a(x)), n=nn.LayerNorm(c, elementwise_affine=False), **linears(a=(c, c))
    ),
    "mixed tokens": lambda c: Part(
        lambda p, x: x + p.b(F.gelu(p.a(x.transpose(1, 2)))).transpose(1, 2), **linears(a=(16, 11), b=(11, 16))
    ),
    "width in a number": lambda c: Part(
        lambda p, x: x + p.b(F.relu(p.n(p.a(x)).reshape(len(x), 16, 12))),
        n=nn.LayerNorm(12),
        **linears(a=(c, 12), b=(12, c)),
    ),
    "position": lambda c: Part(lambda p, x: x + p.e, e=nn.Parameter(torch.randn(1, 16, c))),
    "class token": lambda c: Part(
        lambda p, x: torch.cat([p.e.expand(len(x), -1, -1), x], 1)[:, 1:] + x, e=nn.Parameter(torch.randn(1, 1, c))
    ),
    "convolution of signals": lambda c: Part(
        lambda p, x: p.b(F.relu(p.a(x.transpose(1, 2)))).transpose(1, 2),
        a=nn.Conv1d(c, 7, 3, padding=1),
        b=nn.Conv1d(7, c, 1),
    ),
}


FROZEN = {"softmax", "number added", "standardised", "auxiliary head", "norm without a scale", "mixed tokens"}
WIDE = {
    "swapped halves",
    "shuffled",
    "dense connection",
    "width in a number",
}  # which count channels: of any that are left, halves differ


class Network(nn.Module):
    """Parts on images, then parts on the tokens that their places are."""

    def __init__(self, images: list[str], tokens: list[str], width: int) -> None:
        super().__init__()
        self.stem = conv(2, width)
        self.images = nn.Sequential(*[IMAGES[name](width) for name in images])
        self.tokens = nn.Sequential(*[TOKENS[name](width) for name in tokens])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.images(F.silu(self.stem(x)))
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def shaken(network: nn.Module) -> nn.Module:
    """No value is zero by chance."""
    network.double()
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(torch.rand_like(value) + (0.5 if "var" in name or "weight" in name else 0.1))
    return network


def drawn(graph: ChannelGraph, seed: int) -> dict[str, Flags]:
    """Units that are kept, at least one of each group; layers that write into a stream choose each for itself."""
    draw = np.random.default_rng(seed)
    kept: dict[str, Flags] = {}
    for group in graph.groups:
        if group.frozen or group.channels == 1:
            continue
        for index, name in enumerate(group.writers):
            if index == 0 or group.joined:
                units = draw.random(group.channels) < 0.6
                units[draw.integers(group.channels)] = True
            rows = group.rows[name]
            kept[name] = kept.get(name, np.ones(len(rows), dtype=bool)) & (units[rows] | (rows < 0))
    return kept


def same_values(first: nn.Module, second: nn.Module, x: Tensor) -> None:
    outputs = []
    for network in (first, second):
        torch.manual_seed(1)
        outputs.append(network(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)


def check(network: nn.Module, seed: int) -> ChannelGraph:
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    graph = TracedNetwork(network, x[:1]).graph
    found = [group.frozen for group in graph.groups if group.frozen.startswith("with fewer channels")]
    assert not found, "a trial had to find what no rule knew"
    masked = copy.deepcopy(network)
    liveness = graph.propagate(drawn(graph, seed))
    enforced = EnforcedMasks(masked, liveness.masks(masked))
    enforced.zero_weights()
    shrunk = keep_channels(masked, graph, liveness)
    small = shrunk.network
    holds = [enforced, EnforcedMasks(small, shrunk.masks)]
    for training in (False, True, False):
        same_values(masked.train(training), small.train(training), x)
    for _ in range(2):
        for each, hold in zip((masked.train(), small.train()), holds, strict=True):
            torch.manual_seed(2)
            each.zero_grad()
            each(x).square().sum().backward()
            hold.zero_gradients()
            with torch.no_grad():
                for parameter in each.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(1e-4 * parameter.grad)
    for training in (True, False):
        same_values(masked.train(training), small.train(training), x)
    return graph


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_every_part(name: str) -> None:
    torch.manual_seed(0)
    graph = check(shaken(Network([name] if name in IMAGES else [], [name] if name in TOKENS else [], 8)), 0)
    assert bool(graph.wide) == (name in WIDE)
    if name not in FROZEN:
        assert {group.frozen for group in graph.groups} <= {"", "output of the network"}


def check_parts(images: list[str], tokens: list[str], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    check(shaken(Network(images, tokens, width)), seed)


NETWORKS = {
    "images": st.lists(st.sampled_from(sorted(IMAGES)), max_size=3),
    "tokens": st.lists(st.sampled_from(sorted(TOKENS)), max_size=2),
    "width": st.sampled_from([6, 8, 12]),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=4, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**NETWORKS)
@example(["functional"], ["perceptron"], 8, 864)  # functions that write some channels of a wider stream
@example(["dense connection"], [], 12, 817)  # every second channel of those that are left, when four before are not
@example(["grouped", "preact", "dense connection"], ["attention of PyTorch", "position"], 6, 604)
@example(["softmax", "preact"], [], 6, 0)  # a normalisation of channels that no layer can drop
def test_random_networks(images: list[str], tokens: list[str], width: int, seed: int) -> None:
    check_parts(images, tokens, width, seed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(**NETWORKS)
def test_many_random_networks(images: list[str], tokens: list[str], width: int, seed: int) -> None:
    check_parts(images, tokens, width, seed)
