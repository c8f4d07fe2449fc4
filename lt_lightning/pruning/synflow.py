"""SynFlow: a criterion that needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lt_lightning.pruning.criteria import Context
from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.selection import prune


@dataclass(frozen=True)
class SynFlow:
    """The flow through a weight, from input to output: |w| dR/d|w| (Tanaka et al. 2020, algorithm 1).

    R is the sum of the outputs for an input of ones, of the network with the absolute value of every parameter. As in
    the paper, batch normalisation is that of evaluation, a fixed scale. The means that it subtracts are taken as
    zero, as they are before a training: nothing may be negative, or flow is not conserved.

    The density is reached in many steps, the flow computed anew after each: so the criterion avoids emptying
    a layer. In float64, since products over many layers run out of float32.

    Attributes:
        steps: from the masks given to the density, each pruning the same share of what is left; the paper's 100.

    Raises:
        ValueError: if there are no steps.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"pruning.criterion.steps={self.steps}: must be at least 1")

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        network = absolute(context.network())
        ones = torch.ones_like(context.example[:1], dtype=torch.float64)
        start = density(masks)
        left = masks
        for step in range(1, self.steps):
            wanted = start * (context.density / start) ** (step / self.steps)
            left = prune(left, flow(network, left, ones), wanted, context.scope)
        scores = flow(network, left, ones)
        return {name: score.masked_fill(~left[name], -1.0) for name, score in scores.items()}


@torch.no_grad()
def absolute(network: nn.Module) -> nn.Module:
    """The network, changed in place: every parameter's absolute value, no running means, evaluation, float64."""
    network.double().eval()
    for parameter in network.parameters():
        parameter.abs_()
    for module in network.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.zero_()
    return network


def flow(network: nn.Module, masks: Masks, inputs: Tensor) -> dict[str, Tensor]:
    """Score of every weight that has a mask, on the CPU, in a network of absolute values; the pruned ones get 0."""
    parameters = dict(network.named_parameters())
    masked = {
        name: (parameters[name] * mask.to(parameters[name].device)).detach().requires_grad_()
        for name, mask in masks.items()
    }
    outputs: Tensor = torch.func.functional_call(network, masked, (inputs,))
    gradients = torch.autograd.grad(outputs.sum(), list(masked.values()), materialize_grads=True)
    return {name: (g * masked[name]).detach().cpu() for (name, g) in zip(masked, gradients, strict=True)}
