"""Whether a layer's replacement is faster than the layer, measured at the shapes that it runs at."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lt_lightning.measure.timing import Call, interleaved


@dataclass
class FasterLayer:
    """Accepts a replacement if it is measured faster; remembers what it measured.

    Attributes:
        shapes: of one sample of each layer's input, by layer name.
        batch_size: samples at once.
        training: time forward and backward, or forward alone.
        device: where to measure.
    """

    shapes: Mapping[str, tuple[int, ...]]
    batch_size: int
    training: bool
    device: torch.device | str = "cpu"
    _known: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, layer: nn.Module, small: nn.Module) -> bool:
        shape = self.shapes[name]
        key = f"{layer} {small} {shape}"
        if key not in self._known:
            self._known[key] = self._measure(layer, small, shape)
        return self._known[key] < 1

    def _measure(self, layer: nn.Module, small: nn.Module, shape: tuple[int, ...]) -> float:
        inputs = torch.randn(self.batch_size, *shape, device=self.device)
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        calls = {
            name: self._call(copy.deepcopy(module).to(self.device), inputs)
            for name, module in (("layer", layer), ("small", small))
        }
        timings = interleaved(calls, self.device, samples=5, slot=0.01)
        return timings["small"].median / timings["layer"].median

    def _call(self, module: nn.Module, inputs: torch.Tensor) -> Call:
        if inputs.dim() == 4:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from its types
        if not self.training:

            def forward() -> None:
                with torch.inference_mode():
                    module(inputs)

            return forward
        inputs = inputs.requires_grad_()
        with torch.no_grad():
            gradient = torch.randn_like(module(inputs))

        def both() -> None:
            torch.autograd.grad(module(inputs), (inputs, *module.parameters()), gradient)

        return both
