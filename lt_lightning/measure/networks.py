"""Networks that compute the same, timed against each other: inference and training step, at true shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.measure.timing import Call, Timing, interleaved


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        batch_size: images at once.
        training: a whole training step (forward, backward, SGD with momentum), or inference.
        bfloat16: compute in bfloat16 by autocast.
        compiled: by `torch.compile`.
        channels_last: memory format of weights and images.
    """

    batch_size: int
    training: bool
    bfloat16: bool = False
    compiled: bool = False
    channels_last: bool = True

    def __str__(self) -> str:
        what = "training step" if self.training else "inference"
        how = [what, f"batch {self.batch_size}", "bf16" if self.bfloat16 else "fp32"]
        return ", ".join(how + ["compiled"] * self.compiled + ["channels last"] * self.channels_last)


def time_networks(
    networks: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    setting: Setting,
    device: torch.device | str = "cpu",
    samples: int = 15,
    slot: float = 0.05,
) -> dict[str, Timing]:
    """Times networks in turn on the same random images.

    Args:
        networks: by name; their values change where training steps are timed.
        shape: of one image.
        setting: what to measure.
        device: where to run.
        samples: see `interleaved`.
        slot: likewise.
    """
    generator = torch.Generator().manual_seed(0)
    # Random, not zero: on zeros some hardware is faster than on data.
    images = torch.randn((setting.batch_size, *shape), generator=generator).to(device)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    calls = {name: _call(network.to(device), images, setting) for name, network in networks.items()}
    return interleaved(calls, device, samples, slot)


def _call(network: nn.Module, images: Tensor, setting: Setting) -> Call:
    if setting.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from its types
    network.train(setting.training)
    forward: nn.Module = torch.compile(network) if setting.compiled else network  # type: ignore[assignment]
    if setting.training:
        return _training_step(forward, images, setting)
    return _inference(forward, images, setting)


def _inference(network: nn.Module, images: Tensor, setting: Setting) -> Call:
    def call() -> None:
        with torch.inference_mode(), _precision(images, setting):
            network(images)

    return call


def _training_step(network: nn.Module, images: Tensor, setting: Setting) -> Call:
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def call() -> None:
        with _precision(images, setting):
            loss: Tensor = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return call


def _precision(images: Tensor, setting: Setting) -> AbstractContextManager[object]:
    return torch.autocast(images.device.type, torch.bfloat16) if setting.bfloat16 else nullcontext()


def largest_difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """The largest difference of two networks' outputs (evaluation mode), relative to the first's largest output."""
    modes = [(module, module.training) for network in (first, second) for module in network.modules()]
    try:
        with torch.inference_mode():
            expected, got = (network.eval()(images) for network in (first, second))
    finally:
        for module, training in modes:
            module.training = training
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))


def time_ratio(
    dense: nn.Module,
    small: nn.Module,
    shape: tuple[int, ...],
    setting: Setting,
    device: torch.device | str = "cpu",
    samples: int = 7,
    slot: float = 0.03,
) -> float:
    """Time of a network over that of the dense one; less than 1 is faster.

    Args:
        dense: the full network; both are left as they were.
        small: to compare.
        shape: of one image.
        setting: what to measure.
        device: where to run.
        samples: see `interleaved`.
        slot: likewise.
    """
    networks = {"dense": copy.deepcopy(dense), "small": copy.deepcopy(small)}
    timings = time_networks(networks, shape, setting, device, samples, slot)
    return timings["small"].median / timings["dense"].median
