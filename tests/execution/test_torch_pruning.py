"""The same channels dropped by us and by Torch-Pruning leave the same network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lt_lightning.execution.cost import flops, parameters
from lt_lightning.execution.shrink_channels import shrink_channels
from lt_lightning.execution.shrink_masked import shrink_masked
from lt_lightning.models.mobilenet import MobileNet
from lt_lightning.models.resnet import cifar_resnet, resnet50
from lt_lightning.models.vgg import VGG
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.channel_choice import Coupling
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from tests.cases import slow_but

torch_pruning = pytest.importorskip("torch_pruning", reason="the package torch-pruning is not installed")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: cifar_resnet(8, 10, width=8),
    "resnet50": lambda: resnet50(10, width=8, stem="imagenet"),
    "vgg11": lambda: VGG(11, 10, width=8),
    "mobilenet": lambda: MobileNet(10, width=8),
}
# Inner channels are those inside a residual block; the others have none.
CASES = [
    ("resnet8", "inner"),
    *slow_but(
        [("resnet8", "stream"), ("vgg11", "stream")], [*((name, "stream") for name in NETWORKS), ("resnet50", "inner")]
    ),
]


def pruned_by_peer(network: nn.Module, plan: ChannelPlan, example: Tensor) -> nn.Module:
    """Has Torch-Pruning drop, in every group of coupled channels, those that the plan drops."""
    peer = copy.deepcopy(network)
    dependencies = torch_pruning.DependencyGraph().build_dependency(peer, example)
    for group in ChannelGraph(network, example).groups:
        writer = group.writers[0]
        if writer not in plan.outputs:
            continue
        dropped = sorted(set(range(group.channels)) - set(plan.outputs[writer].tolist()))
        found = dependencies.get_pruning_group(
            peer.get_submodule(writer), torch_pruning.prune_conv_out_channels, idxs=dropped
        )
        found.prune()
    assert isinstance(peer, nn.Module)
    return peer


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("name", "coupling"), CASES)
def test_same_channels_same_network(name: str, coupling: Coupling) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    layers = find_layers(network, images[:1])
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {key: parameter.detach() for key, parameter in network.named_parameters()}
    masks = prune(masks, {key: weights[key].abs() for key in masks}, 0.3)
    ticket = Refill(coupling=coupling, round_to=2)(StructureInput(TracedNetwork(network, images[:1]), masks, weights))
    assert isinstance(ticket.plan, ChannelPlan)
    EnforcedMasks(network, ticket.masks).zero_weights()

    ours = shrink_channels(network, ticket.plan, images[:1]).network
    peers = pruned_by_peer(network, ticket.plan, images[:1])
    assert shapes(ours) == shapes(peers)
    assert parameters(ours) == parameters(peers) < parameters(network)
    assert flops(ours, images) == flops(peers, images) < flops(network, images)
    torch.testing.assert_close(ours(images), peers(images), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours(images), network(images), rtol=0, atol=1e-10)

    # The masks alone say as much as the plan, and what is zero by value is at least that.
    assert shapes(shrink_masked(network, images[:1], ticket.masks).network) == shapes(ours)
    by_value = shrink_masked(network, images[:1]).network
    assert all(math.prod(shape) <= math.prod(shapes(ours)[key]) for key, shape in shapes(by_value).items())
