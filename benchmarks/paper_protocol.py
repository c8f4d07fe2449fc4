"""The paper's own protocol of timing, so that its table can be set beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks.layer_table import LayerMeasurement, measure_layers, operations
from benchmarks.variants import Tickets, Variant
from lt_lightning.execution.network_timing import Setting
from lt_lightning.execution.timing import Effort

_SIZE = 127


@dataclass(frozen=True)
class PaperMeasurement:
    """Time of all convolutions by the paper's protocol.

    Attributes:
        protocol: what it is, in words.
        variant: name of the structure.
        density: asked of every prunable layer.
        dense_milliseconds: sum over the dense network's convolutions.
        milliseconds: sum over the ticket's.
        saved: share of the time that is saved.
        ideal_saved: share of the operations that is saved.
    """

    protocol: str
    variant: str
    density: float
    dense_milliseconds: float
    milliseconds: float
    saved: float
    ideal_saved: float


def measure_by_paper(
    tickets: Tickets,
    variants: Mapping[str, Variant],
    densities: Sequence[float],
    effort: Effort,
    batch_size: int = 64,
    device: str = "cpu",
) -> list[PaperMeasurement]:
    """Times convolutions alone, each fed images of 127 x 127, inference in float32 (Chen et al., ICML 2022, section 5).

    What a network saves at its true shapes is less: the paper's inputs are larger than any of the CIFAR networks'
    own, and BatchNorm, activations and additions are left out. Ours differs in that cuDNN may use workspace.

    Args:
        tickets: of the network.
        variants: by name.
        densities: asked of every prunable layer.
        effort: how much is measured.
        batch_size: 64 in the paper.
        device: where to run.
    """
    names = [name for name in tickets.layers if isinstance(tickets.network.get_submodule(name), nn.Conv2d)]
    setting = Setting(batch_size, training=False)
    rows = measure_layers(tickets, variants, densities, setting, effort, device, names, _SIZE)
    protocol = f"convolutions only, {_SIZE}x{_SIZE} inputs, batch {batch_size}, fp32, inference (the paper's)"
    found = []
    for variant in variants:
        for density in densities:
            mine = [row for row in rows if (row.variant, row.density) == (variant, density)]
            if not mine:
                continue
            dense = sum(row.dense_milliseconds * len(row.layers) for row in mine)
            # A layer that is faster dense runs dense, as in the network.
            time = sum(min(row.milliseconds, row.dense_milliseconds) * len(row.layers) for row in mine)
            operations = _dense_operations(tickets, mine)
            kept = sum(whole / row.ideal for whole, row in zip(operations, mine, strict=True))
            found.append(
                PaperMeasurement(protocol, variant, density, dense, time, 1 - time / dense, 1 - kept / sum(operations))
            )
    return found


def _dense_operations(tickets: Tickets, rows: Sequence[LayerMeasurement]) -> list[int]:
    return [
        operations(tickets.network.get_submodule(row.layers[0]), tuple(row.input_shape)) * len(row.layers)
        for row in rows
    ]
