"""What comes of executing a ticket: a smaller network, and its relation to the full one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lt_lightning.pruning.masks import Masks
from lt_lightning.shrink.slices import Slices


@dataclass(frozen=True)
class Shrunk:
    """A smaller network.

    Attributes:
        network: an ordinary module; of the original's class where nothing but sizes changed, else a torch.fx graph
            module with the same submodule names.
        slices: where its parameters and buffers stand in the full network.
        unknown: operations that the analysis does not know, around which all channels were kept.
        masks: of parameters of the small network that are not executed sparsely, to be held.
        choice: what computes each layer of a block plan: a name of `blocks.forms_of`, or `dense`.
    """

    network: nn.Module
    slices: Slices
    unknown: tuple[str, ...] = ()
    masks: Masks = field(default_factory=dict)
    choice: Mapping[str, str] = field(default_factory=dict)
