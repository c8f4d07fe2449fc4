"""Networks in evaluation mode, left as they were, and the difference of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Set networks to evaluation mode without gradients; at the end every module is back in its own mode.

    >>> network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(network):
    ...     network[0].training
    False
    >>> [module.training for module in network]
    [True, False]
    """
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected magnitude; infinite for NaN or other shapes.

    >>> relative_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0]))
    0.25
    """
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((got - expected).abs().max() / largest).nan_to_num(float("inf")))


def largest_difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """Return the largest difference of two networks' outputs, relative to the first's largest output."""
    with evaluating(first, second), torch.inference_mode():
        expected, got = first(images), second(images)
    return relative_difference(got, expected)
