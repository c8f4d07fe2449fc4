"""Any network: how it is called and copied, and the tensors in what it is given and returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One batch: a tensor, a tuple of arguments, or a dict of named arguments."""
_Network = TypeVar("_Network", bound=nn.Module)
_SAMPLES = 4


def call_network(network: nn.Module, example: Example) -> Any:
    """Call the network on a batch, with its hooks but without compiling a network that is to be compiled.

    >>> call_network(nn.Bilinear(1, 1, 1), (torch.zeros(2, 1), torch.zeros(2, 1))).shape
    torch.Size([2, 1])
    """
    match example:
        case Tensor():
            return network._call_impl(example)  # type: ignore[no-untyped-call]
        case tuple():
            return network._call_impl(*example)  # type: ignore[no-untyped-call]
        case _:
            return network._call_impl(**example)  # type: ignore[no-untyped-call]


def does_not_run(network: nn.Module, error: Exception) -> ValueError:
    """Return the error of a network that cannot be called on its example, given what the call raised."""
    told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return ValueError(f"{type(network).__name__} does not run on the example: {told}")


def copied(network: _Network) -> _Network:
    """Return a deep copy, also of a network whose modules hold a weight that they computed from others."""
    computed = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    twin = copy.deepcopy(network, {id(value): value.detach().clone() for value in computed})
    for parameter, its_copy in zip(network.parameters(), twin.parameters(), strict=True):
        vars(its_copy).update(vars(parameter))  # marks of the user, such as `_no_weight_decay`, which deepcopy drops
    return twin


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in a result, or in a batch, however it is nested.

    >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), None]})]
    [1, 2]
    """
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif is_dataclass(values) and not isinstance(values, type):
        for each in fields(values):
            yield from tensors_in(getattr(values, each.name))


def map_tensors(values: Any, change: Any) -> Any:
    """Return a batch with every tensor changed by a function."""
    match values:
        case Tensor():
            return change(values)
        case Mapping():
            return {key: map_tensors(value, change) for key, value in values.items()}
        case tuple() if hasattr(values, "_fields"):  # a named tuple
            return type(values)(*(map_tensors(value, change) for value in values))
        case tuple() | list():
            return type(values)(map_tensors(value, change) for value in values)
        case _:
            return values


def several(network: nn.Module, example: Example) -> Example:
    """Return a batch of at least four samples.

    With two, a normalisation over a batch with one position makes +1 and -1 of any difference, however small, so that
    rounding decides. The samples are the example's, repeated, if the network runs on them; else the example is returned
    as it is.

    Args:
        network: network in evaluation mode.
        example: an input batch.
    """
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors_in(example)}
    if len(sizes) != 1 or not 0 < (samples := sizes.pop()) < _SAMPLES:
        return example
    times = -(-_SAMPLES // samples)
    repeated: Example = map_tensors(example, lambda tensor: torch.cat([tensor] * times))
    try:
        with torch.no_grad():
            call_network(network, repeated)
    except Exception:  # whatever a network may say to a batch that it is not made for
        return example
    return repeated


def noisy(example: Example) -> Example:
    """Return a batch like the example, with normal noise for its values; whole numbers, such as token ids, stay."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)

    changed: Example = map_tensors(example, noise)
    return changed
