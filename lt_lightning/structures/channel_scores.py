"""How strong a channel is, by the weights that write it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lt_lightning.structures.base import in_blocks, masked

WeightScore = Literal["l1", "l2", "count", "saliency"]


def channel_scores(weight: Tensor, mask: Tensor, score: WeightScore, gradient: Tensor | None = None) -> Tensor:
    """A score per output channel, over its surviving weights (paper, section 3.2 and its ablation).

    Args:
        weight: (outputs, ...).
        mask: of the same shape.
        score: which.
        gradient: of the loss by the weight; for `saliency`.

    Returns:
        float64, (outputs,).

    >>> channel_scores(torch.tensor([[3.0, -4.0], [1.0, 9.0]]), torch.tensor([[True, True], [True, False]]), "l1")
    tensor([7., 1.], dtype=torch.float64)
    """
    given = (weight, mask) if gradient is None else (weight, mask, gradient)
    return torch.cat([_block_scores(score, *block) for block in in_blocks(*given)])


def _block_scores(score: WeightScore, weight: Tensor, mask: Tensor, gradient: Tensor | None = None) -> Tensor:
    surviving = masked(weight, mask).flatten(1).double()
    match score:
        case "l1":
            return surviving.abs_().sum(1)
        case "l2":
            return surviving.square_().sum(1).sqrt()
        case "count":
            return mask.flatten(1).sum(1).double()
        case "saliency":
            assert gradient is not None
            return (surviving * gradient.double().flatten(1)).sum(1).abs()
