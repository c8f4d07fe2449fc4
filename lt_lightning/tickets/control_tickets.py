"""Control tickets, which show what the accuracy of a ticket comes from.

A ticket consists of the weights that are kept, the values that they restart from, and the size of the network. Each
control keeps some of these three and changes the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lt_lightning.network_graph.graph import Flags
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import Layer, find_layers, weight_of
from lt_lightning.pruning.masks import Masks, digest
from lt_lightning.structures.base import LayerReport, StructureInput, Unstructured
from lt_lightning.structures.channel_choice import channel_masks, channel_plan
from lt_lightning.structures.plan import (
    Block,
    BlockPlan,
    ChannelPlan,
    HybridPlan,
    NMPlan,
    Plan,
    blocks_in_full,
    masks_of_blocks,
    shapes_left,
)
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Card, Ticket, make_card

LINEAGE = ("data", "model", "seed", "round", "structure", "rewind", "mode", "target_density")


def reinitialised(ticket: Ticket, network: nn.Module) -> Ticket:
    """Return a ticket with the same masks and other initial values (Frankle and Carbin 2019), to be trained from them.

    Args:
        ticket: ticket to compare with.
        network: network that is freshly initialised with another seed.
    """
    return replace(ticket, rewind=_state(network), trained=None, card=_untrained(ticket.card))


def randomly_masked(ticket: Ticket, network: nn.Module, example: Tensor, generator: torch.Generator) -> Ticket:
    """Return a ticket that keeps as many weights of each prunable layer, at random positions, with the same values.

    It has no plan, whatever the ticket's plan.

    Args:
        ticket: ticket to compare with.
        network: network of the ticket; its values do not matter.
        example: input batch of the true shape.
        generator: generator that draws the positions.
    """
    traced = TracedNetwork(network, example)
    names = [traced.layers[name].weight for name in ticket.card["prunable"]]
    masks = {name: _shuffled(ticket.masks[name], generator) for name in names}
    made = make_ticket(ticket.card["structure"], Unstructured(), StructureInput(traced, masks, {}), ticket.rewind)
    facts = {**_lineage(ticket.card), "total_epochs": ticket.epochs_before}
    return replace(made.with_facts(**facts), layers=_unmeasured(made.layers))


def shuffled(ticket: Ticket, network: nn.Module, example: Tensor, generator: torch.Generator) -> Ticket:
    """Return a ticket that executes at the same cost, but keeps other channels, or other rows and columns, at random.

    Channels are permuted alike in all layers that share them, so that as many are live everywhere; rows and columns
    of blocks in each layer on its own; N:M weights among each m inputs. A ticket without a plan, none of whose layers
    could be structured, has no structure to keep: it is `randomly_masked`.

    Args:
        ticket: ticket to compare with.
        network: network of the ticket; its values do not matter.
        example: input batch of the true shape.
        generator: generator that draws the permutations.
    """
    masks: Masks
    plan: Plan
    match ticket.plan:
        case ChannelPlan():
            masks, plan = _shuffle_channels(ticket, ticket.plan, network, example, generator)
        case BlockPlan():
            plan = _shuffle_blocks(ticket.plan, _shapes(ticket.masks), generator)
            masks = {**ticket.masks, **masks_of_blocks(plan, _shapes(ticket.masks))}
        case HybridPlan():
            whole, channels = _shuffle_channels(ticket, ticket.plan.channels, network, example, generator)
            shapes = _shapes(whole)
            plan = HybridPlan(channels, _shuffle_blocks(ticket.plan.blocks, shapes_left(channels, shapes), generator))
            masks = {**whole, **masks_of_blocks(blocks_in_full(plan, shapes), shapes)}
        case NMPlan():
            masks, plan = _shuffle_within(ticket.masks, ticket.plan.m, generator), ticket.plan
        case None:
            return randomly_masked(ticket, network, example, generator)
    facts = {"mask_digest": digest(masks), "total_epochs": ticket.epochs_before}
    card = make_card({**_untrained(ticket.card), **facts})
    return Ticket(masks, ticket.rewind, None, plan, _unmeasured(ticket.layers), card)


def small_dense(ticket: Ticket, make: Callable[[int], nn.Module], width: int, example: Tensor) -> Ticket:
    """Return a dense network that is narrower everywhere, with nearly as many multiply-adds as the ticket executes.

    Args:
        ticket: ticket to compare with.
        make: function that returns a freshly initialised network of a given width.
        width: width of the full network.
        example: input batch of the true shape.

    Returns:
        A ticket for `make(card["width"])`, without masks; its ratios are those to the full network.
    """
    full = find_layers(make(width), example)
    target = ticket.card["flops_ratio"] * _operations(full)
    chosen = nearest_width(lambda each: _operations(find_layers(make(each), example)), target, width)
    network = make(chosen)
    layers = find_layers(network, example)
    reports = {name: _report(full[name], layers[name], ticket.layers.get(name)) for name in full}
    prunable = list(ticket.card["prunable"])
    density = sum(layers[name].size for name in prunable) / sum(full[name].size for name in prunable)
    return Ticket({}, _state(network), None, None, _unmeasured(reports), make_card(_lineage(ticket.card))).with_facts(
        width=chosen,
        prunable=prunable,
        density=density,
        params_ratio=_parameters(network) / _parameters(make(width)),
        flops_ratio=_operations(layers) / _operations(full),
    )


def nearest_width(cost: Callable[[int], float], target: float, most: int) -> int:
    """Return the width from 1 to `most` whose cost is nearest to a target, if cost grows with width.

    >>> nearest_width(lambda width: width**2, 30, most=16)
    5
    """
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if cost(middle) < target else (low, middle)
    return min({max(1, low - 1), low}, key=lambda width: abs(cost(width) - target))


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _shapes(masks: Masks) -> dict[str, Sequence[int]]:
    return {name: mask.shape for name, mask in masks.items()}


def _lineage(card: Card) -> dict[str, Any]:
    """Return what of a card a control has in common with its ticket."""
    return {key: value for key, value in card.items() if key in LINEAGE}


def _untrained(card: Card) -> Card:
    """Return a card without what was measured when the ticket itself was trained."""
    kept = (*LINEAGE, "density", "params_ratio", "flops_ratio", "prunable", "mask_digest")
    return make_card({key: value for key, value in card.items() if key in kept})


def _operations(layers: Mapping[str, Layer]) -> int:
    return sum(layer.size * layer.positions for layer in layers.values())


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _report(full: Layer, small: Layer, ticket: LayerReport | None) -> LayerReport:
    target = full.size if ticket is None else ticket.target
    return LayerReport(full.size, target, small.size, small.size, full.positions, "channels")


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    return mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view(mask.shape)


def _shuffle_channels(
    ticket: Ticket, plan: ChannelPlan, network: nn.Module, example: Tensor, generator: torch.Generator
) -> tuple[Masks, ChannelPlan]:
    traced = TracedNetwork(network, example)
    graph = traced.graph
    kept: dict[str, Flags] = {}
    for group in graph.groups:
        if group.frozen:
            continue
        permutation = torch.randperm(group.channels, generator=generator).numpy()
        for name in group.writers:
            units = group.rows[name]
            flags = np.ones(group.channels, dtype=bool)
            if (channels := plan.outputs.get(name)) is not None:
                flags[units[units >= 0]] = False
                flags[units[channels.numpy()][units[channels.numpy()] >= 0]] = True
            mine = flags[permutation][units] | (units < 0)
            kept[name] = kept[name] & mine if name in kept else mine
    liveness = graph.propagate(kept)
    names = [traced.layers[name].weight for name in ticket.card["prunable"]]
    whole = {name: torch.ones_like(ticket.masks[name]) for name in names}
    return channel_masks(StructureInput(traced, whole, {}), liveness), channel_plan(liveness)


def _shuffle_blocks(plan: BlockPlan, shapes: Mapping[str, Sequence[int]], generator: torch.Generator) -> BlockPlan:
    """Return a plan of blocks with the same sizes, with other rows and columns."""
    blocks: dict[str, Sequence[Block]] = {}
    for name, old in plan.blocks.items():
        shape = shapes[weight_of(name, shapes)]
        sizes = (shape[0], shape[1] if plan.granularity == "input_channel" else math.prod(shape[1:]))
        # New positions of the old rows and columns.
        rows, columns = (torch.randperm(size, generator=generator) for size in sizes)
        blocks[name] = [Block(rows[block.rows].sort().values, columns[block.columns].sort().values) for block in old]
    return BlockPlan(plan.granularity, blocks)


def _shuffle_within(masks: Masks, m: int, generator: torch.Generator) -> Masks:
    """Permute each m consecutive inputs of each output and position; leave layers whose inputs m does not divide."""
    changed = {}
    for name, mask in masks.items():
        if mask.dim() < 2 or mask.shape[1] % m:
            changed[name] = mask
            continue
        groups = mask.reshape(len(mask), -1, m, *mask.shape[2:])
        permutation = torch.rand(groups.shape, generator=generator).argsort(dim=2)
        changed[name] = groups.gather(2, permutation).flatten(1, 2)
    return changed


def _unmeasured(layers: Mapping[str, LayerReport]) -> dict[str, LayerReport]:
    """Return reports without the retained magnitude of a layer, which belongs to the ticket and not to its control."""
    return {name: replace(report, retained_magnitude=math.nan) for name, report in layers.items()}
