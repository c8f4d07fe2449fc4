"""The network that is left of a masked one where whole channels have died, without any plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lt_lightning.execution.shrink_channels import Shrunk, keep_channels
from lt_lightning.network_graph.graph import ChannelGraph, Flags
from lt_lightning.network_graph.labels import Part
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example
from lt_lightning.pruning.masks import Masks

Survives = Callable[[str], Tensor]
"""Returns, for the name of a parameter or buffer, which elements may be other than zero."""


def shrink_masked(network: nn.Module, example: Example, masks: Masks | None = None) -> Shrunk:
    """Leave out the channels that are dead by the masks or values of a network alone; no plan is needed.

    A channel is dead if everything that is written to it is zero, or if nothing reads it.

    Args:
        network: network with the values to keep; it is left as it was. Masks must be applied to its weights.
        example: an input batch of the true shape.
        masks: masks of any parameters, by name: then the result equals the network in training, too, as long as
            pruned parameters stay at zero (in the result by its `masks`). None reads the zeros off the values: then
            it equals the network in evaluation mode.

    Raises:
        ValueError: if the network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> dead = torch.tensor([False, True, False, True])
    >>> masks = {"0.weight": dead.view(4, 1, 1, 1).expand(4, 1, 3, 3), "0.bias": dead}
    >>> shrink_masked(net, torch.zeros(1, 1, 8, 8), masks).network[0]
    Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    graph = TracedNetwork(network, example).graph
    values = {**dict(network.named_buffers()), **dict(network.named_parameters())}

    def by_mask(name: str) -> Tensor:
        return torch.ones_like(values[name], dtype=torch.bool) if masks is None or name not in masks else masks[name]

    def by_value(name: str) -> Tensor:
        return values[name].detach() != 0

    kept = _Survivors(graph, values, by_value if masks is None else by_mask).kept()
    shrunk = keep_channels(network, graph, graph.propagate(kept))
    return shrunk if masks is None else replace(shrunk, masks=_left(shrunk, masks))


class _Survivors:
    """Finds the outputs of layers that are left: what is written to a dead channel, or read from one, is dead, too."""

    def __init__(self, graph: ChannelGraph, values: Mapping[str, Tensor], survives: Survives) -> None:
        self.graph = graph
        self.values = values
        self.survives = survives
        self.weights = {
            name: survives(part.parameter).movedim(part.dim, 0).cpu().numpy() for name, part in graph.rows.items()
        }
        self.writers = {name: part for name, part in graph.rows.items() if name not in graph.followers}
        self.always = _ids(graph, [*graph.frozen])
        for ids in graph.record.summed:
            self.always[graph.units[ids.numpy()]] = True

    def kept(self) -> dict[str, Flags]:
        """Return flags of every writer's outputs."""
        alive = {name: np.ones(part.size, dtype=bool) for name, part in self.writers.items()}
        while True:
            written = self._written(alive)
            needed = self._needed(alive)
            new = {
                name: written[self.graph.unit_of(part)] & needed[self.graph.unit_of(part)]
                for name, part in self.writers.items()
            }
            self._spare(new)
            if all(np.array_equal(new[name], alive[name]) for name in new):
                return alive
            alive = new

    def _written(self, alive: dict[str, Flags]) -> Flags:
        """Return the units that may be other than zero."""
        written = self.always.copy()
        graph = self.graph
        read = self._read(alive)
        for name, part in self.writers.items():
            weight = self.weights[name]
            inputs = read.get(name)
            if inputs is not None and weight.ndim > 1:  # (outputs, inputs, ...)
                weight = weight[:, inputs]
            rows = weight.reshape(len(weight), -1).any(axis=1)
            written[graph.unit_of(part)[rows & alive[name]]] = True
        for part, roles in graph.record.roles.items():
            if "shift" in roles:
                flags = self.survives(part.parameter).movedim(part.dim, 0).cpu().numpy()
                written[graph.unit_of(part)[flags.reshape(len(flags), -1).any(axis=1)]] = True
        for name, part in graph.norms.items():
            written[graph.unit_of(part)[self._shifts(name, part)]] = True
        return written

    def _shifts(self, name: str, scale: Part) -> Flags:
        """Return which channels a normalisation shifts away from zero."""
        prefix = f"{name}." if name else ""
        shifts = np.zeros(scale.size, dtype=bool)
        if f"{prefix}bias" in self.values:
            shifts |= self.survives(f"{prefix}bias").cpu().numpy()
        if f"{prefix}running_mean" in self.values:
            moved = (self.values[f"{prefix}running_mean"] != 0).cpu()
            shifts |= (moved & self.survives(scale.parameter).cpu()).numpy()
        return shifts

    def _read(self, alive: dict[str, Flags]) -> dict[str, Flags]:
        """Return the inputs of every layer that are other than zero as far as is known."""
        there = np.zeros(len(self.always), dtype=bool)
        there |= self.always
        written = np.zeros(len(self.always), dtype=bool)
        for name, part in self.writers.items():
            there[self.graph.unit_of(part)[alive[name]]] = True
            written[self.graph.unit_of(part)] = True
        there |= ~written
        return {name: there[self.graph.unit_of(part)] for name, part in self.graph.reads.items()}

    def _needed(self, alive: dict[str, Flags]) -> Flags:
        """Return the units that a layer reads."""
        needed = self.always.copy()
        for name, part in self.graph.reads.items():
            weight = self.survives(part.parameter).movedim(part.dim, 0).cpu().numpy()
            rows = alive.get(name)
            if rows is not None and weight.ndim > 1:  # (inputs, outputs, ...)
                weight = weight[:, rows]
            columns = weight.reshape(len(weight), -1).any(axis=1)
            needed[self.graph.unit_of(part)[columns]] = True
        for part in self.graph.norms.values():
            if part.parameter in self.graph.record.counted:  # its statistics read every channel
                needed[self.graph.unit_of(part)] = True
        return needed

    def _spare(self, kept: dict[str, Flags]) -> None:
        """Keep one unit of every group, since no layer can be left without channels."""
        for group in self.graph.groups:
            left = [kept[name][group.rows[name] >= 0].any() for name in group.writers]
            if not any(left):
                for name in group.writers:
                    kept[name][group.rows[name] == 0] = True


def _ids(graph: ChannelGraph, units: list[int]) -> Flags:
    flags = np.zeros(int(graph.units.max(initial=-1)) + 1, dtype=bool)
    flags[units] = True
    return flags


def _left(shrunk: Shrunk, masks: Masks) -> Masks:
    """Return the masks that the small network still needs."""
    cut = {name: part.take(masks[source]) for name, (source, part) in shrunk.slices.parts.items() if source in masks}
    for name, mask in shrunk.masks.items():
        cut[name] = cut[name] & mask if name in cut else mask
    return {name: mask for name, mask in cut.items() if not mask.all()}
