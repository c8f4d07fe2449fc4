"""Channel graphs: groups, what freezes them, and liveness against gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup

Step = Callable[["Middle", Tensor], Tensor]


class Middle(nn.Module):
    """Convolution `a` (8 channels), the step under test, convolution `b`, mean, linear layer `c`."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Linear(8, 2)
        self.other = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Conv2d(16, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.doubled = nn.Conv2d(8, 16, 1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.bare_norm = nn.BatchNorm2d(8, affine=False)
        self.layer_norm = nn.LayerNorm(8)
        self.gate = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.lifted = nn.Hardtanh(0.5, 1.0)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        self_x = self.step(self, self.a(x))
        out: Tensor = self.c(self.b(self_x).mean((2, 3)))
        return out


def group_of(step: Step) -> tuple[ChannelGroup, ChannelGraph]:
    """The group that `a` writes."""
    graph = ChannelGraph(Middle(step), torch.randn(1, 1, 8, 8))
    return next(group for group in graph.groups if "a" in group.writers), graph


KEEPS_ZERO: dict[str, Step] = {
    "relu": lambda m, x: F.relu(x, inplace=True),
    "method": lambda m, x: x.relu(),
    "gelu": lambda m, x: F.gelu(x),
    "silu": lambda m, x: F.silu(x),
    "tanh": lambda m, x: torch.tanh(x),
    "leaky": lambda m, x: F.leaky_relu(x, 0.1),
    "hardswish": lambda m, x: F.hardswish(x),
    "norm": lambda m, x: m.norm(x),
    "max_pool2d": lambda m, x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda m, x: F.avg_pool2d(x, 2),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, 4),
    "interpolate": lambda m, x: F.interpolate(x, scale_factor=2.0),
    "dropout": lambda m, x: F.dropout(x, 0.1, m.training),
    "scaled": lambda m, x: x * 0.5,
    "negated": lambda m, x: -x,
    "doubled": lambda m, x: x + x,
    "mean over places": lambda m, x: x.mean((2, 3), keepdim=True),
    "depthwise": lambda m, x: m.depthwise(x),
}


@pytest.mark.parametrize("name", KEEPS_ZERO)
def test_operations_that_keep_zeros_leave_channels_free(name: str) -> None:
    group, graph = group_of(KEEPS_ZERO[name])
    assert (group.writers, group.frozen, graph.unknown) == (("a",), "", [])
    assert group.followers == (("depthwise",) if name == "depthwise" else ())
    assert not group.joined
    dead = np.zeros(8, dtype=bool)
    dead[[1, 4]] = True
    liveness = graph.propagate({"a": ~dead})
    assert np.flatnonzero(~liveness.inputs["b"]).tolist() == [1, 4]
    network = Middle(KEEPS_ZERO[name]).eval()
    with torch.no_grad():
        network.a.weight[torch.from_numpy(dead)] = 0
        assert network.a.bias is not None
        network.a.bias[torch.from_numpy(dead)] = 0
        for follower in (network.depthwise, network.norm):
            assert follower.bias is not None
            follower.bias[torch.from_numpy(dead)] = 0
        seen = KEEPS_ZERO[name](network, network.a(torch.randn(2, 1, 8, 8)))
    assert torch.equal(seen.abs().amax((0, 2, 3)) == 0, torch.from_numpy(dead))


FREEZES: dict[str, Step] = {
    "softmax": lambda m, x: F.softmax(x, 1),
    "add_alpha": lambda m, x: torch.add(x, x.relu(), alpha=2),
    "weight norm": lambda m, x: m.normed(x),
    "add_size": lambda m, x: x + x.size(1),
    "pad": lambda m, x: F.pad(x, (1, 1)),
    "bare_norm": lambda m, x: m.bare_norm(x),
    "layer_norm": lambda m, x: m.layer_norm(x),
    "amax over channels": lambda m, x: x * x.amax(1, keepdim=True),
    "cat with itself": lambda m, x: m.wide(torch.cat([x, x], 1)),
    "cat along places": lambda m, x: torch.cat([x, x.relu()], 2),
    "chunk": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "max with indices": lambda m, x: x * torch.max(x, dim=1, keepdim=True)[0],
    "permute": lambda m, x: x.permute(0, 1, 3, 2),
    "shuffle": lambda m, x: x.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8),
    "gate": lambda m, x: x * m.gate,
}
LIFTS: dict[str, Step] = {
    "sigmoid": lambda m, x: torch.sigmoid(x),
    "exp": lambda m, x: x.exp(),
    "softplus": lambda m, x: F.softplus(x),
    "add": lambda m, x: x + 1,
    "sub": lambda m, x: 1 - x,
    "lifted": lambda m, x: m.lifted(x),
    "squeeze and excite": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("name", FREEZES)
def test_unknown_operations_keep_their_channels_and_are_named(name: str) -> None:
    group, graph = group_of(FREEZES[name])
    assert group.frozen.startswith("unknown operation ")
    assert graph.unknown
    assert group.frozen.removeprefix("unknown operation ") in graph.unknown


@pytest.mark.parametrize("dim", [1, -3, (1,), (-3, 0)])
def test_a_mean_over_channels_is_not_one_over_places(dim: int | tuple[int, ...]) -> None:
    """Its rows would pass for channels where there are as many."""

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.a(x).mean(dim, keepdim=dim == (-3, 0)).reshape(1, -1))
            return out

    graph = ChannelGraph(Averaged(), torch.randn(1, 1, 8, 8))
    assert [group.frozen for group in graph.groups] == ["unknown operation mean", "output of the network"]


@pytest.mark.parametrize("name", LIFTS)
def test_operations_that_lift_zeros_are_known_but_freeze(name: str) -> None:
    group, graph = group_of(LIFTS[name])
    assert group.frozen.startswith("operation ")
    assert group.frozen.endswith(" turns zeros into other values")
    assert graph.unknown == []


def test_a_grouped_convolution_keeps_its_channels() -> None:
    assert group_of(lambda m, x: m.grouped(x))[0].frozen == "grouped convolution grouped"


def test_additions_unite_and_a_product_does_too() -> None:
    class Stream(nn.Module):
        def __init__(self, product: bool) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(2, 4, 1) for _ in range(2))
            self.last = nn.Conv2d(4, 1, 1)
            self.product = product

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.convs[0](x), self.convs[1](x)
            out: Tensor = self.last(a * b if self.product else a + b)
            return out

    kept = {"convs.0": np.array([1, 1, 0, 0], bool), "convs.1": np.array([1, 0, 1, 0], bool)}
    for product, live in ((False, [1, 1, 1, 0]), (True, [1, 0, 0, 0])):
        graph = ChannelGraph(Stream(product), torch.zeros(1, 2, 3, 3))
        assert [(g.writers, g.joined, g.frozen) for g in graph.groups] == [
            (("convs.0", "convs.1"), True, ""),
            (("last",), False, "output of the network"),
        ]
        liveness = graph.propagate(kept)
        assert liveness.inputs["last"].tolist() == live
        # what only makes products with a dead partner is read by nobody
        assert liveness.outputs["convs.0"].tolist() == ([1, 0, 0, 0] if product else [1, 1, 0, 0])


def test_channels_that_nobody_reads_are_not_computed() -> None:
    """The chain behind a layer that loses all outputs dies, and what only feeds it."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 2, 1))
    graph = ChannelGraph(network, torch.zeros(1, 1, 2, 2))
    liveness = graph.propagate({"2": np.zeros(4, dtype=bool)})
    assert not liveness.outputs["0"].any()
    assert not liveness.inputs["3"].any()
    assert liveness.outputs["3"].all()  # its bias


def test_a_depthwise_layer_with_two_outputs_a_channel() -> None:
    graph = ChannelGraph(Middle(lambda m, x: m.wide(m.doubled(x))), torch.zeros(1, 1, 8, 8))
    keep = np.array([1, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
    liveness = graph.propagate({"a": keep})
    assert liveness.inputs["doubled"].tolist() == keep.tolist()
    assert liveness.outputs["doubled"].tolist() == np.repeat(keep, 2).tolist()
    assert liveness.inputs["wide"].tolist() == np.repeat(keep, 2).tolist()


def test_flatten_repeats_a_channel_once_a_position() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    liveness = ChannelGraph(network, torch.zeros(1, 1, 2, 2)).propagate({"0": np.array([True, False, True])})
    assert liveness.inputs["2"].tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_a_layer_called_twice_is_frozen() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.conv(self.conv(self.first(x))))
            return out

    graph = ChannelGraph(Twice(), torch.zeros(1, 1, 2, 2))
    assert {group.frozen for group in graph.groups} == {"conv is called more than once", "output of the network"}


def test_several_outputs_are_all_kept() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.a(x)
            return {"early": y, "late": self.b(y)}

    graph = ChannelGraph(Heads(), torch.zeros(1, 1, 2, 2))
    assert {group.frozen for group in graph.groups} == {"output of the network"}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize(("network", "reason"), [(Branching(), "traced"), (Silent(), "AssertionError")])
def test_a_network_that_cannot_be_traced_is_told_in_one_line(network: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=f"torch.fx cannot trace {type(network).__name__}, .*{reason}") as told:
        ChannelGraph(network, torch.zeros(1, 1, 2, 2))
    assert "\n" not in str(told.value)
    assert network.training


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.Conv2d(2, 2, 1))
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ChannelGraph(network, torch.randn(1, 1, 4, 4))
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_compiled_network_is_traced_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network.compile(backend="eager")
    graph = ChannelGraph(network, torch.randn(1, 1, 4, 4))
    assert [group.writers for group in graph.groups] == [("0",), ("2",)]
