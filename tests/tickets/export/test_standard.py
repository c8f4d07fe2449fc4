"""Standard forms compute what our own layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.execution.shrink_channels import Spread, add_into_prefix
from lt_lightning.structures.plan import Block
from lt_lightning.tickets.export.torch_program import block_layers, in_standard_operators


def blocks(filters: int, columns: int) -> list[Block]:
    """Two blocks of half of the filters in mixed order, on different columns."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(filters, generator=generator)
    sides = (torch.arange(0, columns, 2), torch.arange(1, columns, 3))
    return [Block(part, side) for part, side in zip(rows.chunk(2), sides, strict=True)]


@pytest.mark.parametrize("bias", [True, False])
def test_block_layers_become_dense(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2, bias=bias)
    linear = nn.Linear(8, 6, bias=bias)
    network = nn.Sequential(
        RegroupedConv2d.from_conv(conv, blocks(8, 27)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        RegroupedLinear.from_linear(linear, blocks(6, 8)),
    ).double()
    assert block_layers(network) == ["0", "3"]
    standard = in_standard_operators(network)
    assert [type(layer) for layer in standard.children()] == [nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    images = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(standard(images), network(images), rtol=0, atol=1e-12)
    assert block_layers(network) == ["0", "3"]  # left as it was
    torch.testing.assert_close(in_standard_operators(network[0])(images), network[0](images), rtol=0, atol=1e-12)


def test_writing_into_parts_becomes_concatenation() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    spread = graph.call_module("spread", (x,))
    first = graph.call_module("first", (x,))
    graph.output(graph.call_function(add_into_prefix, (spread, first)))
    modules = nn.ModuleDict({"spread": Spread(torch.tensor([4, 0, 2]).numpy(), 5), "first": nn.Conv2d(3, 2, 1)})
    network = fx.GraphModule(modules, graph)
    standard = in_standard_operators(network)
    assert isinstance(standard, fx.GraphModule)
    assert not any(isinstance(module, Spread) for module in standard.modules())
    assert all(node.target is not add_into_prefix for node in standard.graph.nodes)
    images = torch.randn(2, 3, 4, 4)
    expected = torch.zeros(2, 5, 4, 4)
    expected[:, [4, 0, 2]] = images
    expected[:, :2] += modules["first"](images)
    for made in (standard, network):
        torch.testing.assert_close(made(images), expected)
