"""Layers by order of execution, and what is exempt."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.vgg import VGG
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import Layer, find_layers, left_out, prunable_layers, why_not_pruned


class Backwards(nn.Module):
    """Modules declared against the order in which they run, under names that mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Linear(8, 3)
        self.fc = nn.Conv2d(4, 8, 3, padding=1)
        self.never = nn.Conv2d(1, 1, 1)
        self.classifier = nn.Conv2d(1, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(self.fc(self.classifier(x)).mean((2, 3)))
        return out


def test_stem_and_classifier_are_found_by_execution_not_by_name() -> None:
    layers = find_layers(Backwards(), torch.zeros(2, 1, 8, 8))
    assert list(layers) == ["classifier", "fc", "conv1"]
    assert {name: set(layer.roles) for name, layer in layers.items()} == {
        "classifier": {"stem"},
        "fc": set(),
        "conv1": {"classifier", "linear"},
    }
    assert [layer.name for layer in prunable_layers(layers, ("stem", "classifier"))] == ["fc"]


def test_vggs_first_convolution_is_a_stem() -> None:
    """The official code exempts only what is called `conv1`, so it prunes this one."""
    layers = find_layers(VGG(11, classes=4, width=4), torch.zeros(1, 3, 16, 16))
    stem = next(iter(layers.values()))
    assert "stem" in stem.roles
    assert stem.name not in [layer.name for layer in prunable_layers(layers, ("stem", "classifier"))]


@pytest.mark.parametrize("batch", [1, 3])
def test_positions_are_those_of_pytorchs_flop_counter(batch: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.Conv2d(4, 6, (1, 3), groups=2), nn.Flatten(1), nn.Linear(6 * 3 * 1, 5)
    )
    example = torch.zeros(batch, 2, 7, 7)
    layers = find_layers(network, example)
    with FlopCounterMode(display=False) as counter:
        network(example)
    expected = 2 * batch * sum(layer.size * layer.positions for layer in layers.values())
    assert counter.get_total_flops() == expected


class Windows(nn.Module):
    """Folds windows of an image, and then its tokens, into the batch, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.mlp = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        windows = x.view(n, 3, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
        tokens = self.conv(windows).flatten(2).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        images = self.up(tokens.transpose(1, 2).reshape(-1, 8, 4, 4))
        out: Tensor = self.mlp(images.permute(0, 2, 3, 1).reshape(-1, 4))
        return out.view(n, -1, 6).mean(1)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_folded_into_the_batch_counts_by_sample(batch: int) -> None:
    layers = find_layers(Windows(), torch.zeros(batch, 3, 8, 12))
    assert {name: layer.positions for name, layer in layers.items()} == {
        "conv": 96, "attention.in_proj": 96, "attention.out_proj": 96, "up": 96, "mlp": 384
    }  # fmt: skip


def test_layers_may_be_called_with_named_arguments() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.up = nn.MultiheadAttention(8, 2, batch_first=True), nn.ConvTranspose1d(8, 4, 2)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.attention(query=x, key=x, value=x)
            out: Tensor = self.head(input=self.up(input=x.transpose(1, 2)).mean(2))
            return out

    layers = find_layers(Named(), torch.zeros(2, 5, 8))
    assert {name: layer.positions for name, layer in layers.items()} == {
        "attention.in_proj": 5, "attention.out_proj": 5, "up": 5, "head": 1
    }  # fmt: skip


def test_a_layer_called_twice_counts_its_positions_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(self.conv(x)[:, :, ::2])
            return out

    layers = find_layers(Twice(), torch.zeros(1, 1, 4, 4))
    assert [(layer.name, layer.positions) for layer in layers.values()] == [("conv", 16 + 8)]


def test_a_linear_layer_over_a_sequence_counts_every_position() -> None:
    layers = find_layers(nn.Sequential(nn.Linear(4, 2)), torch.zeros(2, 5, 4))
    assert layers["0"] == Layer("0", (2, 4), 1, 5, frozenset({"linear", "stem", "classifier"}))
    assert layers["0"].weight == "0.weight"


def test_depthwise_is_a_role() -> None:
    layers = find_layers(MobileNet(classes=3, width=4), torch.zeros(1, 3, 32, 32))
    depthwise = [name for name, layer in layers.items() if "depthwise" in layer.roles]
    assert depthwise == [name for name in layers if name.endswith("depthwise")]
    assert len(depthwise) == 13
    left = prunable_layers(layers, ("depthwise", "linear"))
    assert [layer.name for layer in left] == [n for n in layers if n not in depthwise and n != "classifier"]


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2))
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    find_layers(network, torch.ones(2, 1, 4, 4))
    assert [module.training for module in network] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_go_and_modes_return_after_an_error_too() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(7, 2))
    with pytest.raises(ValueError, match=r"\bSequential\b"):
        find_layers(network, torch.ones(2, 1, 4, 4))
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bReLU\b"):
        find_layers(nn.ReLU(), torch.zeros(1, 1))


def layers_of(*names: str) -> dict[str, Layer]:
    return {name: Layer(name, (2, 2), 1, 1) for name in names}


@pytest.mark.parametrize(
    ("exempt", "left"),
    [
        ((), ["stages.0.conv", "stages.1.conv", "head"]),
        (("stages.0.*",), ["stages.1.conv", "head"]),
        (("*.conv",), ["head"]),
        (("head", "stages.1.conv"), ["stages.0.conv"]),
    ],
)
def test_patterns(exempt: tuple[str, ...], left: list[str]) -> None:
    layers = layers_of("stages.0.conv", "stages.1.conv", "head")
    assert [layer.name for layer in prunable_layers(layers, exempt)] == left


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("exempt=['sterm']: 'sterm'")):
        prunable_layers(layers_of("a", "b"), ["sterm"])


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("exempt=['*']: ")):
        prunable_layers(layers_of("a", "b"), ["*"])


# Weights that are not pruned: computed, frozen, tied, or those of no layer


class Kinds(nn.Module):
    """A network of layers and of weights that belong to none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 8))  # of the module's own
        self.words = nn.Embedding(5, 8)  # 40
        self.lstm = nn.LSTM(8, 8, batch_first=True)  # 512
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)  # 192 and 64
        self.computed = parametrizations.weight_norm(nn.Linear(8, 8))  # 64 and 8 norms
        self.frozen = nn.Linear(8, 8)  # 64
        self.hidden = nn.Linear(8, 16)  # 128
        self.never = nn.Linear(3, 2)  # 6
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)  # 64
        self.frozen.weight.requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.lstm(self.words(words))[0] + self.scale.sum(0)
        x = self.frozen(self.computed(self.attention(x, x, x)[0]))
        out: Tensor = self.head(self.norm(self.hidden(x)).mean(1))
        return out


def test_weights_of_no_layer_and_frozen_ones_are_told_with_their_shares() -> None:
    network = Kinds()
    layers = find_layers(network, torch.tensor([[1, 2, 3]]))
    assert list(layers) == ["attention.in_proj", "attention.out_proj", "frozen", "hidden", "head"]
    others = {
        "lstm (LSTM)": 512, "computed (computed weight)": 72, "words (Embedding)": 40, "the network (Kinds)": 16,
        "never (Linear)": 6,
    }  # fmt: skip
    total = sum(others.values()) + 192 + 64 + 64 + 128 + 64
    assert total == sum(value.numel() for value in network.parameters() if value.dim() > 1)
    first, second = left_out(network, layers)
    assert first.startswith(f"{sum(others.values()) / total:.1%} of the weights belong to no layer ")
    named = first.partition(": ")[2]
    assert named == ", ".join(f"{name} {size / total:.1%}" for name, size in others.items())
    assert second.startswith(f"{64 / total:.1%} of the weights are those of frozen layers ")
    assert second.endswith(f": frozen {64 / total:.1%}")


def test_a_network_of_layers_alone_has_nothing_to_tell() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(2), nn.Flatten(), nn.Linear(8, 2))
    assert left_out(network, find_layers(network, torch.zeros(1, 1, 4, 4))) == []


def test_frozen_layers_are_not_pruned() -> None:
    layers = find_layers(Kinds(), torch.tensor([[1, 2, 3]]))
    assert "frozen" not in {layer.name for layer in prunable_layers(layers, ())}
    with pytest.raises(ValueError, match=r"exempt=\['hidden', .*frozen \(frozen\), hidden \(hidden\)"):
        prunable_layers(layers, ("hidden", "classifier", "attention.*"))


def test_computed_ends_are_the_ends_all_the_same() -> None:
    """A stem with a computed weight is the stem: the layer behind it is none."""
    network = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    layers = find_layers(network, torch.zeros(1, 4))
    assert {name: set(layer.roles) for name, layer in layers.items()} == {
        "1": {"linear"}, "2": {"linear"}, "3": {"linear", "classifier"},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"\bSequential\b"):
        find_layers(network[:1], torch.zeros(1, 4))


class Tied(nn.Module):
    """Two layers of one weight, and a classifier with the weight of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.one, self.two = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6)
        self.one.weight = self.two.weight
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.one(self.two(self.words(words))).mean(1))
        return out


def test_tied_layers_have_one_weight() -> None:
    network = Tied()
    layers = find_layers(network, torch.tensor([[1, 2]]))
    assert {name: (layer.weight, layer.tied_to) for name, layer in layers.items()} == {
        "two": ("two.weight", ""),  # it runs first
        "one": ("two.weight", "two"),
        "head": ("head.weight", ""),
    }
    assert [layer.weight for layer in prunable_layers(layers, ())] == ["two.weight", "head.weight"]
    assert [layer.weight for layer in prunable_layers(layers, ("one",))] == ["head.weight"]
    assert why_not_pruned(layers.values(), ("one",)) == {
        "two": ["its weight is that of one"], "one": ["one"], "head": []
    }  # fmt: skip
    assert left_out(network, layers) == []


def test_masks_of_tied_weights_are_enforced_by_any_name() -> None:
    network = Tied()
    masks = {"head.weight": torch.rand(6, 4) < 0.5, "two.weight": torch.rand(4, 4) < 0.5}
    EnforcedMasks(network, masks).zero_weights()
    assert torch.equal(network.words.weight != 0, masks["head.weight"])
    assert torch.equal(network.one.weight != 0, masks["two.weight"])
