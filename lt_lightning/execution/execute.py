"""The network that a ticket's plan makes: fewer channels, or every layer in a form that computes its blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.block_formats import stands_for
from lt_lightning.execution.blocks.input_channels import Form, GroupedChannelConv2d, GroupedChannelLinear
from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.execution.semi_structured import semi_structured_forms
from lt_lightning.execution.shrink_channels import Cut, Gather, Shrunk, Slices, shrink_channels
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.executable import computes_two_of_four, why_no_blocks, why_not_held
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Granularity, HybridPlan, NMPlan, Plan

Forms = Mapping[str, nn.Module]
DENSE_FORM = "dense"
"""The form of a layer that is left as it is."""


def execute(
    network: nn.Module,
    plan: Plan | None,
    masks: Masks,
    example: Example,
    choice: Mapping[str, str] | None = None,
    traced: TracedNetwork | None = None,
) -> Shrunk | None:
    """Make the network that executes a plan.

    Without a plan nothing is left out, dead channels included, which an unstructured ticket may have at extreme
    sparsity: what is exported is rebuilt from its plan alone, and a trained ticket keeps the values of all weights that
    its masks keep, read or not. `shrink_masked` leaves such channels out, given the masks.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        masks: masks of the ticket.
        example: an input batch of the true shape.
        choice: form of every layer, see `form_choice.choose_forms`; None takes the `first_forms`.
        traced: the network, or another of its kind, whose channels are known already.

    Returns:
        The network, or None where the plan has nothing that can be skipped.
    """
    match plan:
        case None:
            return None
        case ChannelPlan():
            return shrink_channels(network, plan, example, traced)
        case HybridPlan():
            return _execute_hybrid(network, plan, masks, example, choice, traced)
        case BlockPlan() | NMPlan():
            return swap_layers(network, plan, masks, first_forms(network, plan) if choice is None else choice)


def _execute_hybrid(
    network: nn.Module,
    plan: HybridPlan,
    masks: Masks,
    example: Example,
    choice: Mapping[str, str] | None,
    traced: TracedNetwork | None,
) -> Shrunk:
    """Leave channels out, then exchange the layers that compute blocks of what is left."""
    small = shrink_channels(network, plan.channels, example, traced)
    left = {name: mask for name, mask in small.slices.take_known(masks).items() if not mask.all()}
    swapped = swap_layers(
        small.network, plan.blocks, left, first_forms(small.network, plan.blocks) if choice is None else choice
    )
    slices = small.slices.then(swapped.slices, network.state_dict())
    return replace(swapped, slices=slices, kept_whole=small.kept_whole)


# The forms that layers can take.


def first_forms(network: nn.Module, plan: BlockPlan | NMPlan) -> dict[str, str]:
    """Return the first form of every layer that has one, in plain PyTorch if possible; n:m weights run dense."""
    if isinstance(plan, NMPlan):
        return dict.fromkeys(plan.layers, DENSE_FORM)
    return {name: next(iter(forms_of(network, plan, name)), DENSE_FORM) for name in plan.blocks}


def forms_of(network: nn.Module, plan: BlockPlan | NMPlan, name: str) -> Forms:
    """Return the modules that compute only what the plan keeps of a layer, with copies of its values, by form.

    There are none where the layer has to stay what it is, or its blocks fit no format.
    """
    layer = network.get_submodule(name)
    match plan:
        case BlockPlan(blocks=blocks):
            possible = not (why_no_blocks(network, name) or why_not_held(blocks[name], len(_weight(layer))))
        case NMPlan():
            possible = computes_two_of_four(network, name)
    return _forms(layer, plan, name) if possible else {}


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _forms(layer: nn.Module, plan: BlockPlan | NMPlan, name: str) -> Forms:
    if isinstance(plan, NMPlan):
        return semi_structured_forms(layer)
    return _block_forms(layer, plan.blocks[name], plan.granularity)


def _block_forms(layer: nn.Module, blocks: Sequence[Block], granularity: Granularity) -> Forms:
    """Return the forms of a layer of blocks.

    `blocks` is our block convolution; `grouped` and `loop` are plain PyTorch, for whole input channels where every
    filter is in a block.
    """
    columns = sum(len(block.columns) for block in blocks)
    in_groups = sum(len(block.rows) for block in blocks) == len(_weight(layer)) and columns > 0
    forms: dict[str, nn.Module] = {}
    match layer, granularity:
        case nn.Conv2d(), "kernel_position":
            forms = {"blocks": RegroupedConv2d.from_conv(layer, blocks)}
        case nn.Linear(), "kernel_position":
            forms = {"blocks": RegroupedLinear.from_linear(layer, blocks)}
        case nn.Conv2d(), "input_channel":
            if in_groups:
                forms = {form: GroupedChannelConv2d.from_conv(layer, blocks, form=form) for form in get_args(Form)}
            forms["blocks"] = RegroupedConv2d.from_conv(layer, _every_position(blocks, layer))
        case nn.Linear(), "input_channel":
            if in_groups:
                forms = {"grouped": GroupedChannelLinear.from_linear(layer, blocks)}
            forms["blocks"] = RegroupedLinear.from_linear(layer, blocks)
    return forms


def _every_position(blocks: Sequence[Block], conv: nn.Conv2d) -> list[Block]:
    """Return blocks of whole input channels as blocks of kernel positions."""
    positions = torch.arange(math.prod(conv.kernel_size))
    return [Block(block.rows, (block.columns[:, None] * len(positions) + positions).flatten()) for block in blocks]


def planned_layers(plan: BlockPlan | NMPlan) -> Sequence[str]:
    """Return the names of the layers that a plan says something of."""
    return list(plan.blocks) if isinstance(plan, BlockPlan) else plan.layers


# The exchange of the layers.


def swap_layers(network: nn.Module, plan: BlockPlan | NMPlan, masks: Masks, choice: Mapping[str, str]) -> Shrunk:
    """Replace the layers of a plan by the forms that were chosen.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        masks: masks of the ticket. The result keeps those that training has to enforce: all but those of layers that
            compute their blocks alone.
        choice: form of every layer of the plan, see `form_choice.choose_forms`.
    """
    swapped = copied(network)
    choice = {name: choice[name] for name in planned_layers(plan)}
    sources: dict[str, tuple[str, Cut | Gather]] = {}
    computed_alone: set[str] = set()
    for name, form in choice.items():
        if form == DENSE_FORM:
            continue
        layer = network.get_submodule(name)
        small = forms_of(network, plan, name)[form].train(layer.training)
        if name:
            swapped.set_submodule(name, small)
        else:
            swapped = small
        if isinstance(plan, BlockPlan):
            sources |= _sources(name, layer, plan, form)
            computed_alone.add(name)
    own = network.state_dict()
    sources |= {name: (name, Cut()) for name in swapped.state_dict() if name not in sources and name in own}
    rest = {name: mask for name, mask in masks.items() if name.rpartition(".")[0] not in computed_alone}
    return Shrunk(swapped, Slices(sources), masks=rest, choice=choice)


def _sources(name: str, layer: nn.Module, plan: BlockPlan, form: str) -> Mapping[str, tuple[str, Cut | Gather]]:
    """Return where each parameter of a form comes from, read off a copy whose values are their own indices."""
    probe = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in probe.parameters():
            # From 1, since a form may hold zeros that stand for nothing.
            parameter.copy_(torch.arange(1, parameter.numel() + 1).view(parameter.shape))
    marked = _forms(probe, plan, name)[form]
    prefix = f"{name}." if name else ""
    return {
        prefix + key: (prefix + stands_for(key), Gather(value.detach().cpu().long() - 1))
        for key, value in marked.named_parameters()
    }
