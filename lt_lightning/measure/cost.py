"""What a network costs besides time: parameters, operations, saved activations, bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass, two for a multiply-add, counted on the network that runs.

    >>> flops(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 5, 5)) == 2 * 4 * 2 * 9 * 9
    True
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return int(counter.get_total_flops())


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes of activations that a forward pass in training keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Held until counted, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images)
        total = sum(storages.values())
    del output
    return total


def stored_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers, as they are saved."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())
