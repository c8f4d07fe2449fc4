"""Masks: which weights are kept. A mask is a bool tensor of its parameter's shape; `Masks` maps names to masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Masks = dict[str, Tensor]


def kept(masks: Mapping[str, Tensor]) -> int:
    """Count the weights kept.

    >>> kept({"w": torch.tensor([True, False, True])})
    2
    """
    return sum(count_kept(mask) for mask in masks.values())


def count_kept(mask: Tensor) -> int:
    """Count the weights that one mask keeps; NumPy counts flags several times faster than PyTorch."""
    return int(np.count_nonzero(mask.cpu().numpy()))


def size(masks: Mapping[str, Tensor]) -> int:
    """Count the weights covered, kept or not."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Mapping[str, Tensor]) -> float:
    """Return the share of the covered weights that is kept, in [0, 1]; 1 where nothing is covered.

    >>> density({"w": torch.tensor([True, False, True, False])})
    0.5
    """
    total = size(masks)
    return kept(masks) / total if total else 1.0


def nested(inner: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> bool:
    """Whether every weight kept by `inner` is kept by `outer` too (a parameter without a mask is kept whole).

    >>> nested({"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
    True
    """
    return all(not bool((inner.get(name, ~mask | True) & ~mask).any()) for name, mask in outer.items())


def digest(masks: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and bits, in the order of the names: equal masks have equal digests."""
    sha = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name]
        sha.update(f"{name}:{tuple(mask.shape)};".encode())
        sha.update(pack(mask).numpy().tobytes())
    return sha.hexdigest()


def pack(mask: Tensor) -> Tensor:
    """Pack eight weights into a byte, the first into the highest bit; the last byte is filled with zeros.

    >>> pack(torch.tensor([True] + [False] * 8))
    tensor([128,   0], dtype=torch.uint8)
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack what `pack` packed.

    Raises:
        ValueError: if `packed` does not hold exactly as many bytes as `shape` needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.numel() != (count + 7) // 8:
        raise ValueError(f"a mask of shape {shape} needs {(count + 7) // 8} bytes, not {packed.numel()}")
    bits = np.unpackbits(packed.cpu().numpy(), count=count)
    return torch.from_numpy(bits.astype(bool)).reshape(shape)
