"""The network that a ticket's plan makes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.blocks import Choose, first_form, input_shapes, remembered, swap_blocks
from lt_lightning.execution.channels.channels import shrink_channels
from lt_lightning.execution.fastest_form import FastestForm
from lt_lightning.execution.semi_structured import leave_dense, swap_semi_structured
from lt_lightning.execution.smaller_network import Shrunk
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import BlockPlan, ChannelPlan, NMPlan, Plan


def execute(
    network: nn.Module,
    plan: Plan | None,
    masks: Masks,
    example: Tensor,
    batch_size: int | None = None,
    training: bool = False,
    device: str = "cpu",
    choice: Mapping[str, str] | None = None,
    bfloat16: bool = False,
) -> Shrunk | None:
    """Makes the network that executes a plan.

    Without a plan nothing is left out, dead channels included, which an unstructured ticket may have at extreme
    sparsity: what is exported is rebuilt from its plan alone, and a trained ticket keeps the values of all weights that
    its masks keep, read or not. `masked.shrink_masked` leaves such channels out, given the masks.

    Args:
        network: with the ticket's values, applied; it is left as it was.
        plan: of the ticket.
        masks: of the ticket.
        example: an input batch of the true shape.
        batch_size: a layer of blocks is computed by what is measured fastest at that batch size, the dense layer
            included; None takes blocks for every layer that can be, in plain PyTorch if possible.
        training: measure training steps rather than inference.
        device: to measure on.
        choice: of an earlier call (`Shrunk.choice`), to be followed instead of measuring.
        bfloat16: measure in bfloat16 rather than float32.

    Returns:
        the network; None where the plan has nothing that can be skipped.
    """
    match plan:
        case ChannelPlan():
            return shrink_channels(network, plan, example)
        case BlockPlan():
            choose: Choose = first_form
            if choice is not None:
                choose = remembered(choice)
            elif batch_size is not None:
                shapes = input_shapes(network, list(plan.blocks), example)
                choose = FastestForm(shapes, batch_size, training, device, bfloat16)
            return swap_blocks(network, plan, masks, choose)
        case NMPlan():
            if training or not bfloat16 or torch.device(device).type != "cuda":
                return swap_semi_structured(network, plan, masks, leave_dense)
            shapes = input_shapes(network, list(plan.layers), example)
            faster = first_form if batch_size is None else FastestForm(shapes, batch_size, training, device, bfloat16)
            return swap_semi_structured(network, plan, masks, faster)
        case None:
            return None
