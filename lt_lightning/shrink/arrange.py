"""Channels put into the order and number that an operation wants; for what no permutation beforehand avoids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_lightning.shrink.orders import Order


class Select(nn.Module):
    """Takes some channels, in a given order."""

    index: Tensor

    def __init__(self, index: Order) -> None:
        super().__init__()
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class Spread(nn.Module):
    """Puts channels to given places among `channels`; the others are zero."""

    index: Tensor

    def __init__(self, index: Order, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", torch.from_numpy(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros((x.shape[0], self.channels, *x.shape[2:]))
        return whole.index_copy(1, self.index, x)


def add_into_prefix(whole: Tensor, first: Tensor) -> Tensor:
    """Adds to the first channels of `whole`; the others pass."""
    summed = whole.clone()
    summed[:, : first.shape[1]] += first
    return summed
