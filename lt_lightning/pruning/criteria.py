"""Criteria: a score for each weight, of which the lowest are pruned first.

Scores come from magnitudes, from the loss at initialisation (SNIP, GraSP), or from the network alone (SynFlow).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.masks import Masks, density
from lt_lightning.pruning.selection import Scope, prune

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What a criterion may need besides weights and masks. Nothing is computed before a criterion looks at it.

    Attributes:
        source: network to score; it is never changed.
        state: values that are scored: parameters and buffers by name.
        example: input batch of the true shape.
        batches: function that gives so many training batches (inputs, targets), the same at every call, on the device
            of the network.
        density: share of the weights that is kept.
        scope: where scores are compared.
    """

    source: nn.Module
    state: Mapping[str, Tensor]
    example: Example
    batches: Callable[[int], Sequence[Batch]]
    density: float
    scope: Scope

    def network(self) -> nn.Module:
        """Return a new copy with the values that are scored; its BatchNorm looks at this process alone."""
        network = copied(self.source)
        network.load_state_dict(self.state)
        network.zero_grad()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = _LocalBatchNorm
        return network


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""


class Criterion(Protocol):
    """Scores every weight that has a mask. Pure: nothing given is changed.

    A class of one's own inherits from this one and has at least `__call__`.
    """

    @property
    def chooses_layer_densities(self) -> bool:
        """Whether the scores make sense only if layers get the densities that follow from them."""
        return False

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        """Return scores by parameter name, each of its mask's shape, on the CPU; those of pruned weights are ignored.

        Args:
            weights: weights by parameter name, on the CPU.
            masks: masks to prune further.
            context: network, batches and density, for criteria that look at them.
        """


@dataclass(frozen=True)
class Magnitude(Criterion):
    """The absolute value of the weight (Han et al. 2015; the paper's criterion)."""

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        return {name: weights[name].abs() for name in masks}


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores: the control for every other criterion.

    Attributes:
        seed: seed of the scores, which do not depend on the weights.
    """

    seed: int = 0

    def __call__(
        self, weights: Mapping[str, Tensor], masks: Masks, context: Context | None = None
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        # float64: among so many numbers hardly any two are equal.
        return {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}


# Criteria for pruning at initialisation: by the loss (SNIP, GraSP), and without data (SynFlow).

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SNIP(Criterion):
    """How strongly the loss answers to a weight's removal: |g w| (Lee et al. 2019, equation 5).

    g is the gradient of the mean loss over a few batches, in training mode. The paper's normalisation changes no order
    and is left out.

    Attributes:
        batches: largest number of batches of training data, at least 1.
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
        parameters = dict(network.named_parameters(remove_duplicate=False))
        return {name: (_gradient(parameters[name]) * parameters[name]).abs().detach().cpu() for name in masks}


@dataclass(frozen=True)
class GraSP(Criterion):
    """How much gradient flow a weight's removal takes away: the signed w (H g) (Wang et al. 2020, equation 8).

    To first order ||g||^2 changes by -2 w (H g) when w is removed, so the lowest w (H g) are pruned first: those whose
    removal adds to the flow. g and the Hessian H are of the mean loss by all trainable parameters over a few batches,
    in training mode. H g is computed exactly, as the gradient of g . v at v = g, without the Hessian.

    Attributes:
        batches: largest number of batches of training data, at least 1.
        temperature: number that outputs are divided by; the authors' code has 200.
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
            raise ValueError(f"temperature={self.temperature}: must be positive")

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
        parameters = dict(network.named_parameters(remove_duplicate=False))
        return {name: (_gradient(parameters[name]) * parameters[name]).detach().cpu() for name in masks}

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.loss or F.cross_entropy)(outputs / self.temperature, targets)


def _masked(context: Context, masks: Masks) -> nn.Module:
    """Return the network as it would be trained with these masks."""
    network = context.network().train()
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask.to(network.get_parameter(name).device))
    return network


def _add_gradients(network: nn.Module, loss: Loss, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add the gradients of the mean loss over the batches into `grad`."""
    for inputs, targets in batches:
        (loss(network(inputs), targets) / len(batches)).backward()  # type: ignore[no-untyped-call]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _check_batches(batches: int) -> None:
    if batches < 1:
        raise ValueError(f"batches={batches}: must be at least 1")


# Without data


@dataclass(frozen=True)
class SynFlow(Criterion):
    """The flow through a weight, from input to output: |w| dR/d|w| (Tanaka et al. 2020, algorithm 1).

    R is the sum of the outputs for an input of ones, of the network with the absolute value of every parameter. As in
    the paper, batch normalisation is that of evaluation, a fixed scale. The means that it subtracts are taken as
    zero, as they are before a training: nothing may be negative, or flow is not conserved.

    The density is reached in many steps, the flow computed anew after each: so the criterion avoids emptying
    a layer. It computes in float64, since products over many layers leave the range of float32.

    Attributes:
        steps: number of steps from the given masks to the density, each of which prunes the same share of what is
            left; 100 in the paper.

    Raises:
        ValueError: if there are no steps; when it scores, if the network reads anything but one tensor of
            floating-point numbers (token ids, several arguments).
    """

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be at least 1")

    @property
    def chooses_layer_densities(self) -> bool:
        """True: the masks are pruned step by step while they are scored."""
        return True

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        example = context.example
        if not (isinstance(example, Tensor) and example.is_floating_point()):
            reads = example.dtype if isinstance(example, Tensor) else f"a {type(example).__name__}"
            raise ValueError(
                f"criterion={type(self).__name__}: needs one input of ones, and this network reads {reads}; choose "
                "another criterion"
            )
        network = absolute(context.network())
        ones = torch.ones_like(example[:1], dtype=torch.float64)
        start = density(masks)
        left = masks
        for step in range(1, self.steps):
            wanted = start * (context.density / start) ** (step / self.steps)
            left = prune(left, flow(network, left, ones), wanted, context.scope)
        scores = flow(network, left, ones)
        return {name: score.masked_fill(~left[name], -1.0) for name, score in scores.items()}


@torch.no_grad()
def absolute(network: nn.Module) -> nn.Module:
    """Change the network in place: every parameter's absolute value, no running means, evaluation mode, float64."""
    network.double().eval()
    for parameter in network.parameters():
        parameter.abs_()
    for module in network.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.zero_()
    return network


def flow(network: nn.Module, masks: Masks, inputs: Tensor) -> dict[str, Tensor]:
    """Score every weight that has a mask, on the CPU, in a network of absolute values; the pruned ones get 0."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    masked = {
        name: (parameters[name] * mask.to(parameters[name].device)).detach().requires_grad_()
        for name, mask in masks.items()
    }
    outputs: Tensor = torch.func.functional_call(network, masked, (inputs,))
    gradients = torch.autograd.grad(outputs.sum(), list(masked.values()), materialize_grads=True)
    return {name: (g * masked[name]).detach().cpu() for (name, g) in zip(masked, gradients, strict=True)}
