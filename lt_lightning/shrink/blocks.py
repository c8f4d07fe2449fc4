"""A group ticket as a network whose layers compute their blocks only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks
from lt_lightning.shrink.channels import Shrunk
from lt_lightning.shrink.input_channel import GroupedChannelConv2d, GroupedChannelLinear
from lt_lightning.shrink.regrouped import RegroupedConv2d, RegroupedLinear
from lt_lightning.shrink.slices import Cut, Gather, Slices
from lt_lightning.structures.base import Block, BlockPlan, Grain

Accept = Callable[[str, nn.Module, nn.Module], bool]


def swap_blocks(network: nn.Module, plan: BlockPlan, masks: Masks, accept: Accept | None = None) -> Shrunk:
    """Replaces the layers of a plan by layers that compute their blocks.

    Args:
        network: with the values to keep (of the ticket, applied); it is left as it was.
        plan: of the ticket.
        masks: of the ticket. Those of layers that are not replaced are the result's `masks`, to be held.
        accept: given the name, the dense layer and its replacement, whether to replace it (if it is faster, say);
            None replaces all that can be.
    """
    swapped = copy.deepcopy(network)
    sources: dict[str, tuple[str, Cut | Gather]] = {}
    replaced = set()
    for name, blocks in plan.blocks.items():
        layer = network.get_submodule(name)
        small = replacement(layer, blocks, plan.grain)
        if small is None or (accept is not None and not accept(name, layer, small)):
            continue
        small.train(layer.training)
        if name:
            swapped.set_submodule(name, small)
        else:
            swapped = small
        replaced.add(name)
        sources |= _sources(name, layer, small, blocks, plan.grain)
    own = network.state_dict()
    for name in swapped.state_dict():
        if name not in sources and name in own:
            sources[name] = (name, Cut())
    rest = {name: mask for name, mask in masks.items() if name.rpartition(".")[0] not in replaced}
    return Shrunk(swapped, Slices(sources), masks=rest)


def replacement(layer: nn.Module, blocks: Sequence[Block], grain: Grain) -> nn.Module | None:
    """The layer that computes only these blocks, with copies of the values; None if there is no form for them."""
    try:
        match layer, grain:
            case nn.Conv2d(), "kernel_position":
                return RegroupedConv2d.from_conv(layer, blocks)
            case nn.Linear(), "kernel_position":
                return RegroupedLinear.from_linear(layer, blocks)
            case nn.Conv2d(), "input_channel":
                return GroupedChannelConv2d.from_conv(layer, blocks)
            case nn.Linear(), "input_channel":
                return GroupedChannelLinear.from_linear(layer, blocks)
            case _:
                return None
    except ValueError:  # blocks that no format holds: they share filters, or are of unequal size
        return None


def _sources(
    name: str, layer: nn.Module, small: nn.Module, blocks: Sequence[Block], grain: Grain
) -> Mapping[str, tuple[str, Cut | Gather]]:
    """Where each parameter of the replacement comes from: read off a copy whose values are their own indices."""
    probe = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in probe.parameters():
            # From 1, since a replacement may hold zeros that stand for nothing.
            parameter.copy_(torch.arange(1, parameter.numel() + 1).view(parameter.shape))
    marked = replacement(probe, blocks, grain)
    assert marked is not None
    prefix = f"{name}." if name else ""
    return {
        prefix + key: (prefix + _full_name(key), Gather(value.detach().cpu().long() - 1))
        for key, value in marked.named_parameters()
    }


def _full_name(key: str) -> str:
    """`weight` of `conv.weight`: a replacement may hold its parameters a level deeper."""
    return key.rpartition(".")[2]


def input_shapes(network: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of one sample of every named layer's input, at the network's true shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name in names:

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            shapes[name] = tuple(inputs[0].shape[1:])

        hooks.append(network.get_submodule(name).register_forward_pre_hook(note))
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            network._call_impl(example)  # type: ignore[no-untyped-call]  # hooks, but no compilation
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return shapes
