"""Norms of feature maps against nested loops, and Refill by them against networks that compute kept channels only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from lt_lightning.execution.execute import execute
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import find_layers, prunable_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import Batches, Structure, StructureInput, Unstructured
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Norm, Refill, feature_norms

SIZE = 5


def network() -> nn.Sequential:
    """A convolution with a stride and no bias, one with a bias, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6), nn.SiLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def subject_of(net: nn.Module, example: Tensor, images: Sequence[Tensor]) -> StructureInput:
    """Generic values other than the network's, half of them masked, and batches of the images."""
    generator = torch.Generator().manual_seed(1)
    layers = find_layers(net, example)
    weights = {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.2 - 0.7 * (value.ndim > 1)
        if value.is_floating_point()
        else value.clone()
        for name, value in net.state_dict().items()
    }
    masks: Masks = {
        layer.weight: torch.rand(layer.shape, generator=generator) < 0.5
        for layer in prunable_layers(layers, ("classifier",))
    }
    return StructureInput(TracedNetwork(net, example), masks, weights, batches=batches_of(images))


def batches_of(images: Sequence[Tensor]) -> Batches:
    return lambda count: [(batch, torch.zeros(len(batch))) for batch in images[:count]]


def draw(count: int, channels: int = 1, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def convolved(images: np.ndarray, weight: np.ndarray, bias: float | np.ndarray, stride: int, pad: int) -> np.ndarray:
    """By loops over images, channels and positions."""
    images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    side, kernel = images.shape[2], weight.shape[2]
    places = range(0, side - kernel + 1, stride)
    bias = np.zeros(len(weight)) + bias
    out = np.zeros((len(images), len(weight), len(places), len(places)))
    for image, channel, row, column in np.ndindex(*out.shape):
        top, left = places[row], places[column]
        window = images[image, :, top : top + kernel, left : left + kernel]
        out[image, channel, row, column] = (window * weight[channel]).sum() + bias[channel]
    return out


@pytest.mark.parametrize(
    ("norm", "of"),
    [("l1", lambda maps: np.abs(maps).sum((0, 2, 3))), ("l2", lambda maps: np.sqrt((maps**2).sum((0, 2, 3))))],
)
def test_norms_are_those_of_a_forward_by_loops(norm: Norm, of: Callable[[np.ndarray], np.ndarray]) -> None:
    images = draw(7)
    given = subject_of(network(), images[:1].float(), [images[:4], images[4:]])
    value = {name: each.numpy() for name, each in given.weights.items()}
    masked = {name: value[name] * mask.numpy() for name, mask in given.masks.items()}
    first = convolved(images.numpy(), masked["0.weight"], 0.0, stride=2, pad=1)
    per_channel = {
        name: value[f"1.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    }
    scaled = (first - per_channel["running_mean"]) / np.sqrt(per_channel["running_var"] + 1e-5)
    inputs = np.maximum(scaled * per_channel["weight"] + per_channel["bias"], 0)
    second = convolved(inputs, masked["3.weight"], value["3.bias"], stride=1, pad=0)
    found = feature_norms(given, norm, 2)
    assert list(found) == ["0", "3"]
    for name, maps in (("0", first), ("3", second)):
        assert found[name] == pytest.approx(of(maps), rel=1e-12)
    other = feature_norms(replace(given, batches=batches_of([images[[6, 2, 0]], images[[1, 3, 5, 4]]])), norm, 2)
    assert all(other[name] == pytest.approx(values, rel=1e-12) for name, values in found.items())
    few = feature_norms(given, norm, 1)  # as many as are asked for
    assert few["0"] == pytest.approx(of(first[:4]), rel=1e-12)


def test_the_last_axis_of_a_linear_layer_is_its_channels() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    tokens = torch.arange(30.0).view(2, 5, 3) - 10
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    mask = torch.ones(4, 3, dtype=torch.bool)
    given = StructureInput(TracedNetwork(net, tokens), {"0.weight": mask}, weights, batches=batches_of([tokens]))
    expected = np.abs(np.einsum("btc,oc->bto", tokens.double(), weights["0.weight"].double())).sum((0, 1))
    assert feature_norms(given, "l1", 1)["0"] == pytest.approx(expected, rel=1e-5)


def test_layers_that_share_a_weight_have_results_of_their_own() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    net = nn.Sequential(one, nn.ReLU(), other, nn.Linear(3, 2))
    mask, images = torch.rand(3, 3) < 0.6, torch.randn(5, 3)
    given = StructureInput(
        TracedNetwork(net, images[:1]), {"0.weight": mask}, dict(net.state_dict()), batches=batches_of([images])
    )
    masked = one.weight.detach() * mask
    first = images @ masked.T
    second = first.relu() @ masked.T
    found = feature_norms(given, "l1", 1)
    for name, values in (("0", first), ("2", second)):
        assert found[name] == pytest.approx(values.abs().sum(0).numpy(), rel=1e-5)


def test_nothing_given_is_changed() -> None:
    net = network().train()
    images = draw(3)
    given = subject_of(net, images[:1].float(), [images])
    before = copy.deepcopy((net.state_dict(), given.weights, given.masks, images))
    hooks = [len(module._forward_hooks) for module in net.modules()]
    feature_norms(given, "l2", 1)
    after = (net.state_dict(), given.weights, given.masks, images)
    for one, other in zip(before[:3], after[:3], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before[3], images)
    assert all(module.training for module in net.modules())
    assert [len(module._forward_hooks) for module in net.modules()] == hooks


@pytest.mark.parametrize("score", ["feature_l1", "feature_l2"])
def test_channels_of_a_stream_that_are_kept_have_the_largest_sum(score: str) -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8, 3, width=8)
    images = draw(12, 3, 8).float()
    parts = [images[:4], images[4:8], images[8:]]
    given = subject_of(net, images[:1], parts)
    asked: list[int] = []

    def batches(count: int) -> Sequence[tuple[Tensor, Tensor]]:
        asked.append(count)
        return batches_of(parts)(count)

    refill = Refill(score=score, round_to=1, match="filters", batches=2)  # type: ignore[arg-type]
    structured = refill(replace(given, batches=batches))
    assert asked == [2]  # one look at the network for all layers
    norms = feature_norms(given, "l1" if score == "feature_l1" else "l2", 2)
    assert isinstance(structured.plan, ChannelPlan)
    seen = 0
    for group in given.graph.groups:
        writers = [name for name in group.writers if name in norms]
        if not writers or group.frozen:
            continue
        total = sum(norms[name] for name in writers)
        kept = structured.plan.outputs.get(writers[0], torch.arange(group.channels)).tolist()
        assert kept == sorted(np.argsort(-total)[: len(kept)].tolist())
        seen += len(kept) < group.channels
    assert seen > 1
    masked = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name, mask in structured.masks.items():
            masked.get_parameter(name).mul_(mask)
    small = execute(masked, structured.plan, structured.masks, images[:1])
    assert small is not None
    with torch.no_grad():
        torch.testing.assert_close(small.network(images), masked(images))
    by_weights = Refill(round_to=1, match="filters")(given)
    assert by_weights.layers.keys() == structured.layers.keys()
    assert {n: r.kept for n, r in by_weights.layers.items()} == {n: r.kept for n, r in structured.layers.items()}
    assert any(not torch.equal(mask, by_weights.masks[name]) for name, mask in structured.masks.items())


def test_missing_batches_and_buffers_are_named() -> None:
    images = draw(2)
    given = subject_of(network(), images[:1].float(), [images])
    with pytest.raises(ValueError, match=r"^score='feature_l2': .*`batches`"):
        Refill(score="feature_l2")(replace(given, batches=None))
    parameters = {name: value for name, value in given.weights.items() if "running" not in name}
    with pytest.raises(ValueError, match=r"1\.running_mean"):
        Refill(score="feature_l1")(replace(given, weights=parameters))
    with pytest.raises(ValueError, match=r"^batches=0: "):
        Refill(batches=0)


def test_feature_scores_alone_need_batches() -> None:
    files = sorted((Path(__file__).parents[2] / "conf" / "structure").glob("*.yaml"))
    structures: dict[str, Structure] = {}
    for file in files:
        config = OmegaConf.merge({"seed": 0, "data": {"batch_size": 4}}, {"structure": OmegaConf.load(file)})
        structures |= {name: instantiate(node) for name, node in config.structure.items()}
    assert len(structures) == len(files)
    structures |= {"unstructured": Unstructured(), "features": Refill(score="feature_l2")}
    assert [name for name, structure in structures.items() if structure.needs_batches] == ["features"]
