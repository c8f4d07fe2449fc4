"""A rewind point cut to a smaller network goes on exactly where the masked one would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import cut_point, shrink_channels
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.plan import ChannelPlan
from lt_lightning.structures.refill import Refill
from tests.cases import slow_but

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "fused sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}


def steps(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, held: EnforcedMasks | None, n: int
) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(network(images), torch.arange(len(images)) % 10)
        loss.backward()  # type: ignore[no-untyped-call]
        if held is not None:
            held.zero_gradients()
        optimizer.step()


# channels_last: fused optimizers walk parameter and momentum in the order of their storage, which must be one.
QUICK = [("sgd", torch.contiguous_format), ("fused sgd", torch.channels_last), ("adamw", torch.channels_last)]


@pytest.mark.parametrize(
    ("kind", "memory_format"),
    slow_but(QUICK, product(OPTIMIZERS, (torch.contiguous_format, torch.channels_last))),
)
def test_training_goes_on_from_the_momentum_of_the_full_network(kind: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    masked = cifar_resnet(8, 10, width=8).double().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    optimizer = OPTIMIZERS[kind](masked.parameters())
    steps(masked, optimizer, images, None, 3)
    point = RewindPoint.capture(masked, [optimizer], [])

    layers = find_layers(masked, images[:1])
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach().clone() for name, parameter in masked.named_parameters()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, 0.3)
    structured = Refill(coupling="independent", round_to=2)(
        StructureInput(TracedNetwork(masked, images[:1]), masks, weights)
    )
    held = EnforcedMasks(masked, structured.masks)
    held.zero_weights()
    assert isinstance(structured.plan, ChannelPlan)
    shrunk = shrink_channels(copy.deepcopy(masked), structured.plan, images[:1])
    held.zero_optimizer_state([optimizer])

    smaller = OPTIMIZERS[kind](shrunk.network.parameters())
    cut = cut_point(point, shrunk.slices, shrunk.network, [smaller])
    cut.restore_schedule([smaller], [])
    steps(masked, optimizer, images, held, 3)
    enforced = EnforcedMasks(shrunk.network, shrunk.masks)  # of layers that write a part of a stream
    enforced.zero_weights()
    enforced.zero_optimizer_state([smaller])
    steps(shrunk.network, smaller, images, enforced, 3)
    for name, value in shrunk.slices.take(masked.state_dict()).items():
        torch.testing.assert_close(shrunk.network.state_dict()[name], value, rtol=0, atol=1e-9)
