"""A group ticket as a network whose layers compute their blocks only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lt_lightning.evaluation import evaluating
from lt_lightning.execution.blocks.input_channels import GroupedChannelConv2d, GroupedChannelLinear
from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.execution.smaller_network import Cut, Gather, Shrunk, Slices
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import Block, BlockPlan, Granularity

Forms = Mapping[str, nn.Module]
Choose = Callable[[str, nn.Module, Forms], str | None]
DENSE = "dense"


def first_form(name: str, layer: nn.Module, forms: Forms) -> str | None:
    """Chooses the first form that there is: plain PyTorch where the granularity allows it."""
    return next(iter(forms), None)


def remembered(choice: Mapping[str, str]) -> Choose:
    """Chooses what was chosen before: `Shrunk.choice`."""
    return lambda name, layer, forms: None if choice[name] == DENSE else choice[name]


def swap_blocks(network: nn.Module, plan: BlockPlan, masks: Masks, choose: Choose = first_form) -> Shrunk:
    """Replaces the layers of a plan by layers that compute their blocks.

    Args:
        network: with the values to keep (of the ticket, applied); it is left as it was.
        plan: of the ticket.
        masks: of the ticket. Those of layers that are not replaced are the result's `masks`, to be held.
        choose: given the name, the dense layer and its possible forms (`forms_of`), which of them replaces it (the
            fastest, say), or None for none. Called for every layer of the plan.
    """
    swapped = copy.deepcopy(network)
    sources: dict[str, tuple[str, Cut | Gather]] = {}
    choice = {}
    for name, blocks in plan.blocks.items():
        layer = network.get_submodule(name)
        forms = forms_of(layer, blocks, plan.granularity)
        chosen = choose(name, layer, forms)
        choice[name] = chosen or DENSE
        if chosen is None:
            continue
        small = forms[chosen].train(layer.training)
        if name:
            swapped.set_submodule(name, small)
        else:
            swapped = small
        sources |= _sources(name, layer, blocks, plan.granularity, chosen)
    own = network.state_dict()
    for name in swapped.state_dict():
        if name not in sources and name in own:
            sources[name] = (name, Cut())
    rest = {name: mask for name, mask in masks.items() if choice.get(name.rpartition(".")[0], DENSE) == DENSE}
    return Shrunk(swapped, Slices(sources), masks=rest, choice=choice)


def forms_of(layer: nn.Module, blocks: Sequence[Block], granularity: Granularity) -> dict[str, nn.Module]:
    """The layers that compute only these blocks, with copies of the values, by the name of their form.

    `blocks` is our block convolution; `grouped` and `loop` are plain PyTorch, for whole input channels. None is there
    for blocks that share filters or are of unequal size.
    """
    try:
        match layer, granularity:
            case nn.Conv2d(), "kernel_position":
                return {"blocks": RegroupedConv2d.from_conv(layer, blocks)}
            case nn.Linear(), "kernel_position":
                return {"blocks": RegroupedLinear.from_linear(layer, blocks)}
            case nn.Conv2d(), "input_channel":
                return {
                    "grouped": GroupedChannelConv2d.from_conv(layer, blocks),
                    "loop": GroupedChannelConv2d.from_conv(layer, blocks, form="loop"),
                    "blocks": RegroupedConv2d.from_conv(layer, _every_position(blocks, layer)),
                }
            case nn.Linear(), "input_channel":
                return {
                    "grouped": GroupedChannelLinear.from_linear(layer, blocks),
                    "blocks": RegroupedLinear.from_linear(layer, blocks),
                }
            case _:
                return {}
    except ValueError:  # blocks that no format holds
        return {}


def _every_position(blocks: Sequence[Block], conv: nn.Conv2d) -> list[Block]:
    """Blocks of whole input channels as blocks of kernel positions."""
    positions = torch.arange(math.prod(conv.kernel_size))
    return [Block(block.rows, (block.columns[:, None] * len(positions) + positions).flatten()) for block in blocks]


def _sources(
    name: str, layer: nn.Module, blocks: Sequence[Block], granularity: Granularity, form: str
) -> Mapping[str, tuple[str, Cut | Gather]]:
    """Where each parameter of the replacement comes from: read off a copy whose values are their own indices."""
    probe = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in probe.parameters():
            # From 1, since a replacement may hold zeros that stand for nothing.
            parameter.copy_(torch.arange(1, parameter.numel() + 1).view(parameter.shape))
    marked = forms_of(probe, blocks, granularity)[form]
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
    try:
        with evaluating(network):
            network._call_impl(example)  # type: ignore[no-untyped-call]  # hooks, but no compilation
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
