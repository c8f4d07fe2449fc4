"""Layers cut to some of their channels, in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_lightning.pruning.layers import CONVOLUTIONS
from lt_lightning.shrink.orders import Order
from lt_lightning.shrink.slices import Cut


class Resizer:
    """Cuts layers of a network.

    Attributes:
        network: whose layers are cut.
        cuts: what is left of the parameters and buffers that were asked for, by name.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.cuts: dict[str, Cut] = {}

    def layer(self, name: str, outputs: Order, inputs: Order) -> None:
        """A convolution, linear layer or normalisation; `inputs` are the channels that it reads."""
        module = self.network.get_submodule(name)
        out = torch.from_numpy(outputs)
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            grouped = isinstance(module, CONVOLUTIONS) and module.groups > 1
            self._cut(name, "weight", (out, None if grouped else torch.from_numpy(inputs)))
            self._cut(name, "bias", (out,))
            if isinstance(module, nn.Linear):
                module.in_features, module.out_features = len(inputs), len(outputs)
            else:
                module.groups = module.groups * len(inputs) // module.in_channels if grouped else 1
                module.in_channels, module.out_channels = len(inputs), len(outputs)
        else:
            for part_name in ("weight", "bias", "running_mean", "running_var"):
                self._cut(name, part_name, (out,))
            module.num_features = len(outputs)  # type: ignore[assignment]

    def activation(self, name: str, order: Order) -> None:
        """An activation with parameters of its own per channel."""
        module = self.network.get_submodule(name)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            self._cut(name, "weight", (torch.from_numpy(order),))
            module.num_parameters = len(order)

    def _cut(self, name: str, part_name: str, index: tuple[Tensor | None, ...]) -> None:
        module = self.network.get_submodule(name)
        value = getattr(module, part_name, None)
        full_name = f"{name}.{part_name}" if name else part_name
        if value is None or full_name in self.cuts:  # a module that is called again
            return
        whole = all(i is None or torch.equal(i, torch.arange(n)) for i, n in zip(index, value.shape, strict=False))
        cut = self.cuts[full_name] = Cut() if whole else Cut(index)
        if whole:
            return
        smaller = _like(cut.take(value.detach()), value)
        if isinstance(value, nn.Parameter):
            setattr(module, part_name, nn.Parameter(smaller, requires_grad=value.requires_grad))
        else:
            setattr(module, part_name, smaller)


def _like(cut: Tensor, value: Tensor) -> Tensor:
    """In the memory format that the whole had."""
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
        return cut.contiguous(memory_format=torch.channels_last)
    return cut
