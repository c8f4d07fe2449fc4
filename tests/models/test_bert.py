"""BERT against PyTorch's own encoder, and what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.models.bert import Bert


def make(**options: Any) -> Any:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return Bert(**{"classes": 3, "vocabulary": 11, "length": 9, "depth": 2, "heads": 2, "width": 4, **options})


def test_the_network_is_pytorchs_post_normalised_encoder() -> None:
    """With the same values, in float64: embeddings, layers, the first token through tanh, and the classifier."""
    network = make().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / 4)
    state = {name.removeprefix("model.bert."): value for name, value in network.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (8,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    ids = torch.randint(11, (5, 7))
    table, positions, kinds = (
        state[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    x = norm(table[ids] + positions[:7] + kinds[0], "embeddings.LayerNorm")
    for number in range(2):
        layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, F.gelu, 1e-12, batch_first=True, dtype=torch.float64)
        place = f"encoder.layer.{number}"
        parts = [f"{place}.attention.self.{name}" for name in ("query", "key", "value")]
        theirs = {
            "self_attn.out_proj": f"{place}.attention.output.dense",
            "norm1": f"{place}.attention.output.LayerNorm",
            "linear1": f"{place}.intermediate.dense",
            "linear2": f"{place}.output.dense",
            "norm2": f"{place}.output.LayerNorm",
        }
        kind: str
        values = {
            f"{own}.{kind}": state[f"{name}.{kind}"] for own, name in theirs.items() for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            values[f"self_attn.in_proj_{kind}"] = torch.cat([state[f"{part}.{kind}"] for part in parts])
        layer.load_state_dict(values)
        x = layer.eval()(x)
    logits = linear(linear(x[:, 0], "pooler.dense").tanh(), "model.classifier")
    assert torch.allclose(network(ids), logits, atol=1e-11)


def test_a_seed_makes_the_same_values_and_every_parameter_is_trained() -> None:
    first, again = make(dropout=0.0), make(dropout=0.0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    torch.autograd.backward(F.cross_entropy(first(torch.arange(18).view(2, 9) % 11), torch.tensor([1, 2])))
    assert [name for name, parameter in first.named_parameters() if parameter.grad is None] == []
    assert first.model.bert.embeddings.word_embeddings.weight.grad[0].any()  # no token is padding


@pytest.mark.parametrize(("heads", "width"), [(12, 64), (2, 24)])
def test_initial_values_keep_the_spread_of_what_a_layer_gives(heads: int, width: int) -> None:
    """Of BERT-base it is that of inputs of spread 1 times 0.02 sqrt(768), at every width."""
    layer = make(depth=1, heads=heads, width=width).model.bert.encoder.layer[0].intermediate.dense
    given = layer(torch.randn(200, heads * width))
    assert float(given.detach().std()) == pytest.approx(0.02 * 768**0.5, rel=0.05)


def test_bert_base_has_the_published_size() -> None:
    """109,482,240 without classifier and with two kinds of segments (bert-base-uncased)."""
    with torch.device("meta"):
        network = make(classes=2, vocabulary=30522, length=512, depth=12, heads=12, width=64)
    assert sum(parameter.numel() for parameter in network.parameters()) == 109_482_240 - 768 + 2 * 769


def test_dropout_acts_in_training_only() -> None:
    network, ids = make(dropout=0.5), torch.zeros(2, 9, dtype=torch.int64)
    assert not torch.equal(network.train()(ids), network(ids))
    assert torch.equal(network.eval()(ids), network(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 0}, "heads=0"), ({"vocabulary": 0}, "vocabulary=0"), ({"dropout": 1.0}, "dropout=1.0")],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**options)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers>=5'$") as error:
        Bert(classes=2, vocabulary=5, length=4)
    assert "\n" not in str(error.value)
