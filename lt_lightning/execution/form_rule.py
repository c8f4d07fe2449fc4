"""The rule by which a plan and the shapes alone decide which form computes a layer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from lt_lightning.execution.execute import DENSE_FORM
from lt_lightning.execution.semi_structured import SPARSE
from lt_lightning.structures.plan import BlockPlan, NMPlan

BLOCKS = "blocks"


@dataclass(frozen=True)
class BlockTime:
    """The time of our block kernel, as a multiple of the dense layer's.

    Attributes:
        least: constant part of the fit; it may be negative, and is no time by itself.
        of_share: time for each share of the layer's weights that is computed.
        of_size: time, divided by the inputs and the side of the kernel: what is done for each output, however small its
            filter.
    """

    least: float
    of_share: float
    of_size: float

    def __call__(self, share: float, inputs: int, taps: int) -> float:
        """Return the time for a share of the weights of a layer with so many inputs and kernel positions."""
        return self.least + self.of_share * share + self.of_size / (inputs * math.sqrt(taps))


# Of convolutions and of linear layers, in inference (False) and in training steps (True). Learned by
# `python -m benchmarks.forms` from what `results/forms_cpu.json` holds.
CONVOLUTION = {False: BlockTime(0.18, 0.96, 25), True: BlockTime(0.09, 1.05, 32)}
LINEAR = {False: BlockTime(-0.27, 1.47, 212), True: BlockTime(0.2, 0.88, 156)}


def form_by_rule(layer: nn.Module, plan: BlockPlan | NMPlan, name: str, forms: Collection[str], training: bool) -> str:
    """Return the form of a layer: the block kernel where it is expected to be faster, else the layer as it is.

    Plain PyTorch's forms of the same blocks are rarely faster than our kernel, and never by much.

    Args:
        layer: the dense layer.
        plan: plan of the ticket.
        name: name of the layer.
        forms: forms that the layer can take, besides the dense one.
        training: whether training steps are to be fast, rather than inference.
    """
    if isinstance(plan, NMPlan):
        return SPARSE if SPARSE in forms else DENSE_FORM
    weight = layer.weight
    assert isinstance(weight, Tensor)
    time = (LINEAR if isinstance(layer, nn.Linear) else CONVOLUTION)[training]
    faster = time(_share(weight, plan, name), weight.shape[1], weight[0, 0].numel()) < 1
    return BLOCKS if faster and BLOCKS in forms else DENSE_FORM


def _share(weight: Tensor, plan: BlockPlan, name: str) -> float:
    """Return the share of a layer's weights that its blocks compute."""
    taps = weight[0, 0].numel() if plan.granularity == "input_channel" else 1
    return sum(len(block.rows) * len(block.columns) * taps for block in plan.blocks[name]) / weight.numel()
