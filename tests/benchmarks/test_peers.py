"""Our masks and masked training beside torch.nn.utils.prune."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as peer

from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.densities import density_after
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.masks import Masks, kept, size
from lt_lightning.pruning.selection import prune

Make = Callable[[], nn.Module]
LAYERS = ("0", "3")


def full_masks(network: nn.Module) -> Masks:
    return {
        f"{name}.weight": torch.ones_like(network.get_parameter(f"{name}.weight"), dtype=torch.bool) for name in LAYERS
    }


def peer_masks(network: nn.Module) -> Masks:
    return {f"{name}.weight": network.get_submodule(name).get_buffer("weight_mask").bool() for name in LAYERS}


@pytest.mark.parametrize("amount", [0.1, 0.2, 0.5, 0.93])
def test_global_magnitude_is_pytorchs(conv_net: Make, amount: float) -> None:
    network = conv_net()
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    full = full_masks(network)
    ours = prune(full, Magnitude()(weights, full), 1 - amount)
    modules = [(network.get_submodule(name), "weight") for name in LAYERS]
    peer.global_unstructured(modules, pruning_method=peer.L1Unstructured, amount=amount)
    theirs = peer_masks(network)
    assert kept(ours) == kept(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in full)


def test_rounds_accumulate_where_theirs_drift_by_rounding(conv_net: Make) -> None:
    """Pruning a fifth of what is left, round by round, rounds every time; ours rounds the density wanted."""
    network = conv_net()
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    masks = full_masks(network)
    modules = [(network.get_submodule(name), "weight") for name in LAYERS]
    for number in range(1, 11):
        masks = prune(masks, Magnitude()(weights, masks), density_after(number, 0.2))
        peer.global_unstructured(modules, pruning_method=peer.L1Unstructured, amount=0.2)
        assert kept(masks) == round(0.8**number * size(masks))
        assert abs(kept(masks) - kept(peer_masks(network))) <= number
        theirs = peer_masks(network)
        smaller, larger = sorted((masks, theirs), key=kept)
        assert all(not bool((smaller[name] & ~larger[name]).any()) for name in masks)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_masked_gradients_train_as_pytorchs_parametrisation_does(conv_net: Make, momentum: float) -> None:
    """Without weight decay: with it theirs shrinks the hidden values of pruned weights, ours has none."""
    ours, theirs = conv_net().double(), conv_net().double()
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(m.shape, generator=generator) > 0.6 for name, m in full_masks(ours).items()}
    held = EnforcedMasks(ours, masks)
    held.zero_weights()
    for name in LAYERS:
        peer.custom_from_mask(theirs.get_submodule(name), "weight", masks[f"{name}.weight"])  # type: ignore[no-untyped-call]
    start = copy.deepcopy(ours.state_dict())
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum) for network in (ours, theirs)]
    for _ in range(20):
        images = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (8,), generator=generator)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images), labels))
            if network is ours:
                held.zero_gradients()
            optimizer.step()
    images = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), rtol=1e-9)  # its hook computes its weights anew
    for name in LAYERS:
        weight = ours.get_parameter(f"{name}.weight").detach()
        expected = theirs.get_submodule(name).weight
        assert isinstance(expected, torch.Tensor)
        assert torch.allclose(weight, expected.detach(), rtol=1e-9, atol=1e-12)
        assert not torch.equal(weight, start[f"{name}.weight"])


def test_our_networks_keep_plain_keys(conv_net: Make) -> None:
    """Their parametrisation renames weights, so that a checkpoint no longer loads; ours leaves them alone."""
    ours, theirs = conv_net(), conv_net()
    before = list(ours.state_dict())
    EnforcedMasks(ours, full_masks(ours)).zero_weights()
    peer.identity(theirs.get_submodule("0"), "weight")  # type: ignore[no-untyped-call]
    assert list(ours.state_dict()) == before
    assert list(theirs.state_dict()) != before
