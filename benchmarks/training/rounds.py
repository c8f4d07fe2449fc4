"""What lies between two rounds: scores and pruning, rewinding, structuring, tickets on disk."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.rewinding import RewindPoint
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import Structure, StructureInput, Unstructured
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.making import make_ticket

COMMON = ("prune", "rewind", "ticket to disk")  # whatever the structure


@dataclass(frozen=True)
class Part:
    """Of what is done between two rounds.

    Attributes:
        part: what it is; a structure has its own name.
        milliseconds: median.
        longest: milliseconds.
        samples: how often it was done.
    """

    part: str
    milliseconds: float
    longest: float
    samples: int


def measure_round(
    network: nn.Module, example: Tensor, structures: Mapping[str, Structure], density: float, samples: int = 3
) -> list[Part]:
    """Times the parts on the network's device, at a density that several rounds have led to.

    What of the network stays the same is looked for once, as in a search: by the first structure that needs it, whose
    longest time tells of it.

    Args:
        network: is copied, on its device, and its filters and inputs are made of unequal strength, as in a trained one.
        example: an image.
        structures: by name, each applied to the round's mask.
        density: of the mask.
        samples: how often each part is done.
    """
    network = _uneven(copy.deepcopy(network))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.cat([example, example])).sum().backward()
    optimizer.step()
    point = RewindPoint.capture(network, [optimizer], [])
    weights = {name: parameter.detach().cpu().clone() for name, parameter in network.named_parameters()}
    values = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    trained = copy.deepcopy(values)
    traced = TracedNetwork(network, example)
    full = full_masks(prunable_layers(traced.layers, ("stem", "classifier")))
    masks = prune(full, Magnitude()(weights, full), density)
    given = StructureInput(traced, masks, weights)
    ticket = make_ticket(UNSTRUCTURED, Unstructured(), given, values)

    def rewind() -> None:
        point.restore_network(network)
        held = EnforcedMasks(network, masks)
        held.zero_weights()
        held.zero_optimizer_state([optimizer])

    with tempfile.TemporaryDirectory() as folder:
        common: tuple[Callable[[], object], ...] = (
            lambda: prune(full, Magnitude()(weights, full), density),
            rewind,
            lambda: ticket.with_training(trained).save(Path(folder) / "ticket"),
        )
        parts = dict(zip(COMMON, common, strict=True))
        for name, structure in structures.items():
            parts[name] = partial(make_ticket, name, structure, given, values)
        return [_timed(name, call, samples) for name, call in parts.items()]


@torch.no_grad()
def _uneven(network: nn.Module) -> nn.Module:
    """On even ones groups of filters are found sooner than after a training."""
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            for strength, axis in ((0.35, 0), (0.5, 1)):
                shape = [size if place == axis else 1 for place, size in enumerate(parameter.shape)]
                parameter.mul_((strength * torch.randn(shape, generator=draw)).exp().to(parameter.device))
    return network


def _timed(name: str, call: Callable[[], object], samples: int) -> Part:
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Part(name, statistics.median(seconds) * 1e3, max(seconds) * 1e3, samples)
