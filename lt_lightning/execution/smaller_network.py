"""A smaller network, where its values stand in the full one, and a rewind point cut to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import BESIDE, RewindPoint, parameter_names


@dataclass(frozen=True)
class Cut:
    """Indices along the leading dimensions of a tensor; None for all of them in that dimension."""

    index: tuple[Tensor | None, ...] = ()

    def take(self, whole: Tensor) -> Tensor:
        """Return a copy of the part."""
        for dimension, chosen in enumerate(self.index):
            if chosen is not None:
                whole = whole.index_select(dimension, chosen.to(whole.device))
        return whole.clone()

    def put(self, value: Tensor, whole: Tensor) -> None:
        """Write the part back, in place."""
        if all(chosen is None for chosen in self.index):
            whole.copy_(value)
            return
        index = [
            (torch.arange(size) if chosen is None else chosen).to(whole.device)
            for size, chosen in zip(whole.shape, self.index, strict=False)
        ]
        crossed = [each.view([-1 if dim == at else 1 for at in range(len(index))]) for dim, each in enumerate(index)]
        whole[tuple(crossed)] = value


@dataclass(frozen=True)
class Gather:
    """Elements of a tensor by flat index, in the shape of the part; -1 where the part has a zero of its own."""

    index: Tensor

    def take(self, whole: Tensor) -> Tensor:
        """Return a copy of the part."""
        index = self.index.to(whole.device)
        return whole.reshape(-1)[index.clamp_min(0)] * (index >= 0).to(whole.dtype)

    def put(self, value: Tensor, whole: Tensor) -> None:
        """Write the part back, in place."""
        index = self.index.to(whole.device)
        flat = whole.reshape(-1)  # a copy where the memory format is another
        flat[index[index >= 0]] = value.to(whole.device)[index >= 0]
        whole.copy_(flat.view(whole.shape))


@dataclass(frozen=True)
class Slices:
    """Where every parameter and buffer of the small network stands in the full one.

    Attributes:
        parts: name in the full network and part of that, by name in the small one; without buffers that the full
            network does not have.
    """

    parts: Mapping[str, tuple[str, Cut | Gather]]

    def take(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the small network's part of a full state dict.

        Raises:
            KeyError: if the state misses a name.
        """
        return {name: part.take(state[source]) for name, (source, part) in self.parts.items()}

    def put(self, state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a full state dict with the small network's values where it has any, and zeros elsewhere.

        Args:
            state: state of the small network.
            full: state of the full one, for names, shapes and types.
        """
        whole = {name: value.new_zeros(value.shape) for name, value in full.items()}
        for name, (source, part) in self.parts.items():
            part.put(state[name].to(whole[source].device, whole[source].dtype), whole[source])
        return whole


@dataclass(frozen=True)
class Shrunk:
    """The network that executes a ticket.

    Attributes:
        network: a module of the original's class, whose layers are smaller or replaced.
        slices: where its parameters and buffers stand in the full network.
        kept_whole: why channels are there that no structure may drop, each reason once.
        masks: masks that training has to enforce, of parameters that are not executed sparsely.
        choice: form of each layer of a plan of blocks or of n:m weights, see `execute.choose_forms`.
    """

    network: nn.Module
    slices: Slices
    kept_whole: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)


# A rewind point cut to a smaller network: its weights, its statistics, and the momentum of what is left.


def cut_point(
    point: RewindPoint,
    slices: Slices,
    network: nn.Module,
    optimizers: Sequence[Optimizer],
    module: nn.Module | None = None,
) -> RewindPoint:
    """Return the rewind point of a smaller network.

    Args:
        point: rewind point of the full network.
        slices: where the small network's values stand in the full one.
        network: the small network.
        optimizers: new optimizers of the small network, with the groups of the full one's.
        module: module that the small network belongs to; None if there is nothing else to train.
    """
    names = [parameter_names(network, optimizer, network if module is None else module) for optimizer in optimizers]
    states = [
        _cut_state(state, names_before, slices, network, optimizer, names_now)
        for state, names_before, optimizer, names_now in zip(
            point.optimizers, point.names, optimizers, names, strict=True
        )
    ]
    return RewindPoint(slices.take(point.network), states, point.schedules, names, point.beside)


def _cut_state(
    state: dict[str, Any],
    before: list[str],
    slices: Slices,
    network: nn.Module,
    optimizer: Optimizer,
    now: list[str],
) -> dict[str, Any]:
    averages = {}
    parameters = dict(network.named_parameters())
    for number, name in enumerate(now):
        source, part = (name, None) if name.startswith(BESIDE) else slices.parts[name]
        was = state["state"].get(before.index(source))
        if was is not None:
            averages[number] = {
                key: value if part is None else _cut_value(value, part, parameters[name]) for key, value in was.items()
            }
    groups = [
        {**group, "params": mine["params"]}
        for group, mine in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    return {**state, "state": averages, "param_groups": groups}


def _cut_value(value: Any, part: Cut | Gather, parameter: Tensor) -> Any:
    """Cut an average, which has its parameter's shape; a counter is a single number, and stays."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    # In the parameter's memory format: fused optimizers walk both in the order of their storage.
    return torch.empty_like(parameter, requires_grad=False).copy_(part.take(value))
