"""The dry run of optimizers finds out who moves pruned weights, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from lt_lightning.pruning.dry_run import harmless_state
from lt_lightning.pruning.masks import Masks

Make = Callable[[Any], Optimizer]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)).to(dtype)


def masks_of(net: nn.Module) -> Masks:
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.dim() > 1}


GENTLE: dict[str, tuple[Make, set[str]]] = {
    "sgd": (lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1), set()),
    "fused sgd": (lambda p: SGD(p, 0.1, momentum=0.9, fused=True), set()),
    "adam": (lambda p: Adam(p, amsgrad=True, weight_decay=0.1), set()),
    "adamw": (lambda p: AdamW(p, torch.tensor(0.01)), set()),
    "adamax": (Adamax, {"exp_inf"}),
    "nadam": (NAdam, set()),
    "radam": (RAdam, set()),
    "rmsprop": (lambda p: RMSprop(p, momentum=0.9, centered=True), set()),
    "rprop": (Rprop, {"step_size"}),
    "adagrad": (lambda p: Adagrad(p, initial_accumulator_value=0.5), set()),
    "adadelta": (Adadelta, set()),
    "adafactor": (Adafactor, set()),
    "asgd": (ASGD, set()),
    "no step on its own": (SparseAdam, set()),  # it wants sparse gradients
}


@pytest.mark.parametrize("name", GENTLE)
def test_accepted(name: str) -> None:
    make, apart = GENTLE[name]
    net = network()
    assert harmless_state(make(net.parameters()), net, masks_of(net)) == apart


class Late(SGD):
    """Its momentum is where nobody zeroes it."""

    total: Any = None

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        first = self.param_groups[0]["params"][0]
        self.total = first.detach().clone() if self.total is None else self.total + first.detach()
        with torch.no_grad():
            first.add_(self.total, alpha=1e-3)
        return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda p: LBFGS(p, lr=0.1, max_iter=3),
        LBFGS,
        lambda p: Muon([each for each in p if each.dim() > 1], lr=0.01),
        lambda p: Late(p, 0.1),
    ],
)
@pytest.mark.parametrize("warm_up", [False, True])
def test_refused(make: Make, warm_up: bool) -> None:
    net = network()
    optimizer = make(net.parameters())
    if warm_up:  # the first step has the rate 0, which moves nothing
        LambdaLR(optimizer, lambda step: step / 10)
    with pytest.raises(ValueError, match=rf"^{type(optimizer).__name__}: .*\b0\.weight\b"):
        harmless_state(optimizer, net, masks_of(net))


def test_an_eps_that_is_zero_in_sixteen_bits_is_refused() -> None:
    net = network(torch.float16)
    with pytest.raises(ValueError, match=r"^Adam: .*\b0\.weight\b.*float16.*\beps\b"):
        harmless_state(Adam(net.parameters()), net, masks_of(net))
    assert harmless_state(Adam(net.parameters(), eps=1e-4), net, masks_of(net)) == set()


def test_leaves_no_trace() -> None:
    net = network()
    calls: list[str] = []
    optimizer = AdamW(net.parameters())
    schedule = OneCycleLR(optimizer, 0.1, total_steps=5)
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    random = torch.get_rng_state()
    harmless_state(optimizer, net, masks_of(net))
    after = (net.state_dict(), optimizer.state_dict(), schedule.state_dict())
    assert all(torch.equal(value, before[0][name]) for name, value in after[0].items())
    assert after[1:] == before[1:]
    assert not calls
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(random, torch.get_rng_state())
