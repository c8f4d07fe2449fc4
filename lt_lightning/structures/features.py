"""How much there is in each channel of a network's feature maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lt_lightning.evaluation import evaluating
from lt_lightning.structures.base import Subject

Norm = Literal["l1", "l2"]
Floats = NDArray[np.float64]


def feature_norms(subject: Subject, norm: Norm, count: int) -> dict[str, Floats]:
    """The norm of every channel of what each prunable layer puts out, over some batches (paper, section 3.2, ablation).

    That is the layer's own output: with its bias, before BatchNorm and activation. The network is a copy with the
    subject's weights and buffers, the masks applied, in evaluation mode, and runs where the batches are.

    Args:
        subject: with `batches`; its `weights` must hold the buffers, too.
        norm: over images and positions: sum of magnitudes (`l1`), or root of the sum of squares (`l2`).
        count: of the batches that are asked for.

    Returns:
        float64, (outputs,), by layer name.

    Raises:
        ValueError: if batches, or values of the network, are missing.
    """
    if subject.batches is None:
        raise ValueError(
            f"structure.refill.score='feature_{norm}' needs training batches, and none were given: pass `batches`, or "
            "score by l1, l2, count or saliency"
        )
    network = _masked(subject)
    sums: dict[str, Tensor] = {}
    for layer in subject.prunable:
        network.get_submodule(layer.name).register_forward_hook(_adding_up(sums, layer.name, norm))
    dtype = next(network.parameters()).dtype
    with evaluating(network):
        for images, _ in subject.batches(count):
            network.to(images.device)(images.to(dtype) if images.is_floating_point() else images)
    return {name: (total if norm == "l1" else total.sqrt()).cpu().numpy() for name, total in sums.items()}


def _masked(subject: Subject) -> nn.Module:
    """A copy of the network with the values that are looked at, and their type."""
    network: nn.Module = copy.deepcopy(subject.network)
    if missing := sorted(network.state_dict().keys() - subject.weights.keys()):
        raise ValueError(f"feature maps need every parameter and buffer of the network: {missing[0]} is not in weights")
    state = {name: subject.weights[name].contiguous() for name in network.state_dict()}  # else it is rounded otherwise
    state |= {name: state[name] * mask for name, mask in subject.masks.items()}
    network.load_state_dict(state, assign=True)
    return network


def _adding_up(sums: dict[str, Tensor], name: str, norm: Norm) -> Callable[[nn.Module, object, Tensor], None]:
    def add(module: nn.Module, _: object, output: Tensor) -> None:
        sizes = output.abs() if norm == "l1" else output.square()
        channels = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        others = [axis for axis in range(output.dim()) if axis != channels]
        total = sizes.sum(others, dtype=torch.float64)
        sums[name] = sums[name] + total if name in sums else total

    return add
