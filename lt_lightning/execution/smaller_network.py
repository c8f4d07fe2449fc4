"""A smaller network, where its values stand in the full one, and a rewind point cut to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.pruning.layers import CONVOLUTIONS
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import RewindPoint, parameter_names


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
        index = tuple(None if chosen is None else chosen.to(whole.device) for chosen in self.index)
        match index:
            case () | (None,) | (None, None):
                whole.copy_(value)
            case (rows,) | (rows, None) if rows is not None:
                whole[rows] = value
            case (None, columns) if columns is not None:
                whole[:, columns] = value
            case (rows, columns) if rows is not None and columns is not None:
                whole[rows[:, None], columns] = value


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
        network: an ordinary module, of the original's class where only sizes changed, else a torch.fx graph module with
            the same submodule names.
        slices: where its parameters and buffers stand in the full network.
        unknown: operations that the analysis does not know, around which all channels were kept.
        masks: masks that training has to enforce, of parameters that are not executed sparsely.
        choice: form of each layer of a plan of blocks or of n:m weights, see `execute.choose_forms`.
    """

    network: nn.Module
    slices: Slices
    unknown: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)


# The layers of a network cut to fewer channels.


class Resizer:
    """Cuts layers of a network in place.

    Attributes:
        network: the network.
        cuts: part of every parameter and buffer that is left, by name.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.cuts: dict[str, Cut] = {}

    def layer(self, name: str, outputs: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        """Cut a convolution, linear layer or normalisation to outputs and to the inputs that it reads."""
        module = self.network.get_submodule(name)
        out = torch.from_numpy(outputs)
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            grouped = isinstance(module, CONVOLUTIONS) and module.groups > 1
            self._cut(name, "weight", (out, None if grouped else torch.from_numpy(inputs)))
            self._cut(name, "bias", (out,))
            if isinstance(module, nn.Linear):
                module.in_features, module.out_features = len(inputs), len(outputs)
            else:
                module.groups = module.groups * len(inputs) // module.in_channels if grouped else 1
                module.in_channels, module.out_channels = len(inputs), len(outputs)
        else:
            for part_name in ("weight", "bias", "running_mean", "running_var"):
                self._cut(name, part_name, (out,))
            module.num_features = len(outputs)  # type: ignore[assignment]

    def activation(self, name: str, order: NDArray[np.int64]) -> None:
        """Cut an activation that may have a parameter of its own for each channel."""
        module = self.network.get_submodule(name)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            self._cut(name, "weight", (torch.from_numpy(order),))
            module.num_parameters = len(order)

    def _cut(self, name: str, part_name: str, index: tuple[Tensor | None, ...]) -> None:
        module = self.network.get_submodule(name)
        value = getattr(module, part_name, None)
        full_name = f"{name}.{part_name}" if name else part_name
        if value is None or full_name in self.cuts:  # a module that is called again
            return
        whole = all(i is None or torch.equal(i, torch.arange(n)) for i, n in zip(index, value.shape, strict=False))
        cut = self.cuts[full_name] = Cut() if whole else Cut(index)
        if whole:
            return
        smaller = _laid_out_like(cut.take(value.detach()), value)
        if isinstance(value, nn.Parameter):
            setattr(module, part_name, nn.Parameter(smaller, requires_grad=value.requires_grad))
        else:
            setattr(module, part_name, smaller)


def _laid_out_like(cut: Tensor, value: Tensor) -> Tensor:
    """Return the part in the memory format that the whole has."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
        return cut.contiguous(memory_format=torch.channels_last)
    return cut


# A rewind point cut to a smaller network: its weights, its statistics, and the momentum of what is left.


def cut_point(point: RewindPoint, slices: Slices, network: nn.Module, optimizers: Sequence[Optimizer]) -> RewindPoint:
    """Return the rewind point of a smaller network.

    Args:
        point: rewind point of the full network.
        slices: where the small network's values stand in the full one.
        network: the small network.
        optimizers: new optimizers of the small network, with the groups of the full one's.
    """
    states = [
        _cut_state(state, names, slices, network, optimizer)
        for state, names, optimizer in zip(point.optimizers, point.names, optimizers, strict=True)
    ]
    names = [parameter_names(network, optimizer) for optimizer in optimizers]
    return RewindPoint(slices.take(point.network), states, point.schedules, names)


def _cut_state(
    state: dict[str, Any], names: list[str], slices: Slices, network: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    averages = {}
    parameters = dict(network.named_parameters())
    for number, name in enumerate(parameter_names(network, optimizer)):
        source, part = slices.parts[name]
        if (was := state["state"].get(names.index(source))) is not None:
            averages[number] = {key: _cut_value(value, part, parameters[name]) for key, value in was.items()}
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
