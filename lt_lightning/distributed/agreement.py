"""Whether all processes of a job hold the same: masks and parameters, compared by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class DisagreementError(ValueError):
    """Processes that must hold the same do not."""


def check_agreement(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Compares tensors across all processes, bit for bit; does nothing where there is one process.

    All processes must call it at the same point, and all raise alike.

    Args:
        what: for the message: `masks in round 2`.
        tensors: by name.

    Raises:
        DisagreementError: naming the first tensor that differs, and the process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    own = {name: _digest(value) for name, value in tensors.items()}
    all_digests: list[dict[str, bytes]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(all_digests, own)
    first = all_digests[0]
    for rank, digests in enumerate(all_digests):
        differing = [name for name in sorted({*first, *digests}) if first.get(name) != digests.get(name)]
        if differing:
            raise DisagreementError(
                f"{what} differ between processes 0 and {rank}: {differing[0]} is the first of {len(differing)}; "
                "stopped, since what follows would be wrong"
            )


def _digest(value: Tensor) -> bytes:
    """Of type, shape and bits."""
    plain = value.detach().cpu().contiguous().reshape(-1)
    sha = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    sha.update(plain.view(torch.uint8).numpy().data)
    return sha.digest()[:16]
