"""Holding pruned weights at exactly zero while a network trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks


class HeldMasks:
    """Masks bound to the parameters of a network, on its device.

    Attributes:
        parameters: that are held, by name.
        factors: 1 where a weight is kept and 0 where it is pruned, likewise.

    A pruned weight that is zero, whose gradient is zero and whose optimizer state is zero stays zero through any
    step of SGD, Adam and their like, weight decay included. So a training step costs one fused multiply of
    the gradients, and nothing in the network changes: no hooks, no extra parameters.
    """

    def __init__(self, network: nn.Module, masks: Masks) -> None:
        """Binds the masks; they are copied to the parameters' devices.

        Raises:
            ValueError: if a mask's parameter is missing or has another shape.
        """
        parameters = dict(network.named_parameters())
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"the network has no parameter {name!r} that a mask could hold")
            if parameters[name].shape != mask.shape:
                raise ValueError(
                    f"the mask of {name} has the shape {tuple(mask.shape)}, "
                    f"the parameter {tuple(parameters[name].shape)}"
                )
        self.parameters: dict[str, Tensor] = {name: parameters[name] for name in masks}
        # In the parameters' type and memory format, so that a fused multiply needs no conversion.
        self.factors: dict[str, Tensor] = {
            name: torch.empty_like(parameter, requires_grad=False).copy_(masks[name])
            for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Sets the pruned weights to zero, in place."""
        if self.parameters:
            torch._foreach_mul_(list(self.parameters.values()), list(self.factors.values()))

    def zero_gradients(self) -> None:
        """Sets the gradients of pruned weights to zero: once a step, between backward and the optimizer."""
        gradients: list[Tensor] = []
        factors: list[Tensor] = []
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradients.append(parameter.grad)
                factors.append(self.factors[name])
        if gradients:
            torch._foreach_mul_(gradients, factors)

    @torch.no_grad()
    def zero_optimizer_state(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Sets the running averages (momentum) of pruned weights to zero, in place."""
        for optimizer in optimizers:
            for name, parameter in self.parameters.items():
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.mul_(self.factors[name].to(value.dtype))
