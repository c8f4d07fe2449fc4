"""The mask as it is: nothing that dense hardware could skip."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lt_lightning.pruning.masks import count_kept
from lt_lightning.structures.base import Form, LayerReport, Structured, Subject


@dataclass(frozen=True)
class Unstructured:
    """Leaves every mask as it is; every layer is executed whole."""

    needs_gradients: bool = False

    def check(self, network: nn.Module, example: Tensor) -> None:
        """Any network will do."""

    def __call__(self, subject: Subject) -> Structured:
        layers = {}
        for name, layer in subject.layers.items():
            mask = subject.masks.get(layer.weight)
            asked = layer.size if mask is None else count_kept(mask)
            form: Form = "dense" if asked == layer.size else "unstructured"
            layers[name] = LayerReport(layer.size, asked, asked, layer.size, layer.positions, form)
        return Structured({name: mask.clone() for name, mask in subject.masks.items()}, layers)
