"""Criteria that ask the loss: SNIP and GraSP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.pruning.criteria import Context
from lt_lightning.pruning.masks import Masks

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SNIP:
    """How strongly the loss answers to a weight's removal: |g w| (Lee et al. 2019, equation 5).

    g is the gradient of the mean loss over a few batches, in training mode. The paper's normalisation changes no order
    and is left out.

    Attributes:
        batches: of training data, at most; at least 1.
        loss: mean loss of outputs and targets; cross-entropy if it is None.

    Raises:
        ValueError: if there are no batches.
    """

    batches: int = 8
    loss: Loss | None = None

    def __post_init__(self) -> None:
        _check_batches(self.batches)

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        network = _masked(context, masks)
        _add_gradients(network, self.loss or F.cross_entropy, context.batches(self.batches))
        parameters = dict(network.named_parameters())
        return {name: (_gradient(parameters[name]) * parameters[name]).abs().detach().cpu() for name in masks}


@dataclass(frozen=True)
class GraSP:
    """How much gradient flow a weight's removal takes away: the signed w (H g) (Wang et al. 2020, equation 8).

    To first order ||g||^2 changes by -2 w (H g) when w is removed, so the lowest w (H g) are pruned first: those whose
    removal adds to the flow. g and the Hessian H are of the mean loss by all trainable parameters over a few batches,
    in training mode. H g is computed exactly, as the gradient of g . v at v = g, without the Hessian.

    Attributes:
        batches: of training data, at most; at least 1.
        temperature: that outputs are divided by; the authors' code has 200.
        loss: mean loss of outputs and targets; cross-entropy if it is None.

    Raises:
        ValueError: if there are no batches, or the temperature is not positive.
    """

    batches: int = 8
    temperature: float = 200.0
    loss: Loss | None = None

    def __post_init__(self) -> None:
        _check_batches(self.batches)
        if not self.temperature > 0:
            raise ValueError(f"pruning.criterion.temperature={self.temperature}: must be positive")

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        network = _masked(context, masks)
        batches = context.batches(self.batches)
        _add_gradients(network, self._loss, batches)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        flow = [_gradient(parameter).detach().clone() for parameter in trained]
        network.zero_grad()
        for inputs, targets in batches:
            loss = self._loss(network(inputs), targets) / len(batches)
            gradients = torch.autograd.grad(loss, trained, create_graph=True, materialize_grads=True)
            product = sum(((g * v).sum() for g, v in zip(gradients, flow, strict=True)), torch.zeros_like(loss))
            product.backward()  # type: ignore[no-untyped-call]
        parameters = dict(network.named_parameters())
        return {name: (_gradient(parameters[name]) * parameters[name]).detach().cpu() for name in masks}

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.loss or F.cross_entropy)(outputs / self.temperature, targets)


def _masked(context: Context, masks: Masks) -> nn.Module:
    """The network as it would be trained with these masks."""
    network = context.network().train()
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask.to(network.get_parameter(name).device))
    return network


def _add_gradients(network: nn.Module, loss: Loss, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Of the mean over the batches, into `grad`."""
    for inputs, targets in batches:
        (loss(network(inputs), targets) / len(batches)).backward()  # type: ignore[no-untyped-call]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _check_batches(batches: int) -> None:
    if batches < 1:
        raise ValueError(f"pruning.criterion.batches={batches}: must be at least 1")
