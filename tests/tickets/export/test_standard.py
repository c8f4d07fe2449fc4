"""Standard forms compute what our own layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.execution.shrink_channels import shrink_channels
from lt_lightning.network_graph.resizing import Partial
from lt_lightning.structures.plan import Block, ChannelPlan
from lt_lightning.tickets.export.standard_formats import block_layers, in_standard_operators, to_program


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


@pytest.mark.parametrize("linear", [False, True])
def test_a_layer_that_writes_a_part_of_a_stream_is_a_gather_in_a_program(linear: bool) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            of = nn.Linear if linear else nn.Conv2d
            sizes = () if linear else (1,)
            self.a, self.b, self.c = of(3, 6, *sizes), of(6, 6, *sizes), of(6, 2, *sizes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x + self.b(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    shape = (5, 3) if linear else (3, 4, 4)
    plan = ChannelPlan({"a": torch.tensor([0, 2, 4, 5]), "b": torch.tensor([1, 4])}, {})
    small = shrink_channels(Stream(), plan, torch.zeros(1, *shape)).network
    assert {name for name, module in small.named_modules() if isinstance(module, Partial)} == {"a", "b"}
    program = to_program(small, shape)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.index_select.default" in targets
    assert "aten.index_copy.default" not in targets
    images = torch.randn(3, *shape)
    torch.testing.assert_close(program.module()(images), small(images))
