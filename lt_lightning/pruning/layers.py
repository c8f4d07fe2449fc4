"""The convolution and linear layers of a network, which a run of it shows, and which of them are prunable."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.examples import Example, call_network, does_not_run, tensors_in
from lt_lightning.pruning.masks import Masks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ROLES = ("stem", "classifier", "depthwise", "linear")


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, at the shapes it runs at.

    Attributes:
        name: name of the module in the network; of an `nn.MultiheadAttention`'s two matrices its name with `in_proj`
            and `out_proj`.
        shape: shape of its weight, (outputs, inputs per group, *kernel); a linear layer has no kernel. Of a transposed
            convolution, and of the `Conv1D` of transformers, inputs come first.
        groups: number of groups of the convolution; 1 for a linear layer.
        positions: output positions of one sample (height x width, summed over calls); of a transposed convolution,
            input positions. Every weight is multiplied once at each of them.
        roles: those of `ROLES` that the layer has.
        output_dim: dimension of the weight that has the outputs.
        parameter: name of the weight, if it is another than the module's `weight`.
        tied_to: name of the earlier layer that shares its weight; empty if there is none.
        frozen: whether its weight is not trained (`requires_grad=False`).
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    positions: int
    roles: frozenset[str] = frozenset()
    output_dim: int = 0
    parameter: str = ""
    tied_to: str = ""
    frozen: bool = False

    @cached_property
    def weight(self) -> str:
        """Name of the weight parameter; tied layers have one name for it, by the first of them."""
        return self.parameter or (f"{self.name}.weight" if self.name else "weight")

    @cached_property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def weight_of(layer: str, parameters: Container[str]) -> str:
    """Return the name of a layer's weight among those of parameters, or of masks, given the layer's name.

    >>> weight_of("conv", ["conv.weight"]), weight_of("attention.in_proj", ["attention.in_proj_weight"])
    ('conv.weight', 'attention.in_proj_weight')
    """
    names = [f"{layer}.weight", f"{layer}_weight"] if layer else ["weight"]
    return next((name for name in names if name in parameters), names[0])


def find_layers(network: nn.Module, example: Example) -> dict[str, Layer]:
    """Run the network once (evaluation mode, no gradients) and list its layers in the order of execution.

    Layers are convolutions, transposed ones too, linear layers, the `Conv1D` of transformers, and the two matrices of
    `nn.MultiheadAttention`. The role `stem` is that of the first layer executed, `classifier` that of the last;
    `depthwise` is a convolution with one input channel a group, `linear` any linear layer. Layers that never ran are
    left out, and those whose weight is computed from other parameters (weight norm, spectral norm,
    `torch.nn.utils.prune`).

    Args:
        network: any module; its state is left as it was.
        example: an input batch of any size.

    Raises:
        ValueError: if the network does not run on the example, or no layer with a weight of its own ran.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> [(layer.name, layer.shape, layer.positions) for layer in find_layers(net, torch.zeros(1, 1, 4, 4)).values()]
    [('0', (4, 1, 3, 3), 4), ('2', (2, 16), 1)]
    """
    layers: dict[str, Layer] = {}
    names = {module: name for name, module in network.named_modules()}
    samples = next((len(tensor) for tensor in tensors_in(example) if tensor.dim()), 1)

    def record(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        first = next(tensors_in((given, named)))
        for called in _layers_of(names[module], module, first, output, samples):
            known = layers.get(called.name)
            both = replace(known, positions=known.positions + called.positions) if known else called
            layers[called.name] = both

    with evaluating(network), ExitStack() as hooks:
        for module in filter(has_layers, names):
            hooks.enter_context(module.register_forward_hook(record, with_kwargs=True))
        try:
            call_network(network, example)
        except Exception as error:
            raise does_not_run(network, error) from error
    known = _with_weights(_with_ends(layers), dict(network.named_parameters(remove_duplicate=False))) if layers else {}
    if not known:
        raise ValueError(f"the network {type(network).__name__} has no convolution or linear layer to prune")
    return known


def prunable_layers(layers: Mapping[str, Layer], exempt: Sequence[str]) -> list[Layer]:
    """Return the layers whose weights are pruned; of tied layers, which have one weight, the first.

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
    reasons = why_not_pruned(layers.values(), exempt)
    left = [layer for layer in layers.values() if not (reasons[layer.name] or layer.tied_to)]
    if not left:
        told = ", ".join(f"{name} ({', '.join(reasons[name])})" for name in layers)
        raise ValueError(f"exempt={list(exempt)}: leaves no layer of the network to prune: {told}")
    return left


def why_not_pruned(layers: Iterable[Layer], exempt: Sequence[str]) -> dict[str, list[str]]:
    """Return for every layer why it is not pruned: roles and patterns that exempt it, and others; none if it is pruned.

    Frozen weights are not pruned, since they could not be trained to make up for it, and a weight that layers share is
    not pruned if one of them is exempt.

    >>> stem = Layer("conv1", (4, 1, 3, 3), 1, 4, frozenset({"stem"}))
    >>> why_not_pruned([stem, Layer("fc", (4, 4), 1, 4, frozen=True)], ["stem", "conv*", "classifier"])
    {'conv1': ['stem', 'conv*'], 'fc': ['frozen']}
    """
    layers = list(layers)
    matched = {layer.name: [pattern for pattern in exempt if matches(layer, pattern)] for layer in layers}
    exempting = {layer.weight: layer.name for layer in layers if matched[layer.name]}

    def others(layer: Layer) -> list[str]:
        shares = not matched[layer.name] and layer.weight in exempting
        return ["frozen"] * layer.frozen + [f"its weight is that of {exempting.get(layer.weight)}"] * shares

    return {layer.name: matched[layer.name] + others(layer) for layer in layers}


def full_masks(layers: Iterable[Layer]) -> Masks:
    """Return masks that keep every weight of these layers."""
    return {layer.weight: torch.ones(layer.shape, dtype=torch.bool) for layer in layers}


def left_out(network: nn.Module, layers: Mapping[str, Layer]) -> list[str]:
    """Return a line on the weights that belong to no layer, and one on frozen layers, where there are such.

    Weights are all parameters with two dimensions or more, of which each is counted once.

    Args:
        network: the network.
        layers: its layers, as `find_layers` returns them.

    >>> net = nn.ModuleDict({"words": nn.Embedding(2, 4), "head": nn.Linear(4, 6)})
    >>> left_out(net, {"head": Layer("head", (6, 4), 1, 1)})
    ['25.0% of the weights belong to no layer that can be pruned and count in no density: words (Embedding) 25.0%']
    """
    weights = {name: value for name, value in network.named_parameters() if value.dim() > 1}
    total = sum(value.numel() for value in weights.values())
    of_layers = {network.get_parameter(layer.weight): layer for layer in layers.values() if not layer.tied_to}
    others: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, value in weights.items():
        layer = of_layers.get(value)
        if layer is None:
            owner = _owner(network, name)
            others[owner] = others.get(owner, 0) + value.numel()
        elif layer.frozen:
            frozen[layer.name] = layer.size
    lines = {
        "of the weights belong to no layer that can be pruned and count in no density": others,
        "of the weights are those of frozen layers (requires_grad=False), which are not pruned": frozen,
    }
    return [
        f"{sum(sizes.values()) / total:.1%} {text}: {_shares(sizes, total)}" for text, sizes in lines.items() if sizes
    ]


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


def has_plain_heads(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is PyTorch's attention with one matrix for queries, keys and values, and nothing beside."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and module._parameters.get("in_proj_weight") is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the linear layer of transformers whose inputs come first."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def has_layers(module: nn.Module) -> bool:
    """Whether a module is of a kind whose weights are pruned."""
    kinds = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
    return isinstance(module, kinds) or is_conv1d(module) or has_plain_heads(module)


def _layers_of(name: str, module: nn.Module, given: Tensor, output: Any, samples: int) -> list[Layer]:
    """Return the layers of a module that was called; code may have folded windows or tokens into the batch before."""

    def positions(tensor: Tensor, channels: int) -> int:
        return max(1, tensor.numel() // channels // samples)

    if has_plain_heads(module):
        tokens = positions(given, module.embed_dim)
        shapes = {"in_proj": module.in_proj_weight.shape, "out_proj": module.out_proj.weight.shape}
        parameters = {"in_proj": "in_proj_weight", "out_proj": "out_proj.weight"}
        return [
            Layer(_full(name, part), tuple(shape), 1, tokens, frozenset({"linear"}), 0, _full(name, parameters[part]))
            for part, shape in shapes.items()
        ]
    weight: Tensor = module.weight  # type: ignore[assignment]
    shape = tuple(weight.shape)
    if isinstance(module, TRANSPOSED):
        return [Layer(name, shape, module.groups, positions(given, module.in_channels), output_dim=1)]
    if isinstance(module, CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        roles = frozenset({"depthwise"}) if depthwise else frozenset[str]()
        return [Layer(name, shape, module.groups, positions(output, module.out_channels), roles)]
    output_dim = int(is_conv1d(module))
    return [Layer(name, shape, 1, positions(output, shape[output_dim]), frozenset({"linear"}), output_dim)]


def _full(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _with_weights(layers: Mapping[str, Layer], parameters: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Return the layers that have a weight of their own, and say which of them share it or do not train it."""
    first: dict[Tensor, Layer] = {}
    known = {}
    for name, layer in layers.items():
        if (weight := parameters.get(layer.weight)) is not None:
            owner = first.setdefault(weight, layer)
            layer = replace(layer, frozen=not weight.requires_grad)
            tied = owner.name != name
            known[name] = replace(layer, tied_to=owner.name, parameter=owner.weight) if tied else layer
    return known


def _with_ends(layers: dict[str, Layer]) -> dict[str, Layer]:
    first, last = next(iter(layers)), next(reversed(layers))
    ends = {first: {"stem"}}
    ends.setdefault(last, set()).add("classifier")
    return {name: replace(layer, roles=layer.roles | ends.get(name, set())) for name, layer in layers.items()}


def matches(layer: Layer, pattern: str) -> bool:
    """Whether a layer has the role, or its name matches the pattern."""
    return pattern in layer.roles if pattern in ROLES else fnmatchcase(layer.name, pattern)


def _owner(network: nn.Module, parameter: str) -> str:
    """Return the name of the module that a parameter belongs to, and its class or what is particular about it."""
    name, _, rest = parameter.partition(".parametrizations.")
    name = name if rest else name.rpartition(".")[0]
    module = network.get_submodule(name)
    computed = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)) and "weight" not in module._parameters
    return f"{name or 'the network'} ({'computed weight' if computed else type(module).__name__})"


def _shares(sizes: Mapping[str, int], total: int, most: int = 5) -> str:
    """Return names with their shares, the largest first, and count those that come after `most`."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    more = f" and {len(largest) - most} more" if len(largest) > most else ""
    return ", ".join(f"{name} {size / total:.1%}" for name, size in largest[:most]) + more
