"""The network that a ticket's plan makes: fewer channels, or every layer in the form that is measured fastest."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from lt_lightning.execution.blocks.block_formats import stands_for
from lt_lightning.execution.blocks.input_channels import Form, GroupedChannelConv2d, GroupedChannelLinear
from lt_lightning.execution.blocks.kernel_positions import RegroupedConv2d, RegroupedLinear
from lt_lightning.execution.semi_structured import semi_structured_forms
from lt_lightning.execution.shrink_channels import Cut, Gather, Shrunk, Slices, shrink_channels
from lt_lightning.execution.timing import Shape, time_layers
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.examples import Example, call_network, copied
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.executable import computes_two_of_four, why_no_blocks, why_not_held
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Granularity, NMPlan, Plan

Forms = Mapping[str, nn.Module]
DENSE_FORM = "dense"
"""The form of a layer that is left as it is."""


def execute(
    network: nn.Module,
    plan: Plan | None,
    masks: Masks,
    example: Example,
    batch_size: int | None = None,
    training: bool = False,
    device: str = "cpu",
    choice: Mapping[str, str] | None = None,
    bfloat16: bool = False,
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
        batch_size: see `choose_forms`, like `training`, `device` and `bfloat16`.
        training: likewise.
        device: likewise.
        choice: form of every layer, as `choose_forms` returned it before; None chooses now.
        bfloat16: likewise.
        traced: the network, or another of its kind, whose channels are known already.

    Returns:
        The network, or None where the plan has nothing that can be skipped.
    """
    match plan:
        case None:
            return None
        case ChannelPlan():
            return shrink_channels(network, plan, example, traced)
        case BlockPlan() | NMPlan():
            if choice is None:
                choice = choose_forms(network, plan, example, batch_size, training, device, bfloat16)
            return swap_layers(network, plan, masks, choice)


# The forms that layers can take, and the choice among them.


def choose_forms(
    network: nn.Module,
    plan: Plan | None,
    example: Example,
    batch_size: int | None = None,
    training: bool = False,
    device: str = "cpu",
    bfloat16: bool = False,
) -> dict[str, str]:
    """Choose the form of every layer of a plan of blocks or of n:m weights; other plans leave no choice.

    Args:
        network: network with the ticket's values.
        plan: plan of the ticket.
        example: an input batch of the true shape.
        batch_size: number of images for which the fastest form is measured, the dense layer included; None takes the
            first form of every layer that has one, in plain PyTorch if possible.
        training: measure training steps rather than inference.
        device: device to measure on.
        bfloat16: measure in bfloat16 rather than float32.
    """
    if plan is None or isinstance(plan, ChannelPlan):
        return {}
    names = list(_planned_layers(plan))
    if isinstance(plan, NMPlan) and (training or not bfloat16 or torch.device(device).type != "cuda"):
        return dict.fromkeys(names, DENSE_FORM)
    forms = {name: forms_of(network, plan, name) for name in names}
    if batch_size is None:
        return {name: next(iter(of_layer), DENSE_FORM) for name, of_layer in forms.items()}
    fastest = FastestForm(input_shapes(network, names, example), batch_size, training, device, bfloat16)
    return {name: fastest(name, network.get_submodule(name), of_layer) for name, of_layer in forms.items()}


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


def _planned_layers(plan: BlockPlan | NMPlan) -> Sequence[str]:
    return list(plan.blocks) if isinstance(plan, BlockPlan) else plan.layers


@dataclass
class FastestForm:
    """Chooses the form of a layer that is measured fastest, and remembers what it measured.

    Attributes:
        shapes: shape of one sample of each layer's input, by layer name.
        batch_size: number of samples.
        training: whether forward and backward are timed, or forward alone.
        device: device to measure on.
        bfloat16: precision, as `time_layers` explains.
    """

    shapes: Mapping[str, Shape]
    batch_size: int
    training: bool
    device: torch.device | str = "cpu"
    bfloat16: bool = False
    _known: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str, layer: nn.Module, forms: Forms) -> str:
        """Return the name of the fastest form, `DENSE_FORM` where that is the layer as it is."""
        shape = self.shapes[name]
        key = f"{layer} {forms} {shape}"
        if key not in self._known:
            self._known[key] = self._measure(layer, forms, shape) if forms else DENSE_FORM
        return self._known[key]

    def _measure(self, layer: nn.Module, forms: Forms, shape: Shape) -> str:
        contenders = {name: (form, shape) for name, form in ({DENSE_FORM: layer} | dict(forms)).items()}
        timings = time_layers(
            contenders, self.batch_size, self.training, self.bfloat16, self.device, samples=5, slot=0.01
        )
        return min(timings, key=lambda name: timings[name].median)


def input_shapes(network: nn.Module, names: Sequence[str], example: Example) -> dict[str, Shape]:
    """Return the shape of one sample of every named layer's input, at the network's true shapes."""
    shapes: dict[str, Shape] = {}
    hooks = []
    for name in names:

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            shapes[name] = tuple(inputs[0].shape[1:])

        hooks.append(network.get_submodule(name).register_forward_pre_hook(note))
    try:
        with evaluating(network):
            call_network(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


# The exchange of the layers.


def swap_layers(network: nn.Module, plan: BlockPlan | NMPlan, masks: Masks, choice: Mapping[str, str]) -> Shrunk:
    """Replace the layers of a plan by the forms that were chosen.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        masks: masks of the ticket. The result keeps those that training has to enforce: all but those of layers that
            compute their blocks alone.
        choice: form of every layer of the plan, see `choose_forms`.
    """
    swapped = copied(network)
    choice = {name: choice[name] for name in _planned_layers(plan)}
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
