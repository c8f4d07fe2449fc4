"""How many channels each group keeps, and which layers keep blocks of what is left, within a budget.

What is maximised is the sum, over the prunable layers, of the logarithm of the share of its surviving magnitude that a
layer retains: what goes through a network goes through all of its layers. A multiplier prices the budget; for a price,
groups of channels choose their number one after the other, and every layer its form, until no choice changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np

from lt_lightning.network_graph.graph import Flags, Liveness
from lt_lightning.pruning.layers import Layer
from lt_lightning.structures.base import StructureInput, masked
from lt_lightning.structures.channel_choice import ChannelChoice, Floats, RankedGroup, outputs_first

SHARES: Floats = np.arange(1, 32) / 32
"""Shares of a layer's columns that its blocks may keep."""

_LEAST = 1e-9  # share retained by a layer that keeps nothing, whose logarithm is a number
_FIRST_PRICE, _RISE, _LAST_PRICE = 0.02, 1.2, 1e9  # of the whole network's cost
_HALVINGS = 6
_MOST_NUMBERS = 32
_MOST_PAIRED = 8
_STEPS = (1, 2, 3, 4, 5, 6, 8)


class LayerCosts(Protocol):
    """What layers cost, in any unit, for several alternatives at once."""

    def dense(self, layer: Layer, outputs: Floats, inputs: Floats) -> Floats:
        """Return the cost of a layer that computes so many of its outputs and inputs.

        Args:
            layer: the layer.
            outputs: numbers of outputs, (alternatives,).
            inputs: numbers of inputs, likewise.
        """

    def blocks(self, layer: Layer, outputs: Floats, inputs: Floats, group_size: int) -> Floats:
        """Return the cost of a layer in blocks that hold each of `SHARES` of what is left: (alternatives, shares)."""


@dataclass(frozen=True)
class LayerForm:
    """How a layer computes what is left of it.

    Attributes:
        group_size: least number of filters in a group; 0 for a layer that computes all of it.
        share: index into `SHARES` of the columns that its blocks keep.
    """

    group_size: int = 0
    share: int = 0


@dataclass(frozen=True)
class Solution:
    """What every group and layer keeps.

    Attributes:
        counts: number of channels that each group keeps.
        forms: form of every layer.
        cost: sum of the layers' costs.
        value: what is maximised.
    """

    counts: tuple[int, ...]
    forms: Mapping[str, LayerForm]
    cost: float
    value: float


class HybridChoice:
    """Chooses channels and blocks of a network within a budget.

    Args:
        channels: the network's groups of channels, ranked; None if none may be dropped.
        layers: its layers, by name.
        masses: surviving magnitude of each prunable layer by output and input, (outputs, inputs per group), by name.
        curves: share of its magnitude that a layer retains in blocks of each of `SHARES`, by group size, by name; only
            of layers that may be computed in blocks.
        costs: what layers cost.
    """

    def __init__(
        self,
        channels: ChannelChoice | None,
        layers: Mapping[str, Layer],
        masses: Mapping[str, Floats],
        curves: Mapping[str, Mapping[int, Floats]],
        costs: LayerCosts,
    ) -> None:
        self._channels = channels
        self._layers = layers
        self._masses = masses
        self._curves = curves
        self._costs = costs
        self._known: dict[tuple[str, bytes], _Values] = {}
        self._found: dict[tuple[tuple[int, ...], ...], dict[str, _Values]] = {}

    @cached_property
    def whole(self) -> Solution:
        """The dense network."""
        counts = () if self._channels is None else tuple(group.channels for group in self._channels.groups)
        return self._solution(counts, price=0.0)

    def liveness(self, solution: Solution) -> Liveness | None:
        """Return which channels a solution leaves; None if none may be dropped."""
        return None if self._channels is None else self._channels.liveness(np.array(solution.counts))

    def within(self, limit: float) -> Solution:
        """Return the best choice that is found at a cost of at most `limit`; the cheapest one where there is none.

        The price rises until the limit is met. Every choice begins with the one before, since a group that chose beside
        whole neighbours, which make it dear, would drop too much.
        """
        above = solution = self.whole
        price = low = _FIRST_PRICE / self.whole.cost
        while solution.cost > limit:
            above, low, price = solution, price, price * _RISE
            solution = self._for(price, above.counts)
            if price * self.whole.cost > _LAST_PRICE:
                return solution
        best, high = solution, price
        for _ in range(_HALVINGS if above is not solution else 0):
            price = (low + high) / 2
            solution = self._for(price, above.counts)
            if solution.cost > limit:
                low, above = price, solution
            else:
                high = price
                best = max(best, solution, key=lambda each: each.value)
        return self._improved(best, limit)

    def _for(self, price: float, counts: Sequence[int]) -> Solution:
        """Return the best choice at a price of the cost that is reached from given numbers of channels."""
        best = self._solution(counts, price)
        while self._channels is not None:
            counts = list(best.counts)
            for index, group in enumerate(self._channels.groups):
                alternatives = [[*counts[:index], count, *counts[index + 1 :]] for count in _allowed(group)]
                counts = alternatives[int(np.argmax(self._gains(alternatives, price)))]
            solution = self._solution(counts, price)
            if solution.value - price * solution.cost <= best.value - price * best.cost:
                break
            best = solution
        return best

    def _gains(self, alternatives: Sequence[Sequence[int]], price: float) -> Floats:
        """Return for each choice of channels what is gained, less the price of its cost, by the best forms."""
        values = self._values(alternatives)
        total: Floats = np.sum([each.best(price)[0] for each in values.values()], axis=0)
        return total

    def _solution(self, counts: Sequence[int], price: float) -> Solution:
        forms, cost, value = {}, 0.0, 0.0
        for name, values in self._values([counts]).items():
            _, (form,) = values.best(price)
            forms[name] = values.forms[form]
            cost += float(values.costs[0, form])
            value += float(values.values[0, form])
        return Solution(tuple(counts), forms, cost, value)

    def _improved(self, solution: Solution, limit: float) -> Solution:
        """Spend what is left of the limit where most is gained for it; in small networks also exchange channels."""
        while True:
            better = [each for each in self._more(solution) if each.cost <= limit and each.value > solution.value]
            if better:
                solution = max(better, key=lambda each: (each.value - solution.value) / (each.cost - solution.cost))
                continue
            better = [each for each in self._exchanged(solution) if each.cost <= limit]
            best = max(better, key=lambda each: each.value, default=solution)
            if best.value <= solution.value + _LEAST:
                return solution
            solution = best

    def _more(self, solution: Solution) -> list[Solution]:
        """Return choices that cost a little more: a group a step up, or a layer in a larger form."""
        found = []
        values = self._values([solution.counts])
        for name, form in solution.forms.items():
            of_layer = values[name]
            at = of_layer.forms.index(form)
            costs = of_layer.costs[0] - of_layer.costs[0, at]
            gains = of_layer.values[0] - of_layer.values[0, at]
            useful = np.flatnonzero((costs > 0) & (gains > 0))
            if len(useful):
                to = useful[np.argmin(costs[useful])]
                found.append(replace(
                    solution, forms={**solution.forms, name: of_layer.forms[to]},
                    cost=solution.cost + float(costs[to]), value=solution.value + float(gains[to]),
                ))  # fmt: skip
        up = [self._moved(solution.counts, index, 1) for index in range(len(solution.counts))]
        found += self._kept([counts for counts in up if counts != solution.counts], solution.forms)
        return [each for each in found if each.cost > solution.cost]

    def _exchanged(self, solution: Solution) -> list[Solution]:
        """Return choices with one group some steps down and another up, where groups are few."""
        count = len(solution.counts)
        if count > _MOST_PAIRED:
            return []
        moved = {
            self._moved(self._moved(solution.counts, down, -by), up, to)
            for down in range(count)
            for up in range(count)
            for by, to in product(_STEPS, _STEPS)
            if up != down
        }
        return self._kept(sorted(moved - {solution.counts}), solution.forms)

    def _moved(self, counts: tuple[int, ...], index: int, steps: int) -> tuple[int, ...]:
        assert self._channels is not None
        group = self._channels.groups[index]
        moved = group.rounded(max(1, counts[index] + steps * group.step))
        return (*counts[:index], moved, *counts[index + 1 :])

    def _kept(self, choices: Sequence[tuple[int, ...]], forms: Mapping[str, LayerForm]) -> list[Solution]:
        """Return choices of channels, all with the same forms."""
        if not choices:
            return []
        cost, value = np.zeros(len(choices)), np.zeros(len(choices))
        for name, values in self._values(choices).items():
            at = values.forms.index(forms[name])
            cost += values.costs[:, at]
            value += values.values[:, at]
        return [
            Solution(counts, forms, float(each), float(worth))
            for counts, each, worth in zip(choices, cost, value, strict=True)
        ]

    # The values and costs of every layer's forms

    def _values(self, choices: Sequence[Sequence[int]]) -> dict[str, _Values]:
        """Return values and costs of every layer's forms, for several choices of channels."""
        asked = tuple(map(tuple, choices))
        if asked not in self._found:
            self._found[asked] = self._follow(choices)
        return self._found[asked]

    def _follow(self, choices: Sequence[Sequence[int]]) -> dict[str, _Values]:
        liveness = None if self._channels is None else self._channels.liveness(np.array(choices))
        found = {}
        for name, layer in self._layers.items():
            outputs, inputs = _sides(layer, liveness, len(choices))
            key = name, np.packbits(outputs).tobytes() + b"/" + np.packbits(inputs).tobytes()
            if key not in self._known:
                self._known[key] = self._of_layer(layer, outputs, inputs)
            found[name] = self._known[key]
        return found

    def _of_layer(self, layer: Layer, outputs: Flags, inputs: Flags) -> _Values:
        forms = [LayerForm()]
        numbers = (outputs.sum(axis=1).astype(float), inputs.sum(axis=1).astype(float))
        costs = [self._costs.dense(layer, *numbers)[:, None]]
        retained = self._retained(layer, outputs, inputs)[:, None]
        kept = [retained]
        for size, curve in self._curves.get(layer.name, {}).items():
            forms += [LayerForm(size, share) for share in range(len(SHARES))]
            costs.append(self._costs.blocks(layer, *numbers, size))
            kept.append(retained * curve)
        values = np.log(np.maximum(np.concatenate(kept, axis=1), _LEAST))
        return _Values(tuple(forms), values, np.concatenate(costs, axis=1))

    def _retained(self, layer: Layer, outputs: Flags, inputs: Flags) -> Floats:
        """Return the share of a layer's surviving magnitude in the channels that are computed; 1 if it has none."""
        mass = self._masses.get(layer.name)
        if mass is None or not (total := mass.sum()):
            return np.ones(len(outputs))
        by_input = outputs.astype(float) @ mass
        retained: Floats = (by_input * inputs if layer.groups == 1 else by_input).sum(axis=1) / total
        return retained


@dataclass(frozen=True)
class _Values:
    """Values and costs of a layer's forms, each (alternatives, forms)."""

    forms: tuple[LayerForm, ...]
    values: Floats
    costs: Floats

    def best(self, price: float) -> tuple[Floats, list[int]]:
        """Return the gain of the best form of each alternative, less the price of its cost, and that form."""
        gains = self.values - price * self.costs
        best = gains.argmax(axis=1)
        return gains[np.arange(len(gains)), best], best.tolist()


def _allowed(group: RankedGroup) -> list[int]:
    """Return the numbers of channels among which a group chooses at a price: at most 32, evenly spread."""
    return sorted({group.rounded(count) for count in np.linspace(1, group.channels, _MOST_NUMBERS)})


def _sides(layer: Layer, liveness: Liveness | None, count: int) -> tuple[Flags, Flags]:
    """Return flags of the outputs and inputs that a layer computes, (alternatives, channels)."""
    inputs_at = 1 - layer.output_dim
    sides = []
    for flags, size in (
        (None if liveness is None else liveness.computed.get(layer.name), layer.shape[layer.output_dim]),
        (
            None if liveness is None or layer.groups > 1 else liveness.inputs.get(layer.name),
            layer.shape[inputs_at] * (layer.groups if layer.output_dim == 0 else 1),
        ),
    ):
        every = np.ones(size, dtype=bool) if flags is None else flags
        sides.append(np.broadcast_to(every, (count, every.shape[-1])))
    return sides[0], sides[1]


def masses_of(given: StructureInput) -> dict[str, Floats]:
    """Return the surviving magnitude of every prunable layer, by output and input: (outputs, inputs per group)."""
    found = {}
    for layer in given.prunable:
        weight, mask = given.weights[layer.weight].detach(), given.masks[layer.weight]
        magnitude = outputs_first(layer, masked(weight, mask).double().abs())
        found[layer.name] = magnitude.flatten(2).sum(2).numpy() if magnitude.dim() > 2 else magnitude.numpy()
    return found
