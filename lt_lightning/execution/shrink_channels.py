"""A channel ticket's network: its own class with fewer channels, which computes the same.

Dropped channels are provably zero (a refilled ticket drops a channel with its bias, its normalisation's scale and
shift, and its readers' inputs), so leaving them out changes nothing. The module also says where the values of a smaller
network stand in the full one, cuts a rewind point to it, and keeps narrow layers clear of a defect of oneDNN.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.network_graph.graph import ChannelGraph, Flags, Liveness
from lt_lightning.network_graph.resizing import derived, indices_left, resize
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import BESIDE, RewindPoint, parameter_names
from lt_lightning.structures.plan import ChannelPlan


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
        if all(chosen is None for chosen in self.index):
            whole.copy_(value)
            return
        index = [
            (torch.arange(size) if chosen is None else chosen).to(whole.device)
            for size, chosen in zip(whole.shape, self.index, strict=False)
        ]
        crossed = [each.view([-1 if dim == at else 1 for at in range(len(index))]) for dim, each in enumerate(index)]
        whole[tuple(crossed)] = value


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

    def take_known(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the small network's part of values that only some parameters have, under its own names."""
        return {name: part.take(values[source]) for name, (source, part) in self.parts.items() if source in values}

    def then(self, second: Slices, full: Mapping[str, Tensor]) -> Slices:
        """Return where the values of a network stand in the full one, if it was made of this small one in turn.

        Args:
            second: where its values stand in the small network.
            full: state of the full network, for shapes.
        """
        parts: dict[str, tuple[str, Cut | Gather]] = {}
        for name, (between, part) in second.parts.items():
            source, first = self.parts[between]
            if part == Cut():
                parts[name] = source, first
                continue
            # Indices of the full tensor from 1, since a form may hold zeros that stand for nothing.
            index = torch.arange(1, full[source].numel() + 1).view(full[source].shape)
            parts[name] = source, Gather(part.take(first.take(index)) - 1)
        return Slices(parts)

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
        network: a module of the original's class, whose layers are smaller or replaced.
        slices: where its parameters and buffers stand in the full network.
        kept_whole: why channels are there that no structure may drop, each reason once.
        masks: masks that training has to enforce, of parameters that are not executed sparsely.
        choice: form of each layer of a plan of blocks or of n:m weights, see `form_choice.choose_forms`.
    """

    network: nn.Module
    slices: Slices
    kept_whole: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)


# A rewind point cut to a smaller network: its weights, its statistics, and the momentum of what is left.


def cut_point(
    point: RewindPoint,
    slices: Slices,
    network: nn.Module,
    optimizers: Sequence[Optimizer],
    module: nn.Module | None = None,
) -> RewindPoint:
    """Return the rewind point of a smaller network.

    Args:
        point: rewind point of the full network.
        slices: where the small network's values stand in the full one.
        network: the small network.
        optimizers: new optimizers of the small network, with the groups of the full one's.
        module: module that the small network belongs to; None if there is nothing else to train.
    """
    names = [parameter_names(network, optimizer, network if module is None else module) for optimizer in optimizers]
    states = [
        _cut_state(state, names_before, slices, network, optimizer, names_now)
        for state, names_before, optimizer, names_now in zip(
            point.optimizers, point.names, optimizers, names, strict=True
        )
    ]
    return RewindPoint(slices.take(point.network), states, point.schedules, names, point.beside)


def _cut_state(
    state: dict[str, Any],
    before: list[str],
    slices: Slices,
    network: nn.Module,
    optimizer: Optimizer,
    now: list[str],
) -> dict[str, Any]:
    averages = {}
    parameters = dict(network.named_parameters())
    for number, name in enumerate(now):
        source, part = (name, None) if name.startswith(BESIDE) else slices.parts[name]
        was = state["state"].get(before.index(source))
        if was is not None:
            averages[number] = {
                key: value if part is None else _cut_value(value, part, parameters[name]) for key, value in was.items()
            }
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


def shrink_channels(
    network: nn.Module, plan: ChannelPlan, example: Example, traced: TracedNetwork | None = None
) -> Shrunk:
    """Make the network that a channel ticket executes.

    Args:
        network: network with the ticket's values; it is left as it was.
        plan: plan of the ticket.
        example: an input batch of the true shape.
        traced: the network, or another of its kind, whose channels are known already.

    Raises:
        ValueError: if the network does not run on the example, or the plan does not fit it (`follow_plan`).

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> plan = ChannelPlan({"0": torch.tensor([1, 3])}, {"2": torch.tensor([1, 3])})
    >>> shrink_channels(net, plan, torch.zeros(1, 1, 8, 8)).network[2]
    Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    graph = (traced or TracedNetwork(network, example)).graph
    return keep_channels(network, graph, follow_plan(graph, plan))


def follow_plan(graph: ChannelGraph, plan: ChannelPlan) -> Liveness:
    """Return what a plan leaves of a network.

    Raises:
        ValueError: if it names what the network does not have, or leaves no channel of what a layer writes.
    """
    kept = {
        name: _flags(plan.outputs[name], part.size)
        for name, part in graph.rows.items()
        if name in plan.outputs and name not in graph.followers
    }
    liveness = graph.propagate(kept)
    if odd := sorted(plan.outputs.keys() - liveness.outputs.keys()):
        raise ValueError(f"the plan names {odd[0]!r}, which the network does not have")
    for name, part in graph.rows.items():
        if not liveness.wide[part].any():
            raise ValueError(f"the plan keeps no channel that {name} writes: keep one of them")
        if not liveness.kept[part].any():  # a layer cannot be without outputs; this one is zero
            kept[name][np.argmax(liveness.wide[part])] = True
    return graph.propagate(kept)


def keep_channels(network: nn.Module, graph: ChannelGraph, liveness: Liveness) -> Shrunk:
    """Make the network that computes certain channels only.

    Args:
        network: network with the values to keep; it is left as it was.
        graph: graph of the network.
        liveness: what is left of it; the rest is zero, or nothing reads it.
    """
    small = copied(network)
    resize(small, graph, liveness)
    avoid_defect(small)
    cuts = {name: _cut(index) for name, index in indices_left(graph, liveness).items()}
    first = {parameter: name for name, parameter in network.named_parameters()}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # one under several names
        if (cut := cuts.get(first[parameter])) is not None:
            cuts[name] = cut
    slices = Slices({name: (name, cuts.get(name, Cut())) for name in small.state_dict()})
    left = {name: cuts.get(name, Cut()).take(mask) for name, mask in liveness.masks(network).items()}
    return Shrunk(small, slices, tuple(graph.kept_whole), {name: mask for name, mask in left.items() if not mask.all()})


def _flags(channels: Tensor, width: int) -> Flags:
    flags = np.zeros(width, dtype=bool)
    flags[channels.numpy()] = True
    return flags


def _cut(index: dict[int, Tensor]) -> Cut:
    return Cut(tuple(index.get(dim) for dim in range(max(index) + 1)))


_BLOCK = 8  # channels that AVX2's kernels compute together


def avoid_defect(network: nn.Module) -> None:
    """Let the layers of a network that have the defect on this machine skip pixels before they compute, in place.

    In the backward pass of a strided 1x1 convolution of 2 to 7 inputs in channels_last, oneDNN's kernels for AVX2 write
    past a buffer (uxlfoundation/oneDNN, issue 6035; seen with PyTorch 2.13): the process dies, hangs, or goes on with
    wrong gradients. A shortcut of a residual network becomes such a layer where few channels are left.

    The layers compute the same, as convolutions without a stride, which do not have the defect. Nothing is done on
    processors without AVX2 or with AVX-512, nor where ONEDNN_MAX_CPU_ISA keeps oneDNN off AVX2. Layers of a dense
    network are not guarded: they are the user's own.
    """
    if uses_avx2():
        for module in network.modules():
            if is_affected(module):
                module.__class__ = derived(f"Skipping{type(module).__name__}", SkipsPixels, type(module))


def uses_avx2() -> bool:
    """Whether oneDNN computes with AVX2's kernels: the processor has nothing newer, or oneDNN may use nothing newer."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return allowed.startswith("AVX2") or (
        allowed not in ("SSE41", "AVX") and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


def is_affected(module: nn.Module) -> bool:
    """Whether a module is a convolution that has the defect, if its images are in channels_last.

    >>> [is_affected(nn.Conv2d(inputs, 16, 1, stride=2)) for inputs in (1, 2, 7, 8)]
    [False, True, True, False]
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and 1 < module.in_channels < _BLOCK
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and type(module)._conv_forward is nn.Conv2d._conv_forward
    )


class SkipsPixels(nn.Conv2d):
    """A 1x1 convolution that takes the pixels of its stride before it computes, where gradients are wanted."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            out: Tensor = super()._conv_forward(input, weight, bias)
            return out
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], weight, bias)
