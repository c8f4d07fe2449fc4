"""What several processes must agree on: equal tensors, and batch normalisation over all their samples on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_lightning.training.lightning_internals import LayerSync


class DisagreementError(ValueError):
    """Raised when processes hold different values that must be equal."""


def check_agreement(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors across all processes, bit for bit; do nothing where there is one process.

    All processes must call it at the same point, and all raise alike.

    Args:
        what: what is compared, for the message: `masks in round 2`.
        tensors: tensors by name.

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
    """Return a hash of type, shape and bits."""
    plain = value.detach().cpu().contiguous().reshape(-1)
    sha = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    sha.update(plain.view(torch.uint8).numpy().data)
    return sha.digest()[:16]


# Batch normalisation over the samples of all processes on the CPU, where PyTorch has none


class SyncBatchNormOnCpu(LayerSync):
    """Do for processes on the CPU what `Trainer(sync_batchnorm=True)` does on GPUs: during a fit, in place."""

    def __init__(self) -> None:
        self._classes: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        self._classes = {module: type(module) for module in model.modules() if isinstance(module, _BatchNorm)}
        for module in self._classes:
            module.__class__ = _SyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module, own in self._classes.items():
            module.__class__ = own
        return model


class _SyncBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a tensor (n, c, ...) over the samples and positions of all processes."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x if x.dtype == torch.float64 else x.float()
        count = _sum(torch.tensor(float(x.numel() // x.shape[1])))
        mean = _sum(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = _sum(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        factor = (variance + self.eps).rsqrt()
        if self.affine:
            factor = factor * self.weight
            return (centred * factor.view(shape) + self.bias.view(shape)).to(x.dtype)
        return (centred * factor.view(shape)).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()  # every process's loss depends on every process's part
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    """Sum over all processes; each gets the gradients of all of them."""
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total
