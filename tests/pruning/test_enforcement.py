"""Pruned weights stay exactly zero, and only they."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.pruning.enforcement import EnforcedMasks, check_enforced, check_gradients
from lt_lightning.pruning.masks import Masks

Make = Callable[[], nn.Module]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
}


def random_masks(network: nn.Module, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(parameter.shape, generator=generator) > 0.5
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1
    }


def step(network: nn.Module, optimizer: torch.optim.Optimizer, held: EnforcedMasks | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(4, 1, 6, 6, generator=generator), torch.randint(3, (4,), generator=generator)
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(network(images), labels))
    if held is not None:
        held.zero_gradients()
    optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_their_averages_are_zero_after_every_step(
    conv_net: Make, name: str, layout: torch.memory_format
) -> None:
    network = conv_net().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = OPTIMIZERS[name](network.parameters())
    for seed in range(3):
        step(network, optimizer, None, seed)  # so that there are averages to zero
    masks = random_masks(network)
    held = EnforcedMasks(network, masks)
    with pytest.raises(ValueError, match=r"\b0\.weight\b"):
        check_enforced(held, [optimizer])
    held.zero_weights()
    held.zero_optimizer_state([optimizer])
    parameters = dict(network.named_parameters())
    averages = 0
    for seed in range(10, 16):
        before = {key: parameters[key].detach().clone() for key in masks}
        step(network, optimizer, held, seed)
        check_enforced(held, [optimizer])
        check_gradients(held)
        for key, mask in masks.items():
            assert int(parameters[key][~mask].count_nonzero()) == 0
            assert not bool((parameters[key] == before[key])[mask].any())  # all others are trained
            for value in optimizer.state[parameters[key]].values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    averages += 1
                    assert int(value[~mask].count_nonzero()) == 0
                    assert int(value[mask].count_nonzero()) > 0
    assert averages >= 6 * len(masks)


def test_negative_weights_are_trained() -> None:
    """A well-known one-file implementation masks gradients where `w < eps`, so that negative weights stand still."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[-1.0, 1.0]])
    held = EnforcedMasks(layer, {"weight": torch.ones(1, 2, dtype=torch.bool)})
    layer(torch.ones(1, 2)).sum().backward()
    held.zero_gradients()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_a_surviving_weight_that_is_zero_is_trained() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.zeros(1, 2)
    held = EnforcedMasks(layer, {"weight": torch.tensor([[True, False]])})
    layer(torch.ones(1, 2)).sum().backward()
    held.zero_gradients()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 0.0]]


def test_full_masks_change_no_bit_of_a_training(conv_net: Make) -> None:
    networks = [conv_net(), conv_net()]
    for network, masked in zip(networks, (True, False), strict=True):
        optimizer = OPTIMIZERS["sgd"](network.parameters())
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in network.named_parameters()}
        held = EnforcedMasks(network, masks if masked else {})
        held.zero_weights()
        for seed in range(4):
            step(network, optimizer, held, seed)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_factors_have_the_layout_of_their_parameters() -> None:
    """Equal strides let the multiplication of all gradients run as one kernel."""
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    masks = random_masks(network)
    held = EnforcedMasks(network, masks)
    network(torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
    for (name, parameter), factor in zip(
        [(n, p) for n, p in network.named_parameters() if n in masks], held.factors.values(), strict=True
    ):
        assert parameter.grad is not None
        assert factor.stride() == parameter.stride() == parameter.grad.stride()
        assert factor.dtype == parameter.dtype
        assert not factor.requires_grad
        assert torch.equal(factor.bool(), masks[name])


def test_parameters_without_a_gradient_are_passed_over(conv_net: Make) -> None:
    network = conv_net()
    held = EnforcedMasks(network, random_masks(network))
    held.zero_gradients()
    network[0].weight.requires_grad_(False)  # type: ignore[index]
    network(torch.randn(2, 1, 6, 6)).sum().backward()
    held.zero_gradients()
    assert network[0].weight.grad is None  # type: ignore[index]


def test_masks_are_copied_at_the_beginning(conv_net: Make) -> None:
    network = conv_net()
    masks = random_masks(network)
    held = EnforcedMasks(network, masks)
    original = copy.deepcopy(masks)
    for mask in masks.values():
        mask.fill_(True)
    held.zero_weights()
    assert all(int(dict(network.named_parameters())[n][~m].count_nonzero()) == 0 for n, m in original.items())


def test_masks_of_another_network_are_refused(conv_net: Make) -> None:
    with pytest.raises(ValueError, match=r"no parameter '7\.weight'"):
        EnforcedMasks(conv_net(), {"7.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask of 0\.weight has the shape \(4, 1\), the parameter \(4, 1, 3, 3\)"):
        EnforcedMasks(conv_net(), {"0.weight": torch.ones(4, 1, dtype=torch.bool)})
