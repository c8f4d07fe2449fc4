"""A dry run of an optimizer on copies: whether it leaves pruned weights at zero, found out before any training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.pruning.enforcement import EnforcedMasks, averages_of
from lt_lightning.pruning.masks import Masks

DENSE_STEPS, MASKED_STEPS = 2, 3
DENSE_AIM, MASKED_AIM = 0.5, -0.5  # two aims, so that no optimizer has arrived when weights are pruned


def harmless_state(optimizer: Optimizer, network: nn.Module, masks: Masks) -> frozenset[str]:
    """Take a few steps, prune half of the weights, take a few more, all on copies.

    The gradients are those of a simple function of each weight, so that neither data nor the loss are needed.

    Args:
        optimizer: optimizer as it is before its first step.
        network: network of which it trains parameters.
        masks: masks of the parameters that will be pruned; only their names and shapes matter.

    Returns:
        The keys of those values, kept by the optimizer for each weight, that are not zero for pruned weights and yet
        move none of them: `exp_inf` of Adamax, which is a small constant there, or the step sizes of Rprop.

    Raises:
        ValueError: if a pruned weight does not stay zero; it names the optimizer and the parameter.
    """
    try:
        return _run(optimizer, network, masks)
    except _UnusableError:  # it needs more than gradients; what it does to pruned weights is seen in training
        return frozenset()


class _UnusableError(Exception):
    """Raised when an optimizer cannot be copied, or makes no step on its own."""


def _run(optimizer: Optimizer, network: nn.Module, masks: Masks) -> frozenset[str]:
    memo: dict[int, Any] = {}
    twin = _copied(optimizer, memo)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = {name: memo[id(p)] for p in trained if (name := names.get(id(p))) in masks}
    enforced = EnforcedMasks(parameters, _halves({name: masks[name] for name in parameters}))
    for _ in range(DENSE_STEPS):
        _step(twin, DENSE_AIM, None)
    enforced.zero_weights()
    enforced.zero_optimizer_state([twin])
    for _ in range(MASKED_STEPS):
        _step(twin, MASKED_AIM, enforced)
    for name, parameter in parameters.items():
        _check_pruned(type(optimizer).__name__, name, parameter[enforced.factors[name] == 0])
    kept = averages_of(twin, parameters)
    return frozenset(
        key
        for key, values in kept.items()
        if any(bool(value[enforced.factors[name] == 0].any()) for name, value in values.items())
    )


def _check_pruned(optimizer: str, name: str, weights: Tensor) -> None:
    if bool(weights.isnan().any()):
        raise ValueError(
            f"{optimizer}: makes pruned weights of {name} nan in a dry run with {weights.dtype}, for which its eps may "
            "be too small; give it a larger eps, or the Trainer another precision"
        )
    if moved := int(weights.count_nonzero()):
        raise ValueError(
            f"{optimizer}: moves pruned weights, {moved} of {weights.numel()} of {name} in a dry run; use an optimizer "
            "that treats every weight alone, such as SGD or AdamW"
        )


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copy an optimizer with its parameters, which `memo` has by the originals' ids, and without its hooks."""
    twin = object.__new__(type(optimizer))
    memo[id(optimizer)] = twin
    own = {name: value for name, value in vars(optimizer).items() if name != "step"}  # schedules wrap it
    hooks = {name: OrderedDict[int, Any]() for name in own if name.endswith("_hooks")}
    try:
        vars(twin).update(copy.deepcopy({**own, **hooks}, memo))
    except Exception as error:
        raise _UnusableError from error
    for group in twin.param_groups:
        if not isinstance(group["lr"], Tensor):  # whatever it is: zero in a warm-up, or far too large
            group["lr"] = 0.01
    return twin


def _step(optimizer: Optimizer, aim: float, enforced: EnforcedMasks | None) -> None:
    parameters = [each for group in optimizer.param_groups for each in group["params"]]

    @torch.no_grad()
    def closure() -> float:
        loss = 0.0
        for parameter in parameters:
            distance = parameter - aim
            parameter.grad = distance + distance**3
            loss += float((distance**2 / 2 + distance**4 / 4).float().sum())
        if enforced is not None:
            enforced.zero_gradients()
        return loss

    try:
        optimizer.step(closure)
    except Exception as error:
        raise _UnusableError from error


def _halves(masks: Masks) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in masks.items()}
