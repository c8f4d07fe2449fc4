"""What a network costs: parameters, operations, and the time of it and of each of its layers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lt_lightning.execution.machine import isolating
from lt_lightning.execution.timing import TimeRatio, compare_times, stopwatch
from lt_lightning.network_graph.recording import without_fast_path
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.evaluation import evaluating, forked_random
from lt_lightning.pruning.examples import Example, call_network, copied
from lt_lightning.pruning.masks import Masks


def parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, example: Example) -> int:
    """Count the floating-point operations of one forward pass, two for a multiply-add, on the network that runs.

    Those of matrix products, convolutions and attention count; the network runs as it does in evaluation.

    Args:
        network: any module; its state is left as it was.
        example: one batch.

    >>> flops(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 5, 5)) == 2 * 4 * 2 * 9 * 9
    True
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # attention in one operation counts for nothing on some devices
    with evaluating(network), without_fast_path(), plain, FlopCounterMode(display=False) as counter:
        call_network(network, example)
    return int(counter.get_total_flops())


# The time of a network.

Engine = Literal["eager", "compile", "onnx"]


@dataclass(frozen=True)
class Setting:
    """What is measured of a network.

    Attributes:
        batch_size: number of images.
        training: whether a training step is measured (forward, backward, SGD with momentum), or inference.
        bfloat16: whether inference has weights and images in bfloat16, and training runs by autocast, with weights in
            float32. Both are usual; on a CPU autocast is as fast from batch 64 on, and slower at batch 1.
        engine: eager PyTorch; `torch.compile` (on CUDA with CUDA graphs); or ONNX Runtime (inference in float32).
        channels_last: whether weights and images are in that memory format.
    """

    batch_size: int
    training: bool
    bfloat16: bool = False
    engine: Engine = "eager"
    channels_last: bool = True

    def __str__(self) -> str:
        what = "training step" if self.training else "inference"
        how = [what, f"batch {self.batch_size}", "bf16" if self.bfloat16 else "fp32"]
        how += [self.engine] * (self.engine != "eager")
        return ", ".join(how + ["channels last"] * self.channels_last)


def inputs_like(example: Tensor, setting: Setting, device: torch.device | str = "cpu") -> Tensor:
    """Return inputs of the example's shape for a setting, always the same.

    Images are random, as some hardware is faster on zeros than on data; token ids are the example's.
    """
    if not example.is_floating_point():
        return example[:1].repeat(setting.batch_size, *[1] * (example.dim() - 1)).to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((setting.batch_size, *example.shape[1:]), generator=generator).to(device, example.dtype)
    if setting.bfloat16 and not setting.training:
        inputs = inputs.bfloat16()
    return inputs.contiguous(memory_format=_format(setting)) if inputs.dim() == 4 else inputs


def network_call(
    network: nn.Module,
    images: Tensor,
    setting: Setting,
    masks: Masks | None = None,
    learning_rate: float = 1e-3,
) -> Callable[[], Tensor]:
    """Return a function that runs a network once: in inference it returns the logits, else the loss of the step.

    Args:
        network: network on the device of the images. Its mode, memory format and type change, and its values in
            training steps.
        images: images from `inputs_like`.
        setting: what to measure; its engine is not `onnx`.
        masks: masks that every training step enforces.
        learning_rate: learning rate of the training step.
    """
    network.to(memory_format=_format(setting))  # type: ignore[call-overload]  # absent from its types
    network.train(setting.training)
    if setting.bfloat16 and not setting.training:
        network.bfloat16()
    forward = _compiled(network, images) if setting.engine == "compile" else network
    if setting.training:
        return _training_step(forward, images, setting, EnforcedMasks(network, masks or {}), learning_rate)

    def infer() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = forward(images)
        return logits

    return infer


def _compiled(network: nn.Module, images: Tensor) -> nn.Module:
    """Return the network compiled for these shapes alone."""
    mode = "reduce-overhead" if images.device.type == "cuda" else None
    compiled: Any = torch.compile(network, dynamic=False, mode=mode, **isolating())
    return cast(nn.Module, compiled)


def _training_step(
    network: nn.Module, images: Tensor, setting: Setting, masks: EnforcedMasks, learning_rate: float
) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4, fused=True)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> Tensor:
        with training_precision(images, setting):
            loss: Tensor = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        masks.zero_gradients()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def training_precision(images: Tensor, setting: Setting) -> AbstractContextManager[object]:
    """Return the context in which a training step computes forward."""
    if setting.bfloat16 and setting.training:
        return torch.autocast(images.device.type, torch.bfloat16)
    return nullcontext()


def _format(setting: Setting) -> torch.memory_format:
    return torch.channels_last if setting.channels_last else torch.contiguous_format


def time_ratio(
    dense: nn.Module,
    small: nn.Module,
    example: Tensor,
    setting: Setting,
    device: torch.device | str = "cpu",
    samples: int = 7,
    slot: float = 0.03,
    wide: float = math.inf,
) -> TimeRatio:
    """Return the time of a network over that of the dense one; less than 1 is faster.

    Args:
        dense: the full network; both are left as they were.
        small: the network to compare.
        example: an input batch of the true shape and type.
        setting: what to measure.
        device: device to measure on.
        samples: see `compare_times`, like `slot` and `wide`.
        slot: likewise.
        wide: likewise.
    """
    images = inputs_like(example, setting, device)
    base, call = (network_call(copied(each).to(device), images, setting) for each in (dense, small))
    with forked_random(device):  # dropout draws
        return compare_times(call, base, stopwatch(device), samples, slot, wide)


# The time of every layer, measured within networks that run.

Mark = Any  # a moment: seconds of a clock, or an event of a device


def layer_seconds(
    networks: Mapping[str, nn.Module],
    layers: Iterable[str],
    example: Tensor,
    setting: Setting,
    device: torch.device | str = "cpu",
    passes: int = 5,
) -> dict[str, dict[str, float]]:
    """Return the median time of every layer in inference, in networks that run in turn.

    What stands between layers (activations, normalisation, gathering channels) counts for none.

    Args:
        networks: networks by name; they are left as they were.
        layers: names of submodules; one that a network lacks, or that is not called, has no time there.
        example: an input batch of the true shape and type.
        setting: a setting of inference, eager.
        device: device to measure on.
        passes: number of passes of every network, besides one to warm up.

    Returns:
        Seconds by layer and network.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> seconds = layer_seconds({"a": net}, ["0", "gone"], torch.zeros(1, 1, 8, 8), Setting(2, training=False))
    >>> {name: list(each) for name, each in seconds.items()}
    {'0': ['a'], 'gone': []}
    """
    images = inputs_like(example, setting, device)
    names = list(layers)
    mark, between = _clock(device)
    calls = {}
    marks: dict[str, dict[str, list[tuple[Mark, Mark]]]] = {}
    for key, network in networks.items():
        mine = copied(network).to(device)
        marks[key] = _watched(mine, names, mark)
        calls[key] = network_call(mine, images, setting)
    for call in calls.values():
        call()
    for of_network in marks.values():
        for of_layer in of_network.values():
            of_layer.clear()
    for _ in range(passes):
        for call in calls.values():
            call()
    return {
        name: {
            key: statistics.median(between(*pair) for pair in of_network[name])
            for key, of_network in marks.items()
            if of_network.get(name)
        }
        for name in names
    }


def _watched(network: nn.Module, names: Iterable[str], mark: Callable[[], Mark]) -> dict[str, list[tuple[Mark, Mark]]]:
    """Watch layers, and return the lists where the moments before and after each call are noted."""
    modules = dict(network.named_modules())
    noted: dict[str, list[tuple[Mark, Mark]]] = {name: [] for name in names if name in modules}
    began: dict[str, Mark] = {}

    def watch(name: str) -> None:
        modules[name].register_forward_pre_hook(lambda *_: began.__setitem__(name, mark()))
        modules[name].register_forward_hook(lambda *_: noted[name].append((began[name], mark())))

    for name in noted:
        watch(name)
    return noted


def _clock(device: torch.device | str) -> tuple[Callable[[], Mark], Callable[[Mark, Mark], float]]:
    """Return functions that mark a moment, and that tell the seconds between two."""
    if torch.device(device).type != "cuda":
        return time.perf_counter, lambda first, last: last - first

    def mark() -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(first: Mark, last: Mark) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    return mark, between
