"""The network that executes a ticket beside the masked one: whether both compute the same, checked by running them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.examples import Example, call_network, map_tensors, noisy, several, tensors_in


class DifferentError(RuntimeError):
    """The network that executes a ticket computes something else than the masked one."""


def compare_networks(masked: nn.Module, executed: nn.Module, example: Example) -> None:
    """Check that two networks compute the same, in evaluation and in training.

    They run on seeded noise without gradients; nothing of them changes. What is random in training is made equal for
    both (`SameForAllShapes`). A mode in which the masked network cannot run on noise is left out, with a warning.

    Values may differ by rounding, up to the `tolerance`, relative to the largest output: 1e-3 in float32. There sums
    that are made in another order differ by about 1e-7 in every layer, and normalisation enlarges that at most by the
    root of its epsilon's inverse, 300, where a channel hardly varies: ResNets, VGG and MobileNet differ by 4e-5
    at most in training. What a wrongly replaced layer does to the outputs is of the order of the outputs.

    Args:
        masked: full network with the ticket's masked values.
        executed: network that executes the ticket.
        example: inputs of the true shapes: a tensor, a tuple of arguments, or arguments by name.

    Raises:
        DifferentError: if the outputs differ; names the mode and the first layer whose output does.

    >>> compare_networks(nn.Linear(4, 2), nn.Linear(4, 2), torch.zeros(1, 4))  # of other random values
    Traceback (most recent call last):
        ...
    lt_lightning.network_graph.compare.DifferentError: the network that executes the ticket differs ...
    """
    with _as_it_was(masked):
        given = noisy(several(masked.eval(), example))
    for training in (False, True):
        mode = "in training" if training else "in evaluation"
        try:
            expected = outputs(masked, given, training)
        except Exception as error:  # whatever a network has against several samples or against noise
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            warnings.warn(f"the executed network is not compared with the masked one {mode}: {reason}", stacklevel=2)
            continue
        got = outputs(executed, given, training)
        if (apart := difference(got, expected)) > tolerance(expected):
            first = first_difference(masked, executed, given, training)
            raise DifferentError(
                f"the network that executes the ticket differs from the masked one {mode}, by {apart:.1e} of the "
                f"output{f', first in {first}' if first else ''}: train and use the ticket masked (execution='masked')"
            )


def tolerance(values: Sequence[Tensor]) -> float:
    """Return the relative difference that rounding may make in values of these types: three roots of their precision.

    >>> f"{tolerance([torch.zeros(1)]):.1e}", f"{tolerance([torch.zeros(1).double()]):.1e}"
    ('1.0e-03', '4.5e-08')
    """
    kinds = [value.dtype for value in values if value.is_floating_point()]
    return max((3 * torch.finfo(kind).eps ** 0.5 for kind in kinds), default=0.0)


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference over all tensors, each relative to the largest magnitude that is expected.

    It is infinite where shapes or numbers of tensors are others, or where one is finite and the other is not.
    """
    if [each.shape for each in got] != [each.shape for each in expected]:
        return float("inf")
    return max((_difference(*pair) for pair in zip(got, expected, strict=True)), default=0.0)


def _difference(got: Tensor, expected: Tensor) -> float:
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.detach().to("cpu", wide), expected.detach().to("cpu", wide)
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    got, expected = got[finite], expected[finite]
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


# Runs


def outputs(network: nn.Module, given: Example, training: bool) -> list[Tensor]:
    """Run a network, and return all tensors of its result; nothing of it changes.

    Args:
        network: any module.
        given: a batch.
        training: whether it runs in training mode, with what is random made equal for all shapes.
    """
    with _as_it_was(network), torch.no_grad(), SameForAllShapes():  # type: ignore[no-untyped-call]
        network.train(training)
        return list(tensors_in(call_network(network, map_tensors(given, torch.clone))))


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Take back modes and buffers of a network, and the states of the global random generators."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with evaluating(network), torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)


class SameForAllShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes what is random a function of nothing, so that networks of other widths get the same.

    A dropout keeps everything, a decision with a probability of its own (`bernoulli`) is the likelier one, a
    permutation changes nothing, whole numbers are the lowest, and all others are one constant within their range.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        arguments = {each.name: each.default_value for each in func._schema.arguments}
        arguments |= dict(zip(arguments, args, strict=False)) | kwargs
        if "dropout_p" in arguments:  # attention, which drops at other places of the memory for other widths
            return func(**{**arguments, "dropout_p": 0.0})
        match func._schema.name.removeprefix("aten::").rstrip("_"):
            case "native_dropout":
                return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
            case "bernoulli":
                return _decided(func(*args, **kwargs), args[0], arguments)
            case "rrelu_with_noise":
                return func(**{**arguments, "training": False})
            case "randperm":
                permutation = func(*args, **kwargs)
                return permutation.copy_(torch.arange(len(permutation)))
            case _:
                result = func(*args, **kwargs)
                return _constant(result, arguments) if isinstance(result, Tensor) else result


def _decided(result: Tensor, given: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Return 1, so that a dropout hides nothing; where each has a probability of its own, what is likelier."""
    return result.fill_(1) if "p" in arguments else result.copy_(given >= 0.5)


def _constant(result: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    if not result.is_floating_point():
        return result.fill_(arguments.get("low", arguments.get("from")) or 0)
    low, high = arguments.get("from", 0.0), arguments.get("to", 1.0)
    return result.fill_(low + 0.45 * (high - low))


# The first layer that differs


def first_difference(masked: nn.Module, executed: nn.Module, given: Example, training: bool) -> str:
    """Return the name of the first layer whose output differs; empty if that cannot be told."""
    got = _summaries(executed, given, training)
    for name, expected in _summaries(masked, given, training).items():
        own = masked.get_submodule(name)._parameters
        if own and name in got and difference([got[name]], [expected]) > 10 * tolerance([expected.float()]):
            return name
    return ""


def _summaries(network: nn.Module, given: Example, training: bool) -> dict[str, Tensor]:
    """Return for every module what zeros and the order of channels do not change.

    That is sum and sum of squares of its first output, of each sample, in the order of execution.
    """
    summaries: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, result: Any) -> None:
            if name not in summaries and (tensors := list(tensors_in(result))):
                values = tensors[0].double()
                values = values.flatten(1) if values.dim() > 1 else values.reshape(1, -1)
                summaries[name] = torch.stack([values.sum(1), values.square().sum(1)])

        return hook

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(note(name)))
        outputs(network, given, training)
    return summaries
