"""How near a training step comes to what the machine can do: its operations and bytes against the machine's rates.

This is the roofline of Williams et al. (2009), operator by operator: none can be faster than its arithmetic at the rate
of a large matrix product or convolution (whichever has the better kernel here), nor than reading its inputs and writing
its outputs once at the rate of a large copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.training.contenders import sgd, training_step
from benchmarks.training.task import Task
from lt_lightning.execution.machine import compile_network
from lt_lightning.execution.timing import interleaved, stopwatch

# Sizes by device, large enough for some milliseconds, so that the call itself does not count.
_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices that are multiplied
_CONVOLVED = {"cpu": (8, 256, 28), "cuda": (64, 512, 28)}  # images, channels in and out, height and width; 3x3 kernel
_COPIED = 2**26  # numbers that are copied: far more than caches hold


@dataclass(frozen=True)
class Operator:
    """What one call of an operator has to do.

    Attributes:
        name: name of the operator.
        operations: number of floating-point operations, two for a multiply-add; 0 but for products and convolutions.
        bytes: size of its inputs and outputs.
    """

    name: str
    operations: int
    bytes: int

    def seconds(self, operations_rate: float, bytes_rate: float) -> float:
        """Return the shortest time at these rates, each per second.

        >>> Operator("mm", 6_000, 100).seconds(1e6, 1e5)
        0.006
        """
        return max(self.operations / operations_rate, self.bytes / bytes_rate)


@dataclass(frozen=True)
class Roofline:
    """A step against its limit.

    Attributes:
        operations: number of operations of a step, two for a multiply-add.
        bytes: number of bytes that its operators read and write, each tensor once an operator.
        operations_rate: operations per second of a matrix product or a convolution, whichever is faster.
        bytes_rate: bytes per second that a copy reads and writes.
        least: milliseconds that the operators take at these rates at least.
        milliseconds: measured milliseconds of the step.
        reached: `least` over `milliseconds`; fused operators could exceed 1.
    """

    operations: int
    bytes: int
    operations_rate: float
    bytes_rate: float
    least: float
    milliseconds: float
    reached: float


def measure_roofline(task: Task, samples: int) -> Roofline:
    """Time the bare loop's step in turn with a product, a convolution and a copy in its precision.

    The operators counted are those of the eager step, whatever the engine.

    Args:
        task: task that is trained.
        samples: number of turns.
    """
    setting = task.setting
    images, labels = next(iter(task.data().loader(0)))
    images = images.contiguous(memory_format=setting.memory_format)
    network = task.copy()
    counted = operators(lambda: training_step(network, sgd(network), setting)(images, labels))
    compile_network(network, setting.compile)
    step = training_step(network, sgd(network), setting)
    kind = {"device": setting.device, "dtype": torch.bfloat16 if setting.bfloat16 else torch.float32}
    side = _SIDE[torch.device(setting.device).type]
    one, other = (torch.randn(side, side, **kind) for _ in range(2))  # type: ignore[call-overload]
    source, target = (torch.ones(_COPIED, **kind) for _ in range(2))  # type: ignore[call-overload]
    count, channels, size = _CONVOLVED[torch.device(setting.device).type]
    filters = torch.randn(channels, channels, 3, 3, **kind)  # type: ignore[call-overload]
    pictures = torch.randn(count, channels, size, size, **kind)  # type: ignore[call-overload]
    filters, pictures = (each.contiguous(memory_format=torch.channels_last) for each in (filters, pictures))
    calls: dict[str, Callable[[], object]] = {
        "step": lambda: step(images, labels),
        "product": lambda: one @ other,
        "convolution": lambda: F.conv2d(pictures, filters, padding=1),
        "copy": lambda: target.copy_(source),
    }
    timed = interleaved(calls, stopwatch(setting.device), samples)
    operations_rate = max(
        2 * side**3 / timed["product"].median, 2 * pictures.numel() * channels * 9 / timed["convolution"].median
    )
    bytes_rate = 2 * source.nbytes / timed["copy"].median
    least = sum(each.seconds(operations_rate, bytes_rate) for each in counted)
    return Roofline(
        sum(each.operations for each in counted), sum(each.bytes for each in counted), operations_rate, bytes_rate,
        least * 1e3, timed["step"].median * 1e3, least / timed["step"].median,
    )  # fmt: skip


def operators(call: Callable[[], object]) -> Sequence[Operator]:
    """Return every operator that a call runs, in order, without views, which move nothing.

    >>> operators(lambda: torch.ones(2, 3) @ torch.ones(3, 4))[-1]
    Operator(name='aten.mm', operations=48, bytes=104)
    """
    counted = _Counted()
    with counted:
        call()
    return counted.operators


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not func.is_view:
            moved = sum(each.nbytes for each in tree_leaves((args, kwargs, output)) if isinstance(each, Tensor))
            count = flop_registry.get(func.overloadpacket)
            operations = 0 if count is None else int(count(*args, **kwargs, out_val=output))
            self.operators.append(Operator(str(func.overloadpacket), operations, moved))
        return output
