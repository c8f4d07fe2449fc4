"""A rewind point cut to a smaller network: its weights, its statistics, and the momentum of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.pruning.rewind import RewindPoint, parameter_names
from lt_lightning.shrink.slices import Cut, Gather, Slices


def cut_point(point: RewindPoint, slices: Slices, network: nn.Module, optimizers: Sequence[Optimizer]) -> RewindPoint:
    """The point for a smaller network.

    Args:
        point: of the full network.
        slices: where the small network's values stand in the full one.
        network: the small one.
        optimizers: of the small network, freshly made, with the groups of the full one's.
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
    """An average has its parameter's shape; a counter is a single number, and stays."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    # In the parameter's memory format: fused optimizers walk both in the order of their storage.
    return torch.empty_like(parameter, requires_grad=False).copy_(part.take(value))
