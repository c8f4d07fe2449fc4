"""What a ticket executes and stores, against the dense network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lt_lightning.pruning.masks import Masks, count_kept
from lt_lightning.structures.base import LayerReport


@dataclass(frozen=True)
class Ratios:
    """Of a ticket to the dense network.

    Attributes:
        density_asked: share of the prunable weights that the round's unstructured mask keeps.
        density: share of the prunable weights that the ticket executes; for an unstructured ticket, which cannot be
            executed sparsely, the share that it keeps.
        params_ratio: parameters to store, over all of the network's.
        flops_ratio: multiply-adds of convolutions and linear layers executed, over the dense network's; 1 for an
            unstructured ticket.
    """

    density_asked: float
    density: float
    params_ratio: float
    flops_ratio: float


def ratios(
    layers: Mapping[str, LayerReport], prunable: Collection[str], masks: Masks, parameters: Mapping[str, int]
) -> Ratios:
    """Adds up the layers.

    Args:
        layers: a report per layer.
        prunable: names of the layers that are pruned.
        masks: of the ticket, by parameter name; those of other parameters than layer weights count as stored.
        parameters: number of elements of every parameter of the network, by name.
    """
    pruned = [layers[name] for name in prunable]
    size = sum(report.size for report in pruned)
    stored = dict(parameters)
    stored |= {name: count_kept(mask) for name, mask in masks.items()}
    for name, report in layers.items():
        stored[f"{name}.weight" if name else "weight"] = round(report.density * report.size)
    return Ratios(
        sum(report.asked for report in pruned) / size,
        sum(report.density * report.size for report in pruned) / size,
        sum(stored.values()) / sum(parameters.values()),
        sum(report.executed * report.positions for report in layers.values())
        / sum(report.size * report.positions for report in layers.values()),
    )
