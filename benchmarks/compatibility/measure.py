"""What refill and regroup do to one network: how much they can drop, what is left, and how exactly it computes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.compatibility.networks import Case
from lt_lightning.execution.cost import flops, parameters
from lt_lightning.execution.execute import execute
from lt_lightning.network_graph.compare import difference, outputs
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.labels import Part
from lt_lightning.network_graph.recording import without_fast_path
from lt_lightning.network_graph.traced import TracedNetwork, shaken
from lt_lightning.pruning.examples import Example, copied, map_tensors, noisy, several
from lt_lightning.pruning.layers import Layer, full_masks, prunable_layers
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import Structure, StructureInput
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup

DENSITIES = (0.5, 0.25)
EXACT = 1e-9
"""The largest relative difference in float64 that rounding explains."""


@dataclass(frozen=True)
class Left:
    """What is left of a network.

    Attributes:
        parameters: share of the parameters.
        flops: share of the floating-point operations.
        evaluation: largest relative difference of the smaller and the masked network's results in evaluation mode.
        training: the same in training mode; None where it does not run in it.
    """

    parameters: float
    flops: float
    evaluation: float
    training: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was found out about a network.

    Attributes:
        parameters: number of parameters of the whole network.
        droppable: share of the prunable weights that may be dropped with an output or an input.
        left: what is left at each density.
        regroup: largest relative difference of the regrouped and the masked network; None if nothing was regrouped.
        seconds: time in which the network was understood.
        problem: why there is nothing to see; empty if there is.
        kept: why channels are kept, with the share of the prunable weights that have such an output.
    """

    parameters: int = 0
    droppable: float = 0.0
    left: Mapping[str, Left] = field(default_factory=dict)
    regroup: float | None = None
    seconds: float = 0.0
    problem: str = ""
    kept: Mapping[str, float] = field(default_factory=dict)


def prepared(case: Case) -> tuple[nn.Module, Example]:
    """Return the network of a case in float64, with values of which none is zero, and its example."""
    torch.manual_seed(0)
    network = shaken(case.make()).double().eval()
    example: Example = map_tensors(case.example, lambda each: each.double() if each.is_floating_point() else each)
    return network, example


def measure(case: Case, densities: Sequence[float] = DENSITIES) -> Measured:
    """Prune a network, and compare."""
    network, example = prepared(case)
    began = time.perf_counter()
    traced = TracedNetwork(network, example)
    try:
        graph = traced.graph
    except ValueError as error:
        return Measured(parameters(network), problem=str(error))
    seconds = time.perf_counter() - began
    layers = prunable_layers(traced.layers, ("classifier", *case.heads))
    droppable = droppable_share(layers, graph)
    kept = _reasons(layers, graph)
    try:
        left = {f"{density:g}": _left(traced, layers, density, Refill(round_to=1)) for density in densities}
    except ValueError as error:
        return Measured(parameters(network), droppable, seconds=seconds, problem=str(error), kept=kept)
    regroup = Regroup(group_size=8, clustering="random")
    regrouped = _left(traced, layers, densities[0], regroup)
    return Measured(parameters(network), droppable, left, regrouped.evaluation, seconds, kept=kept)


def droppable_share(layers: Sequence[Layer], graph: ChannelGraph) -> float:
    """Return the share of the layers' weights that have an output or an input that may be dropped."""
    weights = sum(layer.size * _share_of(*_sides(layer, graph)) for layer in layers)
    return weights / sum(layer.size for layer in layers)


def _sides(layer: Layer, graph: ChannelGraph) -> tuple[float, float]:
    return _free(graph, graph.rows.get(layer.name)), _free(graph, graph.reads.get(layer.name))


def _share_of(outputs: float, inputs: float) -> float:
    """Return the share of a matrix that is in one of these shares of its rows, or of its columns."""
    return 1 - (1 - outputs) * (1 - inputs)


def _free(graph: ChannelGraph, part: Part | None) -> float:
    """Return the share of a part's indices that may be dropped."""
    if part is None:
        return 0.0
    single = {unit for group in graph.groups if group.channels == 1 for unit in graph.units_of(group)}
    wide = graph.wide if graph.is_by_function(part) else ()
    return float(np.mean(~np.isin(graph.unit_of(part), [*graph.frozen, *single, *wide])))


def _reasons(layers: Sequence[Layer], graph: ChannelGraph) -> dict[str, float]:
    """Return why outputs of layers are kept, with the share of the weights that have such outputs."""
    total = sum(layer.size for layer in layers)
    sizes = {layer.name: layer.size for layer in layers}
    found: dict[str, float] = {}
    for group in graph.groups:
        for name in group.writers if group.frozen else ():
            share = float(np.mean(group.rows[name] >= 0)) * sizes.get(name, 0) / total
            if share > 0:
                found[group.frozen] = found.get(group.frozen, 0.0) + share
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _left(traced: TracedNetwork, layers: Sequence[Layer], density: float, structure: Structure) -> Left:
    network, example = traced.network, traced.example
    weights = {name: value.detach() for name, value in network.state_dict().items()}
    scores = {layer.weight: weights[layer.weight].abs() for layer in layers}
    masks = prune(full_masks(layers), scores, density, "layer")
    result = structure(StructureInput(traced, masks, weights))
    masked = with_masks(network, result.masks)
    executed = execute(masked, result.plan, result.masks, example)
    return compare(masked, masked if executed is None else executed.network, network, example)


def with_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network whose parameters are zero where masks say so."""
    masked = copied(network)
    parameters = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
    return masked


def compare(masked: nn.Module, small: nn.Module, whole: nn.Module, example: Example) -> Left:
    """Compare a smaller network with the masked one, which it should compute the same as, and with the whole one."""
    given = noisy(several(masked.eval(), example))
    differences = []
    for training in (False, True):
        try:
            expected = outputs(masked, given, training)
        except Exception:  # a network that only infers
            continue
        try:
            differences.append(difference(outputs(small, given, training), expected))
        except RuntimeError:  # a network that a peer has cut for one mode alone
            differences.append(float("inf"))
    with without_fast_path():
        operations = flops(small.eval(), example) / flops(whole.eval(), example)
    return Left(parameters(small) / parameters(whole), operations, *differences)
