"""Channel graphs: groups, what freezes them, and liveness against gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup, module_of
from lt_lightning.network_graph.resizing import resize
from lt_lightning.network_graph.traced import TracedNetwork

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
        self.instance_norm = nn.InstanceNorm2d(8, affine=True)
        self.one_group = nn.GroupNorm(1, 8)
        self.bare_norm = nn.BatchNorm2d(8, affine=False)
        self.layer_norm = nn.LayerNorm(8)
        self.gate = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
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
    "a multiple of itself": lambda m, x: torch.add(x, x.relu(), alpha=2),
    "pad": lambda m, x: F.pad(x, (1, 1)),
    "cat along places": lambda m, x: torch.cat([x, x.relu()], 2),
    "chunk": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "permute": lambda m, x: x.permute(0, 1, 3, 2),
    "there and back": lambda m, x: (x.flatten(2).transpose(1, 2) * 2).transpose(1, 2).view(-1, 8, 8, 8),
    "shuffle": lambda m, x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8),
    "every second": lambda m, x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "rolled": lambda m, x: x.roll(3, 1),
    "scale": lambda m, x: x * m.gate,
    "shift": lambda m, x: x + m.gate,
    "squeeze and excite": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "divided": lambda m, x: x / (1 + x.abs()),
    "clamped": lambda m, x: x.clamp(-1, 1),
    "instance norm": lambda m, x: m.instance_norm(x),
    "norm over channels": lambda m, x: m.one_group(x),
    "a sum in place": lambda m, x: x.clone().add_(x),
    "stochastic depth": lambda m, x: x * (torch.rand(len(x), 1, 1, 1) < 0.9),
}


@pytest.mark.parametrize("name", KEEPS_ZERO)
def test_operations_that_keep_zeros_leave_channels_free(name: str) -> None:
    group, graph = group_of(KEEPS_ZERO[name])
    assert (group.writers, group.frozen, graph.record.unknown) == (("a",), "", [])
    assert group.followers == (("depthwise",) if name == "depthwise" else ())
    assert not group.joined
    dead = np.zeros(8, dtype=bool)
    dead[[1, 4]] = True
    liveness = graph.propagate({"a": ~dead})
    network = Middle(KEEPS_ZERO[name]).eval()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for parameter, mask in liveness.masks(network).items():
            parameters[parameter].mul_(mask)
        seen = KEEPS_ZERO[name](network, network.a(torch.randn(2, 1, 8, 8)))
    assert int((~liveness.inputs["b"]).sum()) == 2
    assert torch.equal(seen.abs().amax((0, 2, 3)) == 0, torch.from_numpy(~liveness.inputs["b"]))


FREEZES: dict[str, tuple[Step, str]] = {
    "softmax": (lambda m, x: F.softmax(x, 1), "softmax over channels"),
    "computed weight": (lambda m, x: m.normed(x), "weight is computed"),
    "size added": (lambda m, x: x + x.size(1), "add of a number"),
    "norm without a scale": (lambda m, x: m.bare_norm(x), "without a scale"),
    "norm over places": (lambda m, x: m.layer_norm(x), "a normalisation"),
    "amax over channels": (lambda m, x: x * x.amax(1, keepdim=True), "amax over channels"),
    "max with indices": (lambda m, x: x * torch.max(x, dim=1, keepdim=True)[0], "max over channels"),
    "inverse": (lambda m, x: torch.linalg.pinv(x), "unknown operation"),
    "sigmoid": (lambda m, x: torch.sigmoid(x), "sigmoid"),
    "exp": (lambda m, x: x.exp(), "exp"),
    "softplus": (lambda m, x: F.softplus(x), "softplus"),
    "number added": (lambda m, x: x + 1, "add of a number"),
    "subtracted from a number": (lambda m, x: 1 - x, "rsub of a number"),
    "bounds above zero": (lambda m, x: m.lifted(x), "hardtanh"),
    "the same by a function": (lambda m, x: F.hardtanh(x, 0.2, 0.9), "hardtanh"),
    "threshold": (lambda m, x: F.threshold(x, 0.5, 2.0), "threshold"),
    "power of zero": (lambda m, x: x**0, "pow"),
    "padding with a number": (lambda m, x: F.pad(x, (1, 1), value=2.0), "padding"),
    "numbers added": (lambda m, x: x + torch.arange(8.0).view(8, 1, 1), "fixed width"),
    "one number added": (lambda m, x: x + torch.ones(8, 1, 1), "a sum with other values"),
    "written into a part": (lambda m, x: _written_into_a_part(x), "part of a tensor"),
}


def _written_into_a_part(x: Tensor) -> Tensor:
    whole = torch.zeros(len(x), 8, 8, 8)
    whole[:, :] = x
    return whole


@pytest.mark.parametrize("name", FREEZES)
def test_what_may_not_be_dropped_says_why_and_where(name: str) -> None:
    step, why = FREEZES[name]
    group, _ = group_of(step)
    assert why in group.frozen
    assert "test_graph.py:" in group.frozen


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
    first, last = graph.groups
    assert "mean over channels" in first.frozen or "mean" in first.frozen
    assert last.frozen == "output of the network"


def test_a_convolution_in_groups_keeps_or_drops_whole_groups() -> None:
    group, graph = group_of(lambda m, x: m.grouped(x))
    assert (group.channels, group.writers, group.followers, group.frozen) == (2, ("a",), ("grouped",), "")
    assert group.rows["a"].tolist() == group.rows["grouped"].tolist() == [0] * 4 + [1] * 4
    liveness = graph.propagate({"a": group.rows["a"] == 1})
    assert liveness.inputs["b"].tolist() == liveness.outputs["grouped"].tolist() == [False] * 4 + [True] * 4


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
    for product in (False, True):
        graph = ChannelGraph(Stream(product), torch.zeros(1, 2, 3, 3))
        assert [(g.writers, g.joined, g.frozen) for g in graph.groups] == [(("convs.0", "convs.1"), not product, "")]
        liveness = graph.propagate(kept)
        assert liveness.inputs["last"].tolist() == [True, True, True, False]
        assert liveness.outputs["convs.0"].tolist() == [True, True, False, False]


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


def test_a_layer_called_twice_has_one_width_for_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.conv(self.conv(self.first(x))))
            return out

    graph = ChannelGraph(Twice(), torch.zeros(1, 1, 2, 2))
    assert [(group.writers, group.frozen) for group in graph.groups] == [
        (("first", "conv"), ""), (("last",), "output of the network"),
    ]  # fmt: skip
    kept = np.array([True, False, True, True])
    liveness = graph.propagate({"first": kept, "conv": kept})
    assert liveness.inputs["conv"].tolist() == liveness.inputs["last"].tolist() == kept.tolist()


def test_heads_of_an_attention_are_units() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 3 * 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(len(x), 5, 3, 4, 2).permute(2, 0, 3, 1, 4)
            mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
            return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    graph = ChannelGraph(Attention(), torch.zeros(1, 5, 6))
    heads = graph.groups[0]
    assert (heads.channels, heads.frozen, heads.joined) == (4, "", False)
    assert heads.rows["qkv"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 3
    assert graph.propagate({"qkv": heads.rows["qkv"] != 2}).inputs["out"].tolist() == [
        True, True, True, True, False, False, True, True,
    ]  # fmt: skip


def test_what_nobody_uses_keeps_nothing() -> None:
    def step(network: Middle, x: Tensor) -> Tensor:
        x.softmax(1)
        return x

    assert group_of(step)[0].frozen == ""


@pytest.mark.parametrize(("name", "module"), [("a.weight", "a"), ("weight", ""), ("b.in_proj_weight", "b.in_proj")])
def test_names_of_what_a_weight_belongs_to(name: str, module: str) -> None:
    assert module_of(name) == module


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
    """Control flow on values and on sizes is no obstacle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[-1] > 1 and x.sum() > -1e9:
            x = x.relu()
        return self.b(x)  # type: ignore[no-any-return]


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


def test_control_flow_is_no_obstacle() -> None:
    assert ChannelGraph(Branching(), torch.zeros(1, 2, 2, 2)).groups[0].frozen == ""


def test_a_network_that_does_not_run_is_told_in_one_line() -> None:
    network = Silent()
    with pytest.raises(ValueError, match=r"^Silent .*AssertionError") as told:
        ChannelGraph(network, torch.zeros(1, 1, 2, 2))
    assert "\n" not in str(told.value)
    assert network.training


def test_arguments_may_be_a_tuple_or_a_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(7, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"out": self.b(self.a(self.words(ids) * scale).relu())}

    ids, scale = torch.tensor([[1, 6, 3]]), torch.ones(1, 3, 1)
    for example in ((ids, scale), {"ids": ids, "scale": scale}):
        groups = ChannelGraph(Two(), example).groups
        assert [(group.writers, group.frozen) for group in groups[:2]] == [(("words",), ""), (("a",), "")]


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


def test_channels_are_kept_where_a_trial_shows_nothing() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) / 0 * 0  # type: ignore[no-any-return]

    (first, _) = TracedNetwork(Nothing(), torch.zeros(1, 2, 2, 2)).graph.groups
    assert "no numbers" in first.frozen


def test_a_width_that_is_read_as_a_number_keeps_tensors_wide() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x * x.shape[1] ** -0.5)  # type: ignore[no-any-return]

    graph = TracedNetwork(Scaled(), torch.zeros(1, 2, 2, 2)).graph
    assert [group.frozen for group in graph.groups] == ["", "output of the network"]
    liveness = graph.propagate({"a": np.array([True, False, True, True, False, True])})
    assert liveness.inputs["b"].tolist() == [True, False, True, True, False, True]
    assert liveness.wide[graph.rows["a"]].all()


class Biased(nn.Module):
    """Two attentions with a bias of their scores, one that the first makes of zeros, and a position's, by layers."""

    def __init__(self, positions: int = 5) -> None:
        super().__init__()
        self.heads, self.depth = 4, 4  # of which one counts heads
        self.attentions = nn.ModuleList(nn.Linear(6, 3 * 12) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(12, 6) for _ in range(2))
        self.table = nn.Buffer(torch.randn(positions * positions, 2))
        self.by_position = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, self.heads))

    def forward(self, x: Tensor) -> Tensor:
        positions = self.by_position(self.table).T.reshape(1, -1, x.shape[1], x.shape[1]).sigmoid()
        bias = torch.zeros(1, self.heads, x.shape[1], x.shape[1], dtype=x.dtype) - 1
        for attention, out in zip(self.attentions, self.outs, strict=True):
            q, k, v = attention(x).view(*x.shape[:2], 3, -1, 3).permute(2, 0, 3, 1, 4)
            x = x + out(F.scaled_dot_product_attention(q, k, v, bias + positions).transpose(1, 2).flatten(2))
        return x


def test_a_bias_of_scores_loses_heads_with_those_who_share_it() -> None:
    graph = TracedNetwork(Biased(), torch.zeros(1, 5, 6)).graph
    heads, hidden = (next(g for g in graph.groups if name in g.writers) for name in ("attentions.0", "by_position.0"))
    assert heads.writers == ("by_position.2", "attentions.0", "attentions.1")
    assert (heads.channels, heads.frozen, hidden.channels, hidden.frozen) == (4, "", 7, "")
    assert {(size.module, size.attribute) for size in graph.sizes} == {("", "heads")}
    assert not graph.wide


class ByFunctions(nn.Module):
    """Reads the width of a stream, which a function writes, as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + F.linear(x, self.inner.weight, self.inner.bias) * x.shape[-1] ** -0.5
        return self.b(x)  # type: ignore[no-any-return]


def test_weights_that_functions_use_stay_as_wide_as_the_tensors() -> None:
    torch.manual_seed(0)
    network = ByFunctions().double()
    graph = TracedNetwork(network, torch.zeros(1, 3).double()).graph
    assert [group.writers for group in graph.groups if not group.frozen] == [("a", "inner")]
    keep = np.arange(8) % 3 > 0
    liveness = graph.propagate({"a": keep, "inner": keep})
    assert liveness.computed["a"].tolist() == liveness.inputs["b"].tolist() == keep.tolist()
    assert liveness.outputs["inner"].tolist() == keep.tolist()
    assert liveness.computed["inner"].all()
    assert liveness.inputs["inner"].all()
    with torch.no_grad():
        for name, mask in liveness.masks(network).items():
            network.get_parameter(name).mul_(mask)
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = network(x)
    resize(network, graph, liveness)
    assert [tuple(each.weight.shape) for each in (network.a, network.inner, network.b)] == [(5, 3), (8, 8), (2, 5)]
    torch.testing.assert_close(network(x), expected)
