"""Layers that compute blocks stand in a dense layer's place: attributes, weights, frozen parameters, memory format."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_lightning.execution.execute import execute, forms_of
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.plan import Block, BlockPlan, Granularity
from lt_lightning.structures.regroup import Regroup

ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ),
    nn.Linear: ("in_features", "out_features"),
}


def blocks_of(rows: int, columns: int, generator: torch.Generator) -> list[Block]:
    """Two groups of filters in any order, of different numbers of columns."""
    order = torch.randperm(rows, generator=generator)
    counts = (max(1, columns // 2), max(1, columns // 3))
    return [
        Block(half.sort().values, torch.randperm(columns, generator=generator)[:count].sort().values)
        for half, count in zip(order.chunk(2), counts, strict=True)
    ]


def forms(layer: nn.Module, seed: int) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every form of a layer by every granularity, and the mask of its blocks."""
    generator = torch.Generator().manual_seed(seed)
    weight: Any = layer.weight
    granularities: Sequence[Granularity] = get_args(Granularity)
    for granularity in granularities:
        flat = weight.flatten(1) if granularity == "kernel_position" else weight
        blocks = blocks_of(flat.shape[0], flat.shape[1], generator)
        mask = torch.zeros_like(flat)
        for block in blocks:
            mask[block.rows[:, None], block.columns] = 1
        for name, form in forms_of(layer, BlockPlan(granularity, {"": blocks}), "").items():
            yield name, form, mask.view(weight.shape)


LAYERS = [
    nn.Conv2d(6, 8, 3, padding=1),
    nn.Conv2d(6, 8, (1, 3), stride=(2, 1), dilation=(1, 2), bias=False),
    nn.Conv2d(6, 8, 1),
    nn.Linear(6, 8),
    nn.Linear(6, 8, bias=False),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_attributes_are_those_of_the_dense_layer(layer: nn.Module) -> None:
    of_class = ATTRIBUTES[type(layer)]
    seen = set()
    for name, form, _ in forms(layer, 0):
        seen.add(name)
        assert {each: getattr(form, each) for each in of_class} == {each: getattr(layer, each) for each in of_class}
    assert seen == ({"blocks", "grouped", "loop"} if isinstance(layer, nn.Conv2d) else {"blocks", "grouped"})


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(LAYERS), st.integers(0, 2**20))
def test_the_weight_is_the_dense_one_and_passes_gradients_on(layer: nn.Module, seed: int) -> None:
    """Whoever computes with `weight` and `bias` gets what the form itself computes, and the same gradients."""
    torch.manual_seed(seed)
    dense: Any = copy.deepcopy(layer).double()
    x = torch.randn(2, 6, 5, 7) if isinstance(layer, nn.Conv2d) else torch.randn(2, 5, 6)
    for _, form, mask in forms(dense, seed):
        small: Any = form
        assert torch.equal(small.weight, dense.weight * mask)
        if dense.bias is not None:
            assert torch.equal(small.bias, dense.bias)
        given = x.double().requires_grad_()
        theirs = (
            F.conv2d(given, small.weight, small.bias, dense.stride, dense.padding, dense.dilation)
            if isinstance(layer, nn.Conv2d)
            else F.linear(given, small.weight, small.bias)
        )
        ours = small(given)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        into = (given, *small.parameters())
        outer = torch.randn_like(ours)
        for one, other in zip(*(torch.autograd.grad(y, into, outer) for y in (ours, theirs)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_what_is_frozen_stays_frozen(layer: nn.Module, frozen: tuple[str, ...]) -> None:
    layer = copy.deepcopy(layer)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for _, form, _ in forms(layer, 0):
        trained = {name.rpartition(".")[2] for name, each in form.named_parameters() if each.requires_grad}
        assert trained == {
            {"weight": "packed"}.get(name, name) for name, _ in layer.named_parameters() if name not in frozen
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [each for each in LAYERS if isinstance(each, nn.Conv2d)], ids=str)
@pytest.mark.parametrize("size", [(5, 7), (1, 7)])
def test_the_memory_format_is_that_of_the_dense_convolution(
    layer: nn.Conv2d, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """`view` behind a form works where it works behind the dense convolution."""
    dense = copy.deepcopy(layer).to(dtype)
    if size[0] < dense.kernel_size[0] and dense.padding == (0, 0):
        pytest.skip("an image smaller than the kernel")
    whole = torch.randn(2, 12, *size, dtype=dtype)
    standard = torch.randn(2, 6, *size, dtype=dtype)
    inputs = [standard, standard.contiguous(memory_format=torch.channels_last), whole[:, ::2], standard.transpose(2, 3)]
    for _, form, _ in forms(dense, 0):
        for x in inputs[: 4 if size == (5, 7) else 3]:
            ours, theirs = form(x), dense(x)
            assert ours.shape == theirs.shape
            if theirs.is_contiguous():
                assert ours.is_contiguous()
        last = inputs[1]
        if not last.is_contiguous():
            assert form(last).is_contiguous(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """PyTorch's encoder, whose fast path in evaluation reads the weights of its linear layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 64), nn.Linear(64, 10)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return out


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_pytorchs_transformer_runs_on_blocks(granularity: Granularity) -> None:
    torch.manual_seed(0)
    network, example = Encoder().double(), torch.zeros(1, 5, 8, dtype=torch.float64)
    layers = find_layers(network, example)
    assert "encoder.layers.0.linear1" in layers
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}
    masks = {name: weights[name].abs() > weights[name].abs().median() for name in masks}
    result = Regroup(granularity, clustering="random")(StructureInput(TracedNetwork(network, example), masks, weights))
    EnforcedMasks(network, result.masks).zero_weights()
    shrunk = execute(network, result.plan, result.masks, example)
    assert shrunk is not None
    assert len(shrunk.choice) == 4
    compare_networks(network, shrunk.network, example)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    for net in (network, shrunk.network):
        net.eval()
    with torch.no_grad():
        fast = shrunk.network(x)
        torch.testing.assert_close(fast, network(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(shrunk.network(x), fast, rtol=0, atol=1e-13)  # with gradients there is no fast path
