"""A channel ticket's network: its own class with fewer channels, which computes the same.

Dropped channels are provably zero (a refilled ticket drops a channel with its bias, its normalisation's scale and
shift, and its readers' inputs), so leaving them out changes nothing.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from lt_lightning.execution.onednn import avoid_defect
from lt_lightning.execution.smaller_network import Cut, Shrunk, Slices
from lt_lightning.network_graph.graph import ChannelGraph, Flags, Liveness
from lt_lightning.network_graph.resizing import indices_left, resize
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example, copied
from lt_lightning.structures.plan import ChannelPlan


def shrink_channels(
    network: nn.Module, plan: ChannelPlan, example: Example, traced: TracedNetwork | None = None
) -> Shrunk:
    """Make the network that a channel ticket executes.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        example: an input batch of the true shape.
        traced: the network, or another of its kind, whose channels are known already.

    Raises:
        ValueError: if the network does not run on the example.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> plan = ChannelPlan({"0": torch.tensor([1, 3])}, {"2": torch.tensor([1, 3])})
    >>> shrink_channels(net, plan, torch.zeros(1, 1, 8, 8)).network[2]
    Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    graph = (traced or TracedNetwork(network, example)).graph
    return keep_channels(network, graph, follow_plan(graph, plan))


def follow_plan(graph: ChannelGraph, plan: ChannelPlan) -> Liveness:
    """Return what a plan leaves of a network.

    Raises:
        ValueError: if it leaves no channel of what a layer writes.
    """
    kept = {
        name: _flags(plan.outputs[name], part.size)
        for name, part in graph.rows.items()
        if name in plan.outputs and name not in graph.followers
    }
    liveness = graph.propagate(kept)
    if odd := sorted(plan.outputs.keys() - liveness.outputs.keys()):
        raise ValueError(f"the plan names {odd[0]!r}, which the network does not have")
    for name, part in graph.rows.items():
        if not liveness.wide[part].any():
            raise ValueError(f"the plan keeps no channel that {name} writes: keep one of them")
        if not liveness.kept[part].any():  # a layer cannot be without outputs; this one is zero
            kept[name][np.argmax(liveness.wide[part])] = True
    return graph.propagate(kept)


def keep_channels(network: nn.Module, graph: ChannelGraph, liveness: Liveness) -> Shrunk:
    """Make the network that computes certain channels only.

    Args:
        network: network with the values to keep; it is left as it was.
        graph: graph of the network.
        liveness: what is left of it; the rest is zero, or nothing reads it.
    """
    small = copied(network)
    resize(small, graph, liveness)
    avoid_defect(small)
    cuts = {name: _cut(index) for name, index in indices_left(graph, liveness).items()}
    first = {parameter: name for name, parameter in network.named_parameters()}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # one under several names
        if (cut := cuts.get(first[parameter])) is not None:
            cuts[name] = cut
    slices = Slices({name: (name, cuts.get(name, Cut())) for name in small.state_dict()})
    left = {name: cuts.get(name, Cut()).take(mask) for name, mask in liveness.masks(network).items()}
    return Shrunk(small, slices, tuple(graph.kept_whole), {name: mask for name, mask in left.items() if not mask.all()})


def _flags(channels: Tensor, width: int) -> Flags:
    flags = np.zeros(width, dtype=bool)
    flags[channels.numpy()] = True
    return flags


def _cut(index: dict[int, Tensor]) -> Cut:
    return Cut(tuple(index.get(dim) for dim in range(max(index) + 1)))
