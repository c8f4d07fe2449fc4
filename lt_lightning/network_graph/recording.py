"""A network is run on an example, and what PyTorch computes is recorded, by the rule of each operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lt_lightning.network_graph.labels import Record, Recorder
from lt_lightning.network_graph.rules import apply_rule
from lt_lightning.pruning.examples import Example, call_network, copied, does_not_run, map_tensors, several, tensors_in


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a recorder every operation while it is active."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and apply its rule."""
        result = func(*args, **(kwargs or {}))
        self.recorder.begin(tensors_in((args, kwargs)))
        with torch.no_grad():
            apply_rule(self.recorder, func, args, kwargs or {}, result)
        self.recorder.end(tensors_in(result), in_place=func._schema.is_mutable)
        return result


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off the one operation into which PyTorch fuses a transformer layer in evaluation mode."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def record_network(network: nn.Module, example: Example) -> Record:
    """Run a network on an example in both modes, and record what happens to channels.

    Args:
        network: any module; it is left as it was.
        example: an input batch of the true shape.

    Raises:
        ValueError: if the network does not run on the example in evaluation mode.
    """
    record = Record()
    own = alone(network)
    given = several(own.eval(), map_tensors(example, Tensor.cpu))
    for training in (False, True):
        recorder = Recorder(own.train(training), record)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), without_fast_path(), _Recording(recorder):
                results = list(tensors_in(call_network(own, given)))
        except Exception as error:
            failure = does_not_run(network, error)
            if not training:
                raise failure from error
            record.notes.append(f"training mode was not looked at: {failure}")
            continue
        recorder.finish(results)
    return record


def alone(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, whose normalisations look at this process alone."""
    own = copied(network).cpu()
    for module in own.modules():
        if isinstance(module, _BatchNorm) and "Sync" in type(module).__name__:
            module.__class__ = _LocalBatchNorm
    return own


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""
