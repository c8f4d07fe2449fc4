"""Any masked network, rebuilt without the channels that its masks leave dead.

An unstructured ticket promises nothing about channels, but at extreme sparsity many are dead. A channel is
left out where it is provably zero, or where nothing reads it. A filter without weights is not enough: the BatchNorm
behind it emits its shift, which is kept where it may be other than zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_lightning.execution.shrink_channels import keep_channels
from lt_lightning.execution.smaller_network import Shrunk
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.liveness import Alive, Flags
from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.layers import CONVOLUTIONS
from lt_lightning.pruning.masks import Masks

Survives = Callable[[str, Tensor], Tensor]
"""Returns, for the full name and the value of a parameter, which elements may be other than zero."""


def shrink_masked(network: nn.Module, example: Tensor, masks: Masks | None = None) -> Shrunk:
    """Leave out the channels that are dead by the masks or values of a network alone; no plan is needed.

    Args:
        network: network with the values to keep; it is left as it was. Masks must be applied to its weights: a layer
            whose weight is computed from other parameters (`torch.nn.utils.prune` before `prune.remove`) is unknown.
        example: an input batch of the true shape.
        masks: masks of any parameters, by name: then the result equals the network in training, too, as long as
            pruned parameters stay at zero (in the result by its `masks`). None reads the zeros off the values: then
            it equals the network in evaluation mode, for images of the example's size, and a channel that no
            input changes is dead where it is zero (a ReLU behind a negative shift).

    Raises:
        ValueError: if the network cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> dead = torch.tensor([False, True, False, True])
    >>> masks = {"0.weight": dead.view(4, 1, 1, 1).expand(4, 1, 3, 3), "0.bias": dead}
    >>> shrink_masked(net, torch.zeros(1, 1, 8, 8), masks).network[0]
    Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    graph = ChannelGraph(network, example)

    def by_mask(name: str, value: Tensor) -> Tensor:
        return torch.ones_like(value, dtype=torch.bool) if masks is None or name not in masks else masks[name]

    def by_value(name: str, value: Tensor) -> Tensor:
        return value != 0

    survives = by_value if masks is None else by_mask
    modules = dict(network.named_modules())
    alive = {
        operation.name: _alive(operation.name, modules[operation.name], survives)
        for operation in graph.operations
        if operation.kind in ("dense", "grouped", "depthwise", "norm")
    }
    present = graph.flow.find_channels(alive, _nonzero(network, graph, example) if masks is None else None)
    shrunk = keep_channels(network, graph, present)
    return replace(shrunk, masks=_left(shrunk, masks or {}))


def _alive(name: str, module: nn.Module, survives: Survives) -> Alive:
    """Return what of a module may be other than zero."""

    def flags(part: str) -> Flags:
        value: Tensor = getattr(module, part)
        known: Flags = survives(f"{name}.{part}" if name else part, value.detach()).cpu().numpy()
        return known

    weight = flags("weight")
    shift = np.zeros(len(weight), dtype=bool) if module.bias is None else flags("bias")
    if isinstance(module, _BatchNorm):
        mean = module.running_mean
        drifts = np.zeros_like(shift) if mean is None else (mean != 0).cpu().numpy()
        return Alive(weight, shift | (weight & drifts))
    reads: Flags = np.asarray(weight.reshape(*weight.shape[:2], -1).any(axis=2))
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        reads = _by_group(reads, module.groups)
    return Alive(np.asarray(reads.any(axis=1)), shift, reads)


def _by_group(reads: Flags, groups: int) -> Flags:
    """Return (outputs, inputs of a group) as (outputs, inputs): outside its own group an output reads nothing."""
    own = np.eye(groups, dtype=bool)[:, None, :, None]
    whole: Flags = own & reads.reshape(groups, -1, 1, reads.shape[1])
    return whole.reshape(len(reads), -1)


class _Recorder(fx.Interpreter):
    """Runs a trace and notes which channels of every result are other than zero."""

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__(graph.trace)
        self.indices = {node: index for index, node in enumerate(graph.nodes)}
        self.nonzero: list[Flags] = [np.ones(operation.channels, dtype=bool) for operation in graph.operations]

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.indices and isinstance(result, Tensor) and result.dim() > 1:
            self.nonzero[self.indices[n]] = (result != 0).transpose(0, 1).flatten(1).any(1).cpu().numpy()
        return result


def _nonzero(network: nn.Module, graph: ChannelGraph, example: Tensor) -> Sequence[Flags]:
    """Return the channels of each operation that are not zero for the example, in evaluation mode."""
    recorder = _Recorder(graph)
    with evaluating(network):
        recorder.run(example)
    return recorder.nonzero


def _left(shrunk: Shrunk, masks: Masks) -> Masks:
    """Return the masks that the small network still needs."""
    cut = {name: part.take(masks[source]) for name, (source, part) in shrunk.slices.parts.items() if source in masks}
    return {name: mask for name, mask in cut.items() if not mask.all()}
