"""What structure is worth in time: a network's tickets of given density against the dense network, in one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lt_lightning.measure.cost import flops, parameters, saved_bytes, stored_bytes
from lt_lightning.measure.networks import Setting, largest_difference, time_networks
from lt_lightning.pruning.hold import HeldMasks
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.shrink.execute import execute
from lt_lightning.structures.base import Structure, Structured, Subject


@dataclass(frozen=True)
class Measurement:
    """One variant of a network in one setting.

    Attributes:
        network: name.
        variant: `dense`, `masked`, or a structure's name.
        density: asked of every prunable layer.
        setting: batch size, training or inference, precision, compilation.
        milliseconds: median of one call.
        p5: 5th percentile, milliseconds.
        p95: 95th percentile, milliseconds.
        speedup: dense median over this one.
        ideal: dense operations over these.
        share: part of the ideal saving of time that is reached: (1 - 1/speedup) / (1 - 1/ideal); NaN if there is none.
        flops: of one forward pass of the batch.
        parameters: stored.
        saved_megabytes: activations kept for the backward pass.
        stored_megabytes: parameters and buffers.
        difference: of the outputs to the masked network's, relative.
    """

    network: str
    variant: str
    density: float
    setting: Mapping[str, object]
    milliseconds: float
    p5: float
    p95: float
    speedup: float
    ideal: float
    share: float
    flops: int
    parameters: int
    saved_megabytes: float
    stored_megabytes: float
    difference: float


def measure_network(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    structures: Mapping[str, Structure],
    density: float,
    settings: Sequence[Setting],
    device: str = "cpu",
    samples: int = 7,
    slot: float = 0.05,
) -> Iterator[Measurement]:
    """Measures the dense network, the masked one and every structure's in turn, setting by setting.

    Every prunable layer is pruned to the density by magnitude, at random weights: what is measured is time. Layers
    compute their blocks where that is measured faster at the setting's batch size.

    Raises:
        RuntimeError: if a network does not compute what the masked one does.
    """
    torch.manual_seed(0)
    dense = make()
    example = torch.zeros(1, *shape)
    tickets = {key: _ticket(dense, example, structure, density) for key, structure in structures.items()}
    for setting in settings:
        networks = {"dense": copy.deepcopy(dense)}
        differences = {"dense": 0.0}
        for key, ticket in tickets.items():
            networks[key], differences[key] = _executed(dense, ticket, example, setting, device)
        timings = time_networks(
            {key: copy.deepcopy(network) for key, network in networks.items()}, shape, setting, device, samples, slot
        )
        images = torch.zeros(setting.batch_size, *shape)
        counted = {key: flops(network.eval(), images[:1]) * setting.batch_size for key, network in networks.items()}
        for key, network in networks.items():
            timing, speedup = timings[key], timings["dense"].median / timings[key].median
            ideal = counted["dense"] / counted[key]
            yield Measurement(
                name, key, density, asdict(setting), timing.median * 1e3, timing.p5 * 1e3, timing.p95 * 1e3, speedup,
                ideal, (1 - 1 / speedup) / (1 - 1 / ideal) if ideal > 1 else float("nan"), counted[key],
                parameters(network), saved_bytes(network.train(), images) / 1e6, stored_bytes(network) / 1e6,
                differences[key],
            )  # fmt: skip


def _ticket(network: nn.Module, example: Tensor, structure: Structure, density: float) -> Structured:
    layers = find_layers(network, example)
    masks = full_masks(prunable_layers(layers, ("stem", "classifier")))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    masks = prune(masks, {name: weights[name].abs() for name in masks}, density, "layer")
    return structure(Subject(network, example, layers, masks, weights))


def _executed(
    dense: nn.Module, ticket: Structured, example: Tensor, setting: Setting, device: str
) -> tuple[nn.Module, float]:
    """The network that executes a ticket, and how far its outputs are from the masked network's."""
    masked = copy.deepcopy(dense)
    HeldMasks(masked, ticket.masks).zero_weights()
    shrunk = execute(masked, ticket.plan, ticket.masks, example, setting.batch_size, setting.training, device)
    small = masked if shrunk is None else shrunk.network
    images = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    difference = largest_difference(masked, small, images)
    if difference > 1e-3:
        raise RuntimeError(f"the executed network differs from the masked one by {difference:.1e}")
    return small, difference
