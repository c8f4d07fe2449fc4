"""The convolution and linear layers of a network, which a run of it shows, and which of them are prunable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.masks import Masks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROLES = ("stem", "classifier", "depthwise", "linear")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, at the shapes it runs at.

    Attributes:
        name: name of the module in the network.
        shape: shape of its weight, (outputs, inputs per group, *kernel); a linear layer has no kernel.
        groups: number of groups of the convolution; 1 for a linear layer.
        positions: output positions of one sample (height x width, summed over calls), by each of which every
            weight is multiplied once.
        roles: those of `ROLES` that the layer has.
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    positions: int
    roles: frozenset[str] = frozenset()

    @cached_property
    def weight(self) -> str:
        """Name of the weight parameter."""
        return f"{self.name}.weight" if self.name else "weight"

    @cached_property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def find_layers(network: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Run the network once (evaluation mode, no gradients) and list its layers in the order of execution.

    The role `stem` is that of the first layer executed, `classifier` that of the last; `depthwise` is a
    convolution with one input channel a group, `linear` any linear layer. Layers that never ran are left out.

    Args:
        network: any module; its state is left as it was.
        example: input batch of any size.

    Raises:
        ValueError: if no convolution or linear layer ran.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> [(layer.name, layer.shape, layer.positions) for layer in find_layers(net, torch.zeros(1, 1, 4, 4)).values()]
    [('0', (4, 1, 3, 3), 4), ('2', (2, 16), 1)]
    """
    layers: dict[str, Layer] = {}
    names = {module: name for name, module in network.named_modules()}

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        name = names[module]
        known = layers.get(name)
        called = _layer(name, module, output)
        layers[name] = replace(known, positions=known.positions + called.positions) if known else called

    hooks = [m.register_forward_hook(record) for m in names if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    try:
        with evaluating(network):
            # `network(...)` with its hooks, but without compiling a network that is to be compiled.
            network._call_impl(example)  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    if not layers:
        raise ValueError(f"the network {type(network).__name__} has no convolution or linear layer to prune")
    return _with_ends(layers)


def prunable_layers(layers: Mapping[str, Layer], exempt: Sequence[str]) -> list[Layer]:
    """Return the layers whose weights are pruned: all but the exempt ones.

    Args:
        layers: layers of a network, as `find_layers` returns them.
        exempt: roles (`stem`, `classifier`, `depthwise`, `linear`) or patterns of layer names (`layer1.*`).

    Raises:
        ValueError: if a pattern names no layer, or nothing is left to prune.
    """
    for pattern in exempt:
        if pattern not in ROLES and not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"exempt={list(exempt)}: {pattern!r} is neither a role ({', '.join(ROLES)}) nor matches a layer of the "
                f"network ({', '.join(layers)})"
            )
    left = [layer for layer in layers.values() if not exempting(layer, exempt)]
    if not left:
        raise ValueError(f"exempt={list(exempt)}: leaves no layer of the network to prune ({', '.join(layers)})")
    return left


def exempting(layer: Layer, exempt: Sequence[str]) -> list[str]:
    """Return the roles and patterns by which a layer is exempt from pruning; none for a prunable one.

    >>> exempting(Layer("conv1", (4, 1, 3, 3), 1, 4, frozenset({"stem"})), ["stem", "conv*", "classifier"])
    ['stem', 'conv*']
    """
    return [pattern for pattern in exempt if _matches(layer, pattern)]


def full_masks(layers: Iterable[Layer]) -> Masks:
    """Return masks that keep every weight of these layers."""
    return {layer.weight: torch.ones(layer.shape, dtype=torch.bool) for layer in layers}


def why_not_plain(module: nn.Module) -> str:
    """Return why a module does not compute its PyTorch class's function of a weight of its own; empty if it does.

    Only a plain module may be replaced by another one that computes the same from a part of its weights. An object of a
    subclass is plain, too, as long as it inherits everything that computes.

    >>> why_not_plain(nn.Linear(2, 2))
    ''
    >>> why_not_plain(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    'its weight is computed from other parameters'
    """
    own = next((each for each in type(module).__mro__ if each.__module__.startswith("torch.nn.modules.")), nn.Module)
    if "weight" not in module._parameters:
        return "its weight is computed from other parameters"
    if any(name in vars(module) or getattr(type(module), name) is not getattr(own, name) for name in _computing(own)):
        return f"{type(module).__name__} has a forward of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks"
    return ""


def _computing(own: type[nn.Module]) -> list[str]:
    return [name for name in ("forward", "_conv_forward", "__call__") if hasattr(own, name)]


def _layer(name: str, module: nn.Module, output: Tensor) -> Layer:
    if isinstance(module, nn.Linear):
        positions = output[0].numel() // module.out_features
        return Layer(name, tuple(module.weight.shape), 1, positions, frozenset({"linear"}))
    assert isinstance(module, CONVOLUTIONS)
    depthwise = module.groups > 1 and module.groups == module.in_channels
    roles = frozenset({"depthwise"}) if depthwise else frozenset[str]()
    return Layer(name, tuple(module.weight.shape), module.groups, math.prod(output.shape[2:]), roles)


def _with_ends(layers: dict[str, Layer]) -> dict[str, Layer]:
    first, last = next(iter(layers)), next(reversed(layers))
    ends = {first: {"stem"}}
    ends.setdefault(last, set()).add("classifier")
    return {name: replace(layer, roles=layer.roles | ends.get(name, set())) for name, layer in layers.items()}


def _matches(layer: Layer, pattern: str) -> bool:
    return pattern in layer.roles if pattern in ROLES else fnmatchcase(layer.name, pattern)
