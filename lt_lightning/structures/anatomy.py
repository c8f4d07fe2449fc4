"""What of a network a search looks at again and again, found once: training changes none of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from lt_lightning.pruning.layers import Layer, find_layers
from lt_lightning.structures.graph import ChannelGraph


@dataclass(frozen=True)
class Anatomy:
    """A network's layers and channels. They stay what they are while values change in place and nothing else does.

    Attributes:
        network: whose they are.
        example: an input batch of the true shape.
    """

    network: nn.Module
    example: Tensor

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every convolution and linear layer, by name; see `find_layers`."""
        return find_layers(self.network, self.example)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The channels; see there."""
        return ChannelGraph(self.network, self.example)
