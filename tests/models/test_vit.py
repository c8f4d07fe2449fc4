"""The vision transformer against PyTorch's own attention and encoder, and published sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lt_lightning.models.vit import Attention, StochasticDepth, TransformerBlock, VisionTransformer


def drawn(module: nn.Module) -> Any:
    """The module in float64 with random values everywhere, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return module


def of_attention(attention: Any, prefix: str = "") -> dict[str, Tensor]:
    """The values of our attention under the names of PyTorch's."""
    parts = attention.query, attention.key, attention.value
    return {
        f"{prefix}in_proj_weight": torch.cat([part.weight for part in parts]),
        f"{prefix}in_proj_bias": torch.cat([part.bias for part in parts]),
        f"{prefix}out_proj.weight": attention.projection.weight,
        f"{prefix}out_proj.bias": attention.projection.bias,
    }


def as_torch(block: Any, heads: int) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the values of our block."""
    width, hidden = block.perceptron.hidden.in_features, block.perceptron.hidden.out_features
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True, dtype=torch.float64
    )
    values = {
        **of_attention(block.attention, "self_attn."),
        **{f"linear1.{name}": value for name, value in block.perceptron.hidden.state_dict().items()},
        **{f"linear2.{name}": value for name, value in block.perceptron.output.state_dict().items()},
        **{f"norm1.{name}": value for name, value in block.norm1.state_dict().items()},
        **{f"norm2.{name}": value for name, value in block.norm2.state_dict().items()},
    }
    layer.load_state_dict(values)
    return layer


@settings(max_examples=20, deadline=None)
@given(heads=st.integers(1, 5), head_width=st.integers(1, 6), tokens=st.integers(1, 7), count=st.integers(1, 3))
def test_attention_is_pytorchs(heads: int, head_width: int, tokens: int, count: int) -> None:
    width = heads * head_width
    attention = drawn(Attention(width, head_width))
    reference = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    reference.load_state_dict(of_attention(attention))
    x = torch.randn(count, tokens, width, dtype=torch.float64)
    assert torch.allclose(attention(x), reference(x, x, x, need_weights=False)[0], atol=1e-12)


def test_a_dropped_head_is_a_head_that_nobody_reads() -> None:
    """Nothing in the module but the sizes of its layers says how many heads there are."""
    whole = drawn(Attention(12, head_width=3))
    kept = torch.tensor([0, 1, 2, 6, 7, 8])  # the first and the third of four heads
    small = copy.deepcopy(whole)
    for part in (small.query, small.key, small.value):
        part.weight, part.bias = nn.Parameter(part.weight[kept]), nn.Parameter(part.bias[kept])
    small.projection.weight = nn.Parameter(small.projection.weight[:, kept])
    with torch.no_grad():
        whole.projection.weight[:, [3, 4, 5, 9, 10, 11]] = 0
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert torch.allclose(small(x), whole(x), atol=1e-13)


@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_pytorchs_pre_normalised_layer(training: bool) -> None:
    block = drawn(TransformerBlock(12, head_width=3, hidden=20)).train(training)
    reference = as_torch(block, heads=4).train(training)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(block(x), reference(x), atol=1e-12)
    ours, theirs = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (block, reference))
    assert torch.allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_the_network_by_hand(pooling: Any) -> None:
    """Patches by `unfold` and a matrix product, PyTorch's encoder, and what the classifier reads."""
    network = drawn(VisionTransformer(7, 2, 6, patch=3, depth=3, heads=2, width=4, expansion=3, pooling=pooling))
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    tokens = F.unfold(images, 3, stride=3).transpose(1, 2) @ network.patches.weight.flatten(1).T + network.patches.bias
    if pooling == "token":
        tokens = torch.cat([network.token.repeat(5, 1, 1), tokens], 1)
    tokens = tokens + network.positions
    assert tokens.shape == (5, 4 + (pooling == "token"), 8)
    for block in network.blocks:
        tokens = as_torch(block, heads=2)(tokens)
    tokens = F.layer_norm(tokens, (8,), network.norm.weight, network.norm.bias)
    read = tokens[:, 0] if pooling == "token" else tokens.sum(1) / 4
    assert torch.allclose(network(images), network.classifier(read), atol=1e-11)


@pytest.mark.parametrize(
    ("depth", "heads", "parameters"), [(12, 6, 22_050_664), (12, 12, 86_567_656), (24, 16, 304_326_632)]
)
def test_known_parameter_counts(depth: int, heads: int, parameters: int) -> None:
    """Of ViT-S/16, B/16 and L/16 for 224x224 images and 1000 classes."""
    with torch.device("meta"):
        network = VisionTransformer(1000, size=224, patch=16, depth=depth, heads=heads, width=64, pooling="token")
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_traces_and_reaches_every_parameter(pooling: Any) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(7, 1, 8, patch=2, depth=2, heads=2, width=4, pooling=pooling)
    images = torch.randn(3, 1, 8, 8)
    torch.autograd.backward(F.cross_entropy(network(images), torch.tensor([1, 4, 0])))
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == set()
    # A bias of the keys adds the same to all of a query's scores, which softmax does not see.
    small = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-7}
    assert small == {f"blocks.{block}.attention.key.bias" for block in range(2)}
    network.eval()
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = StochasticDepth(0.25)
    branch = torch.randn(4000, 2, 3)
    found = drop(branch)
    kept = (found != 0).flatten(1).any(1)
    assert torch.equal(found[~kept], torch.zeros_like(found[~kept]))
    assert torch.allclose(found[kept], branch[kept] / 0.75)
    assert abs(float(kept.float().mean()) - 0.75) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(drop.eval()(branch), branch)


def test_rates_of_stochastic_depth_rise_linearly() -> None:
    network = VisionTransformer(3, depth=5, stochastic_depth=0.2)
    rates = [module.rate for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert VisionTransformer(3, depth=1, stochastic_depth=0.2)(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(3, dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionTransformer(10, size=32, patch=5), "patch=5: .* size=32"),
        (lambda: VisionTransformer(10, heads=0), "heads=0"),
        (lambda: VisionTransformer(10, width=1.5), "width=1.5"),  # type: ignore[arg-type]
        (lambda: VisionTransformer(10, pooling="max"), "pooling='max': .* mean, token"),  # type: ignore[arg-type]
        (lambda: VisionTransformer(10, dropout=1.0), "dropout=1.0"),
        (lambda: VisionTransformer(10, stochastic_depth=-0.1), "stochastic_depth=-0.1"),
    ],
)
def test_refuses(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_initial_tokens_have_the_spread_of_glorot_and_bengio() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(10, size=32, patch=16, depth=1, heads=12, width=64)
    variance = {name: float(p.detach().var()) for name, p in network.named_parameters() if p.ndim > 1}
    assert variance["patches.weight"] == pytest.approx(2 / (768 + 768), rel=0.01)
    assert variance["blocks.0.perceptron.hidden.weight"] == pytest.approx(2 / (768 + 3072), rel=0.01)
    assert variance["positions"] == pytest.approx(0.02**2, rel=0.1)
    biases: list[Tensor] = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
