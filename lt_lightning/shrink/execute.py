"""The network that a ticket's plan makes."""

from __future__ import annotations

from torch import Tensor, nn

from lt_lightning.measure.layers import FasterLayer
from lt_lightning.pruning.masks import Masks
from lt_lightning.shrink.blocks import input_shapes, swap_blocks
from lt_lightning.shrink.channels import Shrunk, shrink_channels
from lt_lightning.structures.base import BlockPlan, ChannelPlan, Plan


def execute(
    network: nn.Module,
    plan: Plan | None,
    masks: Masks,
    example: Tensor,
    batch_size: int | None = None,
    training: bool = False,
    device: str = "cpu",
) -> Shrunk | None:
    """Makes the network that executes a plan.

    Args:
        network: with the ticket's values, applied; it is left as it was.
        plan: of the ticket.
        masks: of the ticket.
        example: an input batch of the true shape.
        batch_size: a layer's blocks replace it only where they are measured faster at that batch size; None replaces
            every layer that can be.
        training: measure training steps rather than inference.
        device: to measure on.

    Returns:
        the network; None where the plan has nothing that can be skipped.
    """
    match plan:
        case ChannelPlan():
            return shrink_channels(network, plan, example)
        case BlockPlan():
            accept = None
            if batch_size is not None:
                shapes = input_shapes(network, list(plan.blocks), example)
                accept = FasterLayer(shapes, batch_size, training, device)
            return swap_blocks(network, plan, masks, accept)
        case None:
            return None
