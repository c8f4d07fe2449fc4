"""Whether what was written computes the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

BATCHES: Final = (1, 3)
TOLERANCE: Final = 1e-4
"""Of float32, over a whole network; an error of ours is of the order of the logits."""

Call = Callable[[Tensor], Tensor]


def difference(expected: Tensor, got: Tensor) -> float:
    """The largest difference of two networks' logits, relative to the largest of the first's.

    >>> difference(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0]))
    0.25
    """
    if expected.shape != got.shape:
        return float("inf")
    largest = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float(((got - expected).abs().max() / largest).nan_to_num(float("inf")))


def checked(what: str, call: Call, reference: Call, shape: tuple[int, ...]) -> float:
    """The largest difference over batches of one and of several random images.

    Raises:
        RuntimeError: if it is more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        for batch in BATCHES:
            images = torch.randn(batch, *shape, generator=generator)
            worst = max(worst, difference(reference(images), call(images)))
    if worst > TOLERANCE:
        raise RuntimeError(
            f"{what} computes other logits than the masked network: they differ by {worst:.1e} of the largest"
        )
    return worst
