"""A network cut to some of its channels: its own class, with smaller parameters.

The network's code is its own and runs as before; only parameters, buffers, and the sizes that modules of PyTorch note
of them are cut. Where a layer writes some of a stream's channels only, it puts zeros between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lt_lightning.network_graph.attention import keep_heads
from lt_lightning.network_graph.graph import ChannelGraph, Flags, Liveness, module_of
from lt_lightning.network_graph.labels import Part
from lt_lightning.pruning.layers import has_plain_heads, is_conv1d

Index = Mapping[int, Tensor]
"""Indices that are left, by dimension."""


def indices_left(graph: ChannelGraph, liveness: Liveness) -> dict[str, dict[int, Tensor]]:
    """Return the indices that are left of every parameter and buffer that is cut, by its name."""
    left: dict[str, dict[int, Tensor]] = {}
    writers, readers = layers_at_ends(graph)
    ends = {*writers, *map(graph.bias_of, writers), *readers}
    for part, wide in liveness.wide.items():
        flags = liveness.kept[part] if part in ends else wide
        if not flags.all():
            left.setdefault(part.parameter, {})[part.dim] = torch.from_numpy(np.flatnonzero(flags))
    return left


def layers_at_ends(graph: ChannelGraph) -> tuple[list[Part], list[Part]]:
    """Return outputs and inputs of all layers that may write, or read, some channels of a wider tensor."""
    writers = [part for name, part in graph.rows.items() if name not in graph.followers]
    writers, readers = (
        [part for part in parts if not graph.is_by_function(part)] for parts in (writers, graph.reads.values())
    )
    return writers, readers


def resize(network: nn.Module, graph: ChannelGraph, liveness: Liveness) -> None:
    """Cut a network in place.

    Args:
        network: the network, or a copy of it.
        graph: graph of the network.
        liveness: what is left of it.
    """
    left = indices_left(graph, liveness)
    _cut(network, left)
    for name, module in network.named_modules():
        parts = {part: index for full, index in left.items() if (part := _own(name, full))}
        if parts:
            _note_sizes(module, parts)
        inside = [full for full in left if not name or full.startswith(f"{name}.")]
        if has_plain_heads(module) and inside:
            keep_heads(module, parts.get("in_proj_weight", {}).get(0))
        if isinstance(module, nn.TransformerEncoderLayer) and inside:
            module.activation_relu_or_gelu = 0  # else it computes all of its layers in one, from their weights alone
        if (full := _full(name, "weight")) in graph.record.counted and "weight" in parts:
            _count(module, graph.record.counted[full])
        if (before := graph.record.grouped.get(full)) and "weight" in parts:
            whole = graph.rows.get(name, graph.norms.get(name))
            assert whole is not None
            _set_groups(module, before * len(parts["weight"][0]) // whole.size)
    for size in graph.sizes:
        setattr(network.get_submodule(size.module), size.attribute, size.scaled(size.number_in(network), liveness))
    for ends, side in zip(layers_at_ends(graph), ("writes", "reads"), strict=True):
        for end in ends:
            kept, wide = liveness.kept[end], liveness.wide[end]
            if not np.array_equal(kept, wide):
                _make_partial(network.get_submodule(module_of(end.parameter)), side, kept[wide])


def _own(name: str, full: str) -> str:
    """Return a module's own name of a parameter; empty if the parameter is not its own."""
    module, _, part = full.rpartition(".")
    return part if module == name else ""


def _full(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _cut(network: nn.Module, left: Mapping[str, Index]) -> None:
    """Replace parameters and buffers, under every name that they have."""
    named = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    smaller: dict[int, Tensor] = {}
    for name, index in left.items():
        whole = named[name]
        part = _laid_out_like(take(whole.detach(), index), whole)
        is_parameter = isinstance(whole, nn.Parameter)
        smaller[id(whole)] = nn.Parameter(part, requires_grad=whole.requires_grad) if is_parameter else part
        vars(smaller[id(whole)]).update(vars(whole))  # marks of the user, such as `_no_weight_decay`
    for module in network.modules():
        for values in (module._parameters, module._buffers):
            for key, value in values.items():
                if id(value) in smaller:
                    values[key] = smaller[id(value)]  # type: ignore[assignment]


def take(whole: Tensor, index: Index) -> Tensor:
    """Return a copy of a part of a tensor."""
    for dim, chosen in index.items():
        whole = whole.index_select(dim, chosen.to(whole.device))
    return whole.clone()


def _laid_out_like(cut: Tensor, value: Tensor) -> Tensor:
    """Return the part in the memory format that the whole has."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
        return cut.contiguous(memory_format=torch.channels_last)
    return cut


# What modules note of their sizes


def _note_sizes(module: nn.Module, parts: Mapping[str, Index]) -> None:
    """Let PyTorch's modules say what their parameters are."""
    weight: Any = getattr(module, "weight", None)
    match module:
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case nn.modules.conv._ConvNd():
            outputs, inputs = (1, 0) if module.transposed else (0, 1)
            module.out_channels, module.in_channels = weight.shape[outputs], weight.shape[inputs] * module.groups
        case _NormBase():
            module.num_features = len(weight if weight is not None else module.running_mean)  # type: ignore[arg-type]
        case nn.LayerNorm():
            module.normalized_shape = tuple(weight.shape)
        case nn.GroupNorm():
            module.num_channels = len(weight)
        case nn.Embedding():
            module.embedding_dim = weight.shape[1]
        case nn.PReLU():
            module.num_parameters = weight.numel()
        case _ if is_conv1d(module):
            module.nx, module.nf = weight.shape


def _set_groups(module: nn.Module, groups: int) -> None:
    match module:
        case nn.modules.conv._ConvNd():
            module.groups = groups
            module.in_channels = module.weight.shape[1] * groups
        case nn.GroupNorm():
            module.num_groups = groups


_DERIVED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def derived(name: str, first: type[nn.Module], second: type[nn.Module]) -> type[nn.Module]:
    """Return the class of that name that derives from two, the same whenever it is asked for."""
    return _DERIVED.setdefault((first, second), type(name, (first, second), {"__module__": __name__}))


# Normalisations over channels, some of which are left out


def _count(module: nn.Module, channels: int) -> None:
    """Let a normalisation count the channels that were left out, which are zero, in its mean and variance."""
    norms: list[tuple[type[nn.Module], type[nn.Module]]] = [
        (nn.LayerNorm, CountedLayerNorm), (nn.GroupNorm, CountedGroupNorm),
    ]  # fmt: skip
    for own, counted in norms:
        if isinstance(module, own):
            # A class derived from PyTorch's finds the counting one behind itself, if it calls what it inherits.
            module.__class__ = (
                counted if type(module) is own else derived(f"Counted{type(module).__name__}", type(module), counted)
            )
            module.all_channels = channels  # type: ignore[assignment]


def _normalised(x: Tensor, dims: tuple[int, ...], left: int, channels: int, eps: float) -> Tensor:
    """Normalise over dimensions in which only some channels stand, and the others are zero."""
    share = left / channels
    mean = x.mean(dims, keepdim=True) * share
    # The squared distances of what is left, and those of the zeros that are not.
    variance = (x - mean).square().mean(dims, keepdim=True) * share + mean.square() * (1 - share)
    return (x - mean) * torch.rsqrt(variance + eps)


class CountedLayerNorm(nn.LayerNorm):
    """A layer normalisation whose mean and variance count channels that are zero and left out.

    Attributes:
        all_channels: number of all channels.
    """

    all_channels: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (..., channels left)."""
        scaled = _normalised(input, (-1,), input.shape[-1], self.all_channels, self.eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias


class CountedGroupNorm(nn.GroupNorm):
    """A group normalisation of one group whose mean and variance count channels that are zero and left out.

    Attributes:
        all_channels: number of all channels.
    """

    all_channels: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (batch, channels left, ...)."""
        dims = tuple(range(1, input.dim()))
        shape = (1, -1, *[1] * (input.dim() - 2))
        scaled = _normalised(input, dims, input.shape[1], self.all_channels, self.eps) * self.weight.view(shape)
        return scaled + self.bias.view(shape)


# Layers that write or read some channels of a wider tensor


def _make_partial(module: nn.Module, side: str, flags: Flags) -> None:
    if not isinstance(module, Partial):
        module.__class__ = derived(f"Partial{type(module).__name__}", Partial, type(module))
        for buffer in ("reads", "writes", "sources"):
            module.register_buffer(buffer, None, persistent=False)
    positions = torch.from_numpy(np.flatnonzero(flags)).to(next(module.parameters()).device)
    setattr(module, side, positions)
    if side == "writes":
        sources = torch.full((len(flags),), len(positions), device=positions.device)
        sources[positions] = torch.arange(len(positions), device=positions.device)
        module.sources = sources


class Partial(nn.Module):
    """What lets a layer read and write some channels of wider tensors; a base beside the layer's own class.

    Attributes:
        reads: place of every channel that the layer reads, (inputs,); None for all.
        writes: place of every channel that the layer computes, (outputs,); None for all. The others are zero.
        sources: number of the computed channel for every channel that is written; for zeros the one behind the last.
    """

    reads: Tensor | None
    writes: Tensor | None
    sources: Tensor

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the layer computes, with whatever else it takes (`output_size` of a transposed convolution)."""
        dim = 1 if isinstance(self, nn.modules.conv._ConvNd) else -1
        given = input if self.reads is None else input.index_select(dim, self.reads)
        computed: Tensor = super().forward(given, *args, **kwargs)
        if self.writes is None:
            return computed
        if torch.compiler.is_exporting():  # which runtimes compute faster than a copy into a part
            behind = computed.dim() - 2 if dim == 1 else 0
            return F.pad(computed, (*[0, 0] * behind, 0, 1)).index_select(dim, self.sources)
        shape = [*computed.shape]
        shape[dim] = len(self.sources)
        return computed.new_zeros(shape).index_copy(dim, self.writes, computed)
