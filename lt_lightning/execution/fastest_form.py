"""Single layers against what replaces them, at the shapes that they run at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lt_lightning.execution.timing import Timing, interleaved, stopwatch

Shape = tuple[int, ...]


@dataclass
class FastestForm:
    """Chooses the form of a layer that is measured fastest, the layer itself included; remembers what it measured.

    Attributes:
        shapes: of one sample of each layer's input, by layer name.
        batch_size: samples at once.
        training: time forward and backward, or forward alone.
        device: where to measure.
        bfloat16: precision, as `time_layers`.
    """

    shapes: Mapping[str, Shape]
    batch_size: int
    training: bool
    device: torch.device | str = "cpu"
    bfloat16: bool = False
    _known: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, name: str, layer: nn.Module, forms: Mapping[str, nn.Module]) -> str | None:
        """The name of the fastest form, None where that is the layer as it is."""
        shape = self.shapes[name]
        key = f"{layer} {forms} {shape}"
        if key not in self._known:
            self._known[key] = self._measure(layer, forms, shape)
        return self._known[key]

    def _measure(self, layer: nn.Module, forms: Mapping[str, nn.Module], shape: Shape) -> str | None:
        if not forms:
            return None
        contenders = {"": (layer, shape)} | {name: (form, shape) for name, form in forms.items()}
        timings = time_layers(
            contenders, self.batch_size, self.training, self.bfloat16, self.device, samples=5, slot=0.01
        )
        return min(timings, key=lambda name: timings[name].median) or None


def time_layers(
    forms: Mapping[str, tuple[nn.Module, Shape]],
    batch_size: int,
    training: bool,
    bfloat16: bool = False,
    device: torch.device | str = "cpu",
    samples: int = 7,
    slot: float = 0.02,
    limit: float = float("inf"),
) -> dict[str, Timing]:
    """Times layers in turn, in channels_last; they are left as they were.

    Args:
        forms: module and shape of one sample of its input, by name.
        batch_size: samples at once.
        training: forward and backward (gradients of input and parameters), or forward alone.
        bfloat16: forward alone with everything in bfloat16; forward and backward by autocast.
        device: where to run.
        samples: see `interleaved`, as are `slot` and `limit`.
        slot: likewise.
        limit: likewise.
    """
    calls = {}
    for name, (module, shape) in forms.items():
        inputs = _laid_out(torch.randn(batch_size, *shape, device=device))
        layer = copy.deepcopy(module).to(device)
        calls[name] = _both(layer, inputs, bfloat16) if training else _forward(layer, inputs, bfloat16)
    return interleaved(calls, stopwatch(device), samples, slot, limit=limit)


def _laid_out(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _to_channels_last(layer: nn.Module, inputs: Tensor) -> None:
    if inputs.dim() == 4:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from its types


def _forward(layer: nn.Module, inputs: Tensor, bfloat16: bool) -> Callable[[], None]:
    _to_channels_last(layer, inputs)
    if bfloat16:
        layer, inputs = layer.bfloat16(), inputs.bfloat16()

    def forward() -> None:
        with torch.inference_mode():
            layer(inputs)

    return forward


def _both(layer: nn.Module, inputs: Tensor, bfloat16: bool) -> Callable[[], None]:
    _to_channels_last(layer, inputs)
    inputs = inputs.requires_grad_()

    def run() -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16) if bfloat16 else nullcontext():
            outputs: Tensor = layer(inputs)
        return outputs

    gradient = torch.randn_like(run())

    def both() -> None:
        torch.autograd.grad(run(), (inputs, *layer.parameters()), gradient)

    return both
