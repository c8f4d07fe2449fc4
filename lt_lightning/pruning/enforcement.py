"""Mask enforcement: pruned weights stay exactly zero while a network trains, and the masks stay as they were."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks, pack, unpack


class EnforcedMasks:
    """Masks bound to the parameters of a network, on its device.

    Attributes:
        parameters: parameters with a mask, by name.
        factors: 1 where a weight is kept and 0 where it is pruned, by parameter name.

    A pruned weight that is zero, whose gradient is zero and whose optimizer state is zero stays zero through any
    step of SGD, Adam and their like, weight decay included. So a training step costs one fused multiply of
    the gradients, and nothing in the network changes: no hooks, no extra parameters.
    """

    def __init__(self, network: nn.Module | Mapping[str, Tensor], masks: Masks) -> None:
        """Bind the masks; they are copied to the parameters' devices.

        Args:
            network: the network, or its parameters by name.
            masks: masks by parameter name.

        Raises:
            ValueError: if a mask's parameter is missing or has another shape.
        """
        named = network.named_parameters(remove_duplicate=False) if isinstance(network, nn.Module) else network
        parameters = dict(named)
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"the network has no parameter {name!r}, and there is a mask for it")
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
        """Set the pruned weights to zero, in place."""
        if self.parameters:
            torch._foreach_mul_(list(self.parameters.values()), list(self.factors.values()))

    def zero_gradients(self) -> None:
        """Set the gradients of pruned weights to zero: once a step, between backward and the optimizer."""
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
        """Set the running averages (momentum) of pruned weights to zero, in place."""
        for optimizer in optimizers:
            for name, parameter in self.parameters.items():
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.mul_(self.factors[name].to(value.dtype))


# Mask integrity: checks between steps, each of which costs about one multiplication of every pruned parameter

DIVERGED = "the training has diverged, a lower learning rate may help"


def packed(masks: Masks) -> dict[str, Tensor]:
    """Copy masks, one bit for each weight, for `check_masks` to compare with."""
    return {name: pack(mask) for name, mask in masks.items()}


def collapsed(masks: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the parameters of which no weight is left (layer collapse).

    >>> collapsed({"a": torch.tensor([False, False]), "b": torch.tensor([True, False])})
    ['a']
    """
    return [name for name, mask in masks.items() if not mask.any()]


def check_masks(masks: Masks, reference: Mapping[str, Tensor], whose: str) -> None:
    """Compare masks with what they were.

    Args:
        masks: masks as they are now.
        reference: masks as they were, from `packed`.
        whose: adjective that says which masks they are, for the message.

    Raises:
        ValueError: if a mask is missing, added or has changed; names it and counts the weights.

    >>> mask = torch.tensor([True, False, True])
    >>> check_masks({"w": mask}, packed({"w": ~mask}), "enforced")
    Traceback (most recent call last):
        ...
    ValueError: mask integrity: the enforced mask of w has changed in 3 of 3 weights
    """
    if wrong := sorted(set(masks) ^ set(reference)):
        state = "was added" if wrong[0] in masks else "is gone"
        raise ValueError(f"mask integrity: the {whose} mask of {wrong[0]} {state}")
    for name, mask in masks.items():
        if not torch.equal(pack(mask), reference[name]):
            count = int((mask.cpu() ^ unpack(reference[name], tuple(mask.shape))).count_nonzero())
            raise ValueError(
                f"mask integrity: the {whose} mask of {name} has changed in {count} of {mask.numel()} weights"
            )


def check_zeros(what: str, values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Look whether values are exactly zero where masks prune.

    Args:
        what: what the values are, for the message.
        values: values by parameter name.
        masks: masks, bool or of the values' type, by parameter name; one without values is passed over.

    Raises:
        ValueError: if a value is not zero; names the parameter, the number of such values and the largest.
        FloatingPointError: if it is not a number.

    >>> check_zeros("the weight", {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([True, False])})
    """
    for name, mask in masks.items():
        value = values.get(name)
        if value is None:
            continue
        mask = mask.to(value.device)  # after a resume the best epoch's values are on the CPU
        if torch.equal(value * mask.to(value.dtype), value):
            continue
        pruned = value[mask == 0]  # after a difference only: a choice by mask is slow
        if pruned.isnan().any() or not bool(pruned.count_nonzero()):
            raise FloatingPointError(f"{what} of {name} is not finite: {DIVERGED}")
        largest = float(pruned[pruned.abs().argmax()])
        raise ValueError(
            f"mask integrity: {what} of {name} is not zero at {int(pruned.count_nonzero())} of {pruned.numel()} "
            f"pruned places, the largest is {largest:.3g}: an optimizer or a callback writes there"
        )


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse a trained network with values that are no numbers.

    Raises:
        FloatingPointError: if a value is infinite or not a number; names the parameter and counts.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).count_nonzero())
            raise FloatingPointError(f"{count} of {value.numel()} values of {name} are not finite: {DIVERGED}")


@torch.no_grad()
def check_enforced(
    enforced: EnforcedMasks, optimizers: Iterable[torch.optim.Optimizer], harmless: Collection[str] = ()
) -> None:
    """Look whether weights and their running averages (momentum) are zero where the masks prune.

    Args:
        enforced: masks and the parameters that they are bound to.
        optimizers: optimizers of these parameters.
        harmless: keys of what optimizers keep that may be anything there, see `dry_run.harmless_state`.

    Raises:
        ValueError: see `check_zeros`.
        FloatingPointError: likewise.
    """
    check_zeros("the weight", enforced.parameters, enforced.factors)
    for optimizer in optimizers:
        for key, values in averages_of(optimizer, enforced.parameters).items():
            if key not in harmless:
                check_zeros(f"{type(optimizer).__name__}'s {key}", values, enforced.factors)


def check_gradients(enforced: EnforcedMasks) -> None:
    """Look whether gradients are zero where the masks prune; to be called after a step, before the next backward.

    Raises:
        ValueError: see `check_zeros`.
    """
    # A step that a gradient scaler left out has gradients that are not finite, and no consequences.
    gradients = {name: p.grad.nan_to_num(0.0) for name, p in enforced.parameters.items() if p.grad is not None}
    check_zeros("the gradient", gradients, enforced.factors)


def averages_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return what an optimizer keeps for each weight: by its own key, then by parameter name."""
    averages: dict[str, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                averages.setdefault(key, {})[name] = value
    return averages
