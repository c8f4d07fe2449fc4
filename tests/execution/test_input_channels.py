from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_lightning.execution.blocks.block_formats import ChannelGroups
from lt_lightning.execution.blocks.input_channels import Form, GroupedChannelConv2d, GroupedChannelLinear
from lt_lightning.structures.plan import Block

FORMS: tuple[Form, ...] = ("grouped", "loop")


def random_blocks(outputs: int, inputs: int, groups: int, counts: list[int], seed: int = 0) -> list[Block]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(outputs, generator=generator).view(groups, -1).sort(dim=1).values
    columns = [torch.randperm(inputs, generator=generator)[:count].sort().values for count in counts]
    return [Block(row, column) for row, column in zip(rows, columns, strict=True)]


def mask_of(blocks: list[Block], weight: Tensor) -> Tensor:
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for block in blocks:
        for row in block.rows:
            mask[row, block.columns] = True
    return mask


def assert_same_as_masked(conv: nn.Conv2d, blocks: list[Block], form: Form, x: Tensor) -> None:
    """Outputs and all gradients equal those of the dense convolution with the masked weight."""
    mask = mask_of(blocks, conv.weight)
    layer = GroupedChannelConv2d.from_conv(conv, blocks, form=form)
    dense = copy.deepcopy(conv)
    with torch.no_grad():
        dense.weight *= mask
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(ours), dense(theirs)
    gradient = torch.randn(want.shape, dtype=want.dtype)
    torch.autograd.backward([got, want], [gradient, gradient])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight, dense.weight.detach(), rtol=0, atol=1e-12)
    assert dense.weight.grad is not None
    assert layer.packed.grad is not None
    layer.packed.data = layer.packed.grad
    torch.testing.assert_close(layer.weight, dense.weight.grad * mask, rtol=1e-13, atol=1e-11)
    if conv.bias is not None:
        assert dense.bias is not None
        assert layer.bias is not None
        assert layer.bias.grad is not None
        torch.testing.assert_close(layer.bias, dense.bias.detach(), rtol=0, atol=1e-12)
        layer.bias.data = layer.bias.grad
        torch.testing.assert_close(layer.bias, dense.bias.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (1, 1, 0, 1),
        (1, 2, 0, 1),
        (5, 3, 2, 1),
        (3, 1, 2, 2),
        ((1, 7), (2, 1), (0, 3), 1),
        (3, 1, "same", 1),
    ],
)
def test_it_computes_the_masked_convolution(
    form: Form, channels_last: bool, kernel: int, stride: int, padding: int | str, dilation: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 8, kernel, stride, padding, dilation, dtype=torch.float64)
    blocks = random_blocks(8, 12, 4, [5, 5, 5, 5])
    x = torch.randn(3, 12, 9, 8, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    assert_same_as_masked(conv, blocks, form, x)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_blocks_of_equal_rows(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4), label="groups")
    outputs = groups * data.draw(st.integers(1, 3), label="rows")
    inputs = data.draw(st.integers(1, 6), label="inputs")
    counts = data.draw(st.lists(st.integers(0, inputs), min_size=groups, max_size=groups).filter(any), label="counts")
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=data.draw(st.booleans()), dtype=torch.float64)
    blocks = random_blocks(outputs, inputs, groups, counts, seed=data.draw(st.integers(0, 99)))
    x = torch.randn(2, inputs, 4, 5, dtype=torch.float64)
    layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    assert_same_as_masked(conv, blocks, data.draw(st.sampled_from(FORMS)), x.contiguous(memory_format=layout))


def test_the_gradient_is_the_same_in_cache_sized_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lt_lightning.execution.blocks.input_channels._IN_CACHE", 64)
    conv = nn.Conv2d(6, 8, 3, dtype=torch.float64)
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_same_as_masked(conv, random_blocks(8, 6, 4, [3, 3, 3, 3]), "grouped", x)


def test_padding_stays_out_of_the_function_when_an_optimizer_moves_it() -> None:
    conv = nn.Conv2d(6, 4, 3, dtype=torch.float64)
    blocks = random_blocks(4, 6, 2, [4, 1])
    layer = GroupedChannelConv2d.from_conv(conv, blocks)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before, dense = layer(x), layer.weight
    assert layer.used is not None
    with torch.no_grad():
        layer.packed.view(2, 2, *layer.packed.shape[1:]).add_((~layer.used).double())
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer.weight, dense)


def test_what_needs_no_index_has_none() -> None:
    """One group of all channels is the dense layer; ordered rows need no permutation."""
    conv = nn.Conv2d(4, 6, 3)
    whole = GroupedChannelConv2d.from_conv(conv, [Block(torch.arange(6), torch.arange(4))])
    assert whole.gather is None
    assert whole.permutation is None
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(whole(x), conv(x))
    split = GroupedChannelConv2d.from_conv(
        conv, [Block(torch.arange(3 * i, 3 * i + 3), torch.tensor([i])) for i in (0, 1)]
    )
    assert split.permutation is None
    depthwise = GroupedChannelConv2d.from_conv(
        nn.Conv2d(4, 4, 3), [Block(torch.tensor([i]), torch.tensor([i])) for i in range(4)]
    )
    assert depthwise.gather is None


def test_training_follows_the_masked_layer() -> None:
    """Ten steps of SGD with momentum and weight decay."""
    torch.manual_seed(1)
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    blocks = random_blocks(8, 6, 4, [3, 2, 3, 1])
    mask = mask_of(blocks, conv.weight)
    layer = GroupedChannelConv2d.from_conv(conv, blocks)
    with torch.no_grad():
        conv.weight *= mask
    optimizers = [
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2) for module in (conv, layer)
    ]
    for _ in range(10):
        x, target = torch.randn(4, 6, 5, 5, dtype=torch.float64), torch.randn(4, 8, 5, 5, dtype=torch.float64)
        for module, optimizer in zip((conv, layer), optimizers, strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(module(x), target))
            if module is conv:
                assert conv.weight.grad is not None
                conv.weight.grad *= mask
            optimizer.step()
    assert conv.bias is not None
    torch.testing.assert_close(layer.weight, conv.weight.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias, conv.bias.detach(), rtol=0, atol=1e-12)


def test_the_weight_keeps_its_memory_format_and_its_state_loads() -> None:
    blocks = random_blocks(8, 6, 4, [3] * 4)
    convs = [nn.Conv2d(6, 8, 3) for _ in range(2)]
    for conv in convs:
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    one, other = (GroupedChannelConv2d.from_conv(conv, blocks) for conv in convs)
    assert one.packed.is_contiguous(memory_format=torch.channels_last)
    assert set(one.state_dict()) == {"packed", "bias"}
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(one(x), other(x))


def test_bfloat16_by_autocast() -> None:
    layer = GroupedChannelConv2d.from_conv(nn.Conv2d(8, 8, 3), random_blocks(8, 8, 2, [4, 4]))
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    torch.autograd.backward(y.float().sum())
    assert y.dtype is torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype is torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layer_answers_autocast_as_a_dense_one_does(bias: bool) -> None:
    dense = nn.Linear(8, 4, bias=bias)
    layer = GroupedChannelLinear.from_linear(dense, random_blocks(4, 8, 2, [3, 3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype is dense(torch.randn(3, 8)).dtype is torch.bfloat16


def network(form: Form) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    head = GroupedChannelLinear.from_linear(nn.Linear(8, 4), random_blocks(4, 8, 2, [3, 3]))
    grouped = GroupedChannelConv2d.from_conv(conv, random_blocks(8, 8, 4, [4, 4, 3, 4]), form=form)
    return nn.Sequential(grouped, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.mark.parametrize("form", ["grouped", "loop"])
def test_it_compiles_as_one_graph_with_its_gradient(form: Form) -> None:
    net = network(form)
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.autograd.backward(compiled(x).square().sum())
    got = [parameter.grad for parameter in net.parameters()] + [x.grad]
    net.zero_grad()
    x.grad = None
    torch.autograd.backward(net(x).square().sum())
    torch.testing.assert_close(got, [parameter.grad for parameter in net.parameters()] + [x.grad])


@pytest.mark.parametrize("form", ["grouped", "loop"])
def test_it_exports_for_any_batch(form: Form) -> None:
    net = network(form).eval()
    x = torch.randn(4, 8, 6, 6)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.randn(7, 8, 6, 6)
    torch.testing.assert_close(program.module()(more), net(more))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_the_linear_layer(groups: int, rows: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    outputs, inputs = groups * rows, 5
    counts = torch.randint(1, inputs + 1, (groups,)).tolist()
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    blocks = random_blocks(outputs, inputs, groups, counts, seed)
    layer = GroupedChannelLinear.from_linear(linear, blocks)
    mask = mask_of(blocks, linear.weight)
    weight = (linear.weight.detach() * mask).requires_grad_()
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(ours), F.linear(theirs, weight, linear.bias)
    gradient = torch.randn(want.shape, dtype=want.dtype)
    torch.autograd.backward([got, want], [gradient, gradient])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight, weight.detach(), rtol=0, atol=0)
    assert weight.grad is not None
    assert layer.packed.grad is not None
    layer.packed.data = layer.packed.grad
    torch.testing.assert_close(layer.weight, weight.grad * mask, rtol=0, atol=1e-12)
    if bias:
        assert linear.bias.grad is not None
        assert layer.bias is not None
        assert layer.bias.grad is not None
        torch.testing.assert_close(layer.bias.grad, linear.bias.grad, rtol=0, atol=1e-12)


def test_what_cannot_be_held_is_refused() -> None:
    row, column = torch.arange(2), torch.arange(1)
    conv = nn.Conv2d(2, 4, 1)
    with pytest.raises(ValueError, match="equally many rows"):
        ChannelGroups.of([Block(row, column), Block(torch.tensor([2]), column)], 4, 2)
    with pytest.raises(ValueError, match="exactly once"):
        GroupedChannelConv2d.from_conv(conv, [Block(row, column)])
    with pytest.raises(ValueError, match="exactly once"):
        GroupedChannelConv2d.from_conv(conv, [Block(row, column), Block(row, column)])
    with pytest.raises(ValueError, match="no block has a column"):
        GroupedChannelConv2d.from_conv(conv, [Block(torch.arange(4), torch.arange(0))])
    with pytest.raises(ValueError, match="distinct input channels, 0 to 1"):
        GroupedChannelConv2d.from_conv(conv, [Block(torch.arange(4), torch.tensor([2]))])
    with pytest.raises(ValueError, match="share no inputs"):
        GroupedChannelConv2d.from_conv(nn.Conv2d(4, 4, 1, groups=2), [Block(torch.arange(4), column)])
    with pytest.raises(ValueError, match="padding_mode='circular'"):
        GroupedChannelConv2d.from_conv(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), [])
