"""Networks looked at, and left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; at the end every module is back in the mode that it was in.

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
