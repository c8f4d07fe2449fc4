"""Regrouped layers against dense layers with masked weights: outputs, gradients, training, compiling, exporting."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.structures.plan import Block


def _blocks(outputs: int, columns: int, filters: int, density: float = 0.4, seed: int = 0) -> list[Block]:
    """Random groups of random filters with random columns."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(outputs, generator=generator)
    groups = [order[first : first + filters].sort().values for first in range(0, outputs, filters)]
    return [Block(rows, (torch.rand(columns, generator=generator) < density).nonzero()[:, 0]) for rows in groups]


def _mask(weight: Tensor, blocks: list[Block]) -> Tensor:
    mask = torch.zeros(weight.shape[0], weight[0].numel())
    for block in blocks:
        mask[block.rows[:, None], block.columns] = 1.0
    return mask.reshape(weight.shape).to(weight.dtype)


def _masked(layer: nn.Conv2d | nn.Linear, blocks: list[Block]) -> Tensor:
    """The mask, after it was applied to the layer."""
    mask = _mask(layer.weight, blocks)
    layer.weight.data.mul_(mask)
    return mask


CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(6, 16, 3, padding=1),
    "no bias": lambda: nn.Conv2d(6, 16, 3, bias=False),
    "stride, dilation": lambda: nn.Conv2d(6, 16, 3, stride=2, padding=2, dilation=2),
    "1x7": lambda: nn.Conv2d(6, 16, (1, 7), padding=(0, 3)),
    "same": lambda: nn.Conv2d(6, 16, (3, 5), padding="same"),
    "valid": lambda: nn.Conv2d(6, 16, 3, padding="valid"),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("make", CONVS.values(), ids=CONVS.keys())
def test_a_convolution_equals_the_masked_one(
    make: Callable[[], nn.Conv2d], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    conv = make().to(dtype)
    blocks = _blocks(16, conv.weight[0].numel(), 8)
    regrouped = RegroupedConv2d.from_conv(conv, blocks)
    mask = _masked(conv, blocks)
    assert torch.equal(regrouped.weight, conv.weight)

    x = torch.randn(19, 6, 9, 8, dtype=dtype).requires_grad_()
    other = x.detach().clone().requires_grad_()
    expected, actual = conv(x), regrouped(other)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    actual.backward(dy)
    assert x.grad is not None
    torch.testing.assert_close(other.grad, x.grad, atol=30 * tolerance, rtol=tolerance)
    assert conv.weight.grad is not None
    assert regrouped.packed.grad is not None
    torch.testing.assert_close(
        regrouped.layout.unpack(regrouped.packed.grad),
        conv.weight.grad * mask,
        atol=30 * tolerance,
        rtol=tolerance,
    )
    if conv.bias is not None:
        assert regrouped.bias is not None
        torch.testing.assert_close(regrouped.bias.grad, conv.bias.grad, atol=30 * tolerance, rtol=tolerance)


def test_the_dense_layer_keeps_its_own_values() -> None:
    conv = nn.Conv2d(4, 16, 3)
    regrouped = RegroupedConv2d.from_conv(conv, _blocks(16, 36, 8))
    before = copy.deepcopy(conv.state_dict())
    with torch.no_grad():
        for parameter in regrouped.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(23,), (2, 9), ()], ids=["batch", "batch and more", "one sample"])
def test_a_linear_layer_equals_the_masked_one(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(30, 24).to(dtype)
    blocks = _blocks(24, 30, 8)
    regrouped = RegroupedLinear.from_linear(linear, blocks)
    mask = _masked(linear, blocks)
    assert torch.equal(regrouped.weight, linear.weight)
    x = torch.randn(*shape, 30, dtype=dtype).requires_grad_()
    other = x.detach().clone().requires_grad_()
    expected, actual = linear(x), regrouped(other)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    actual.backward(dy)
    torch.testing.assert_close(other.grad, x.grad, atol=30 * tolerance, rtol=tolerance)
    assert linear.weight.grad is not None
    gradient = regrouped.conv.packed.grad
    assert gradient is not None
    torch.testing.assert_close(
        regrouped.conv.layout.unpack(gradient).flatten(1),
        linear.weight.grad * mask,
        atol=30 * tolerance,
        rtol=tolerance,
    )


def _net() -> tuple[nn.Sequential, list[tuple[int, list[Block]]]]:
    """A small network, and the blocks of its layers by place."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8),
    )  # fmt: skip
    return net, [(0, _blocks(16, 18, 8)), (3, _blocks(32, 144, 16, 0.25)), (7, _blocks(8, 32, 8))]


def _regrouped_net(dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, nn.Sequential, list[tuple[int, Tensor]]]:
    """The masked dense network, the regrouped one, and the masks by place."""
    dense, plan = _net()
    dense = dense.to(dtype)
    masks = []
    for place, blocks in plan:
        layer = dense[place]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        masks.append((place, _masked(layer, blocks)))
    small = copy.deepcopy(dense)
    for place, blocks in plan:
        layer = small[place]
        if isinstance(layer, nn.Conv2d):
            small[place] = RegroupedConv2d.from_conv(layer, blocks)
        elif isinstance(layer, nn.Linear):
            small[place] = RegroupedLinear.from_linear(layer, blocks)
    return dense, small, masks


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_training_equals_masked_dense_training(dtype: torch.dtype, tolerance: float) -> None:
    dense, small, masks = _regrouped_net(dtype)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3) for net in (dense, small)]
    for _ in range(10):
        x = torch.randn(20, 2, 8, 8, dtype=dtype)
        target = torch.randint(8, (20,))
        losses = []
        for net, optimizer in zip((dense, small), optimizers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            torch.autograd.backward(loss)
            losses.append(loss.item())
            if net is dense:
                for place, mask in masks:
                    weight = net.get_parameter(f"{place}.weight")
                    assert weight.grad is not None
                    weight.grad.mul_(mask)
            optimizer.step()
        assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    for place, _ in masks:
        layer = small[place]
        assert isinstance(layer, RegroupedConv2d | RegroupedLinear)
        expected = dense.get_parameter(f"{place}.weight")
        torch.testing.assert_close(layer.weight, expected, atol=tolerance, rtol=tolerance)
    for name, value in dense[1].state_dict().items():
        torch.testing.assert_close(small[1].state_dict()[name], value, atol=tolerance, rtol=tolerance)


def test_a_state_dict_comes_back() -> None:
    _, first, _ = _regrouped_net()
    _, second, _ = _regrouped_net()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.uniform_(-1, 1)
    assert second.load_state_dict(first.state_dict()).missing_keys == []
    x = torch.randn(4, 2, 8, 8)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_torch_compile_takes_the_whole_graph() -> None:
    """With `aot_eager`: the graph of forward and backward is traced with the fake kernels, nothing is compiled."""
    _, small, _ = _regrouped_net()
    x = torch.randn(18, 2, 8, 8)
    expected = small(x)
    expected.sum().backward()
    gradients = [parameter.grad for parameter in small.parameters()]
    for parameter in small.parameters():
        parameter.grad = None
    actual = torch.compile(small, fullgraph=True, backend="aot_eager")(x)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    for parameter, gradient in zip(small.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_inductor_compiles_it() -> None:
    _, small, _ = _regrouped_net()
    x = torch.randn(18, 2, 8, 8).to(memory_format=torch.channels_last)
    compiled = torch.compile(small, fullgraph=True)
    torch.testing.assert_close(compiled(x), small(x), atol=1e-5, rtol=1e-4)
    compiled(x).sum().backward()


def test_torch_export_with_a_free_batch() -> None:
    _, small, _ = _regrouped_net()
    small.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(small, (torch.randn(4, 2, 8, 8),), dynamic_shapes=({0: batch},))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum("block_conv2d" in name for name in names) == 3
    x = torch.randn(21, 2, 8, 8)
    torch.testing.assert_close(exported.module()(x), small(x))


def test_autocast_gives_what_a_convolution_gives() -> None:
    dense, small, _ = _regrouped_net()
    x = torch.randn(17, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = dense(x), small(x)
        actual.float().sum().backward()
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)
    layer = small[3]
    assert isinstance(layer, RegroupedConv2d)
    assert layer.packed.grad is not None
    assert layer.packed.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("conv", "blocks", "says"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), _blocks(8, 18, 4), "groups=2"),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), _blocks(8, 36, 4), "padding_mode='circular'"),
        (nn.Conv2d(4, 8, (2, 3), padding="same"), _blocks(8, 24, 4), r"^padding='same' with kernel_size=\(2, 3\)"),
        (nn.Conv2d(4, 8, 3), _blocks(8, 36, 3), "must be of one size"),
    ],
)
def test_layers_that_cannot_be_regrouped(conv: nn.Conv2d, blocks: list[Block], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RegroupedConv2d.from_conv(conv, blocks)


def test_print_shows_the_blocks() -> None:
    regrouped = RegroupedConv2d.from_conv(nn.Conv2d(4, 16, 3, padding=1), _blocks(16, 36, 8))
    assert "4, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in repr(regrouped)
    assert f"groups=2 x 8, columns={len(regrouped.packed)}" in repr(regrouped)
