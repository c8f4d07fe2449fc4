"""A penalty on what a structure keeps or drops together, so that little is lost when the next round drops it.

The group lasso (Yuan and Lin 2006) adds to the loss, for every group of weights, its Euclidean norm times the root of
its size. A step of the optimizer is followed by the penalty's proximal operator. It shortens every group by a length in
proportion to that root, and sets shorter ones to zero, exactly; nothing is added to the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import weight_of
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.plan import BlockPlan, ChannelPlan, HybridPlan, Plan, blocks_in_full


@dataclass(frozen=True)
class GroupPenalty:
    """The group lasso of some parameters.

    Attributes:
        strength: factor of the penalty in the loss, at least 0.
        groups: number of the group that each weight belongs to, by parameter name, in the parameter's shape; 0 for
            none.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.1], [4.0, 0.1]]))
    >>> GroupPenalty(0.5, {"weight": torch.tensor([[1, 2], [1, 2]])}).shorten(layer, rate=1.0)
    >>> layer.weight.data  # a length of 0.5 * sqrt(2) less for each column
    tensor([[2.5757, 0.0000],
            [3.4343, 0.0000]])
    """

    strength: float
    groups: Mapping[str, Tensor]

    @torch.no_grad()
    def shorten(self, network: nn.Module, rate: float) -> None:
        """Apply the proximal operator to the parameters, in place.

        Args:
            network: network with the parameters.
            rate: learning rate of the step before.
        """
        if not self.groups:
            return
        count = 1 + max(int(each.max()) for each in self.groups.values())
        parameters = {name: network.get_parameter(name) for name in self.groups}
        device = next(iter(parameters.values())).device
        numbers = {name: each.to(device) for name, each in self.groups.items()}
        squares, sizes = torch.zeros(2, count, device=device)
        for name, parameter in parameters.items():
            index = numbers[name].flatten()
            squares.index_add_(0, index, parameter.float().square().flatten())
            sizes.index_add_(0, index, torch.ones_like(index, dtype=torch.float32))
        less = rate * self.strength * sizes.sqrt() / squares.sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        factors = (1 - less).clamp_min_(0)
        factors[0] = 1
        for name, parameter in parameters.items():
            parameter.mul_(factors[numbers[name]].to(parameter.dtype))


def penalised_groups(plan: Plan | None, masks: Masks, traced: TracedNetwork) -> dict[str, Tensor]:
    """Return the number of the group that each weight belongs to, by parameter name; 0 for none.

    A group is what the plan's structure keeps or drops together: a column of a block, or all weights that make a
    channel; of a layer that a hybrid plan computes in blocks, its columns. Numbers begin with 1, and no two layers
    share one, but for the channels of a group of layers.

    Args:
        plan: plan of the ticket.
        masks: masks of the ticket.
        traced: network of the ticket.
    """
    match plan:
        case BlockPlan():
            return _columns(plan, masks)
        case ChannelPlan():
            return _channels(masks, traced)
        case HybridPlan():
            channels = _channels(masks, traced)
            first = max((int(numbers.max()) for numbers in channels.values()), default=0)
            columns = _columns(blocks_in_full(plan, {name: mask.shape for name, mask in masks.items()}), masks)
            return channels | {name: torch.where(each > 0, each + first, 0) for name, each in columns.items()}
        case _:
            return {}


def _columns(plan: BlockPlan, masks: Masks) -> dict[str, Tensor]:
    found, last = {}, 0
    for layer, blocks in plan.blocks.items():
        weight = weight_of(layer, masks)
        shape = masks[weight].shape
        columns = shape[1] if plan.granularity == "input_channel" else math.prod(shape[1:])
        numbers = torch.zeros(shape[0], columns, dtype=torch.int64)
        for block in blocks:
            numbers[block.rows[:, None], block.columns] = last + 1 + torch.arange(len(block.columns))
            last += len(block.columns)
        found[weight] = numbers.repeat_interleave(math.prod(shape[1:]) // columns, dim=1).reshape(shape)
    return found


def _channels(masks: Masks, traced: TracedNetwork) -> dict[str, Tensor]:
    found, last = {}, 0
    for group in traced.graph.groups:
        if group.frozen:
            continue
        for name in group.writers:
            layer = traced.layers.get(name)  # none of an embedding
            if layer is not None and layer.weight in masks:
                units = torch.from_numpy(group.rows[name])
                by_output = [-1 if dim == layer.output_dim else 1 for dim in range(len(layer.shape))]
                numbers = torch.where(units >= 0, last + 1 + units, 0).view(by_output)
                found[layer.weight] = torch.where(masks[layer.weight], numbers, 0)
        last += group.channels
    return found
