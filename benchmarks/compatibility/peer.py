"""What Torch-Pruning does to the same network, asked for the same shares of channels.

It gets what its examples give it: the layers that write the results, to leave them alone, the number of heads of each
attention, and numbers in the attention's module that are set to what is left.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compatibility.measure import Left, compare, prepared, with_masks
from benchmarks.compatibility.networks import Case
from lt_lightning.pruning.examples import Example, copied, tensors_in
from lt_lightning.pruning.layers import Layer, find_layers, prunable_layers

_QUERIES = ("query", "q_proj", "q_lin", "q")
_KEYS_AND_VALUES = ("key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "k", "v")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_WIDTHS = ("all_head_size", "attn_dim", "inner_dim")
_LIMIT = 30  # seconds of the processor
_OF_ONE_HEAD = ("attention_head_size", "head_dim")


@dataclass(frozen=True)
class Peer:
    """What Torch-Pruning did.

    Attributes:
        droppable: share of the prunable weights that have an output or input in one of its groups.
        left: what is left at each density; `evaluation` compares with the network in which the same is zero.
        problem: why there is nothing left to see; empty if there is.
    """

    droppable: float | None = None
    left: dict[str, Left] = field(default_factory=dict)
    problem: str = ""


def is_there() -> bool:
    """Whether Torch-Pruning is installed."""
    return importlib.util.find_spec("torch_pruning") is not None


def measure_peer(case: Case, densities: Sequence[float]) -> Peer:
    """Let Torch-Pruning drop channels of a network, and compare."""
    network, example = prepared(case)
    found = find_layers(network, example)
    layers = prunable_layers(found, ("classifier", *case.heads))
    heads = [name for name, layer in found.items() if "classifier" in layer.roles or name in case.heads]
    droppable: float | None = None
    left: dict[str, Left] = {}
    try:
        with warnings.catch_warnings(), _limited():
            warnings.simplefilter("ignore")
            droppable = _droppable(network, example, layers, heads)
            for density in densities:
                left[f"{density:g}"] = _left(network, example, density, heads)
    except Exception as error:  # whatever it may say to a network that it does not know
        return Peer(droppable, left, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    return Peer(droppable, left)


@contextmanager
def _limited() -> Iterator[None]:
    """Raise an error in what takes too long: some networks it follows for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {_LIMIT} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _droppable(network: nn.Module, example: Example, layers: Sequence[Layer], heads: Sequence[str]) -> float:
    own = copied(network)
    pruner = _pruner(own, example, 0.5, heads)
    free = {layer.weight: torch.zeros(layer.shape, dtype=torch.bool) for layer in layers}
    names = {id(parameter): name for name, parameter in own.named_parameters()}
    for group in pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
        if len(group[0].idxs) < 2 or not pruner._check_pruning_ratio(group):
            continue
        for dependency, indices in group:
            module = dependency.target.module
            outputs = pruner.DG.is_out_channel_pruning_fn(dependency.handler)
            if isinstance(module, nn.MultiheadAttention):
                for parameter in (module.in_proj_weight, module.out_proj.weight):
                    if names.get(id(parameter)) in free:
                        free[names[id(parameter)]][:] = True
                continue
            weight = getattr(module, "weight", None)
            if (name := names.get(id(weight))) not in free or name is None:
                continue
            inputs_first = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
            dim = int(outputs == inputs_first)
            inside = [index for index in indices if 0 <= index < free[name].shape[dim]]
            free[name].index_fill_(dim, torch.tensor(inside, dtype=torch.long), True)
    return sum(int(flags.sum()) for flags in free.values()) / sum(flags.numel() for flags in free.values())


def _left(network: nn.Module, example: Example, density: float, heads: Sequence[str]) -> Left:
    """Drop channels of a network whose values are their own numbers: what is left of them says which are left."""
    small = copied(network)
    with torch.no_grad():
        for value in _values(small).values():
            value.copy_(torch.arange(1, value.numel() + 1).view(value.shape))
    pruner = _pruner(small, example, 1 - density**0.5, heads)
    torch.manual_seed(0)
    pruner.step()
    _set_heads(small, pruner)
    whole = _values(network)
    masks: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in _values(small).items():
            chosen = value.detach().long() - 1
            value.copy_(whole[name].flatten()[chosen])
            mask = torch.zeros(whole[name].numel(), dtype=torch.bool)
            mask[chosen.flatten()] = True
            masks[name] = mask.view(whole[name].shape)
    own = {name for name, _ in network.named_parameters()}
    masked = with_masks(network, {name: mask for name, mask in masks.items() if name in own})
    return compare(masked, small, network, example)


def _values(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters, and the statistics of normalisations."""
    of_norms = {
        name: buffer for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    return {**dict(network.named_parameters()), **of_norms}


def _pruner(network: nn.Module, example: Example, ratio: float, ignored: Sequence[str]) -> Any:
    pruning = importlib.import_module("torch_pruning")
    heads = {layer: count for _, count, layers in _attentions(network) for layer in layers}
    return pruning.pruner.BasePruner(
        network,
        example if isinstance(example, Tensor) else dict(example) if not isinstance(example, tuple) else example,
        importance=pruning.importance.RandomImportance(),
        pruning_ratio=ratio,
        ignored_layers=[network.get_submodule(name) for name in ignored],
        in_channel_groups={},
        out_channel_groups={},
        num_heads=heads,
        root_module_types=list(_ROOTS),
        output_transform=lambda results: [each for each in tensors_in(results) if each.grad_fn is not None],
    )


_ROOTS: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)


def _attentions(network: nn.Module) -> Iterator[tuple[nn.Module, int, list[nn.Module]]]:
    """Yield attentions whose layers are called as usual, with the number of their heads and these layers."""
    for module in network.modules():
        children = dict(module.named_children())
        heads = next((getattr(module, name) for name in _HEADS if isinstance(getattr(module, name, None), int)), None)
        of_config = getattr(getattr(module, "config", None), "num_attention_heads", None)
        heads = heads if heads is not None else of_config
        if isinstance(module, nn.MultiheadAttention) or heads is None:
            continue
        layers = [children[name] for name in (*_QUERIES, *_KEYS_AND_VALUES, "qkv") if name in children]
        if layers and all(isinstance(layer, nn.Linear) for layer in layers):
            yield module, heads, layers


def _set_heads(network: nn.Module, pruner: Any) -> None:
    for module, heads, layers in _attentions(network):
        outputs = layers[0].out_features // (3 if layers == [getattr(module, "qkv", None)] else 1)  # type: ignore[operator]
        left = pruner.num_heads.get(layers[0], heads)
        for names, number in ((_HEADS, left), (_WIDTHS, outputs), (_OF_ONE_HEAD, outputs // left)):
            for name in names:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, number)
