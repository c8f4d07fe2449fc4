"""A network with its layers and channels, and the trial that proves what was understood of them.

Rules can be wrong, and a network's code can read numbers that no rule sees (`x.shape[1]`, a width in a configuration).
So what the graph says is tried: channels are dropped at random on a copy with other values, and the smaller network
must compute what the masked one does, in evaluation and in training. Groups for which it does not are kept whole, with
the reason.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lt_lightning.network_graph.compare import difference, first_difference, outputs, tolerance
from lt_lightning.network_graph.graph import ChannelGraph, ChannelGroup, Flags, NotedSize
from lt_lightning.network_graph.recording import alone, without_fast_path
from lt_lightning.network_graph.resizing import resize
from lt_lightning.pruning.examples import Example, call_network, copied, map_tensors, noisy, several
from lt_lightning.pruning.layers import Layer, find_layers, is_conv1d

_CHEAP = 10**8  # multiply-adds of a sample up to which a trial in float64, which is slow, takes no time that is felt
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # which have no code of the network's own
_ROUNDING = 1e-5  # of a network in float64 that has parts in float32; what a wrong head does may be 1e-4


@dataclass(frozen=True)
class TracedNetwork:
    """A network with its layers and channels, each found once, when it is first looked at.

    They stay what they are while values change in place and nothing else does, as in a search.

    Attributes:
        network: any module.
        example: an input batch of the true shape.
    """

    network: nn.Module
    example: Example

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every convolution and linear layer, by name; see `find_layers`."""
        return find_layers(self.network, self.example)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The channels of the network; those that could not be dropped in a trial are frozen.

        Raises:
            ValueError: if the network does not run on the example, or has no layers (see `find_layers`).
        """
        own = alone(self.network).eval()
        batch = several(own, map_tensors(self.example, Tensor.cpu))
        graph = ChannelGraph(own, batch)
        work = sum(layer.size * layer.positions for layer in self.layers.values())
        _Trial(own, batch, graph, precise=work <= _CHEAP).freeze_what_fails()
        return graph


class _Trial:
    """Drops channels of a network, to which it gives other values, and compares."""

    def __init__(self, network: nn.Module, batch: Example, graph: ChannelGraph, precise: bool) -> None:
        self.graph = graph
        self.network, self.example = shaken(network), noisy(batch)
        if precise:
            self.network, self.example = _precisely(self.network, self.example)
        self.modes = (False,) if graph.record.notes else (False, True)
        self._scaling: list[set[str]] = []  # names of numbers that had to change with other groups

    def freeze_what_fails(self) -> None:
        self._fitting([], [group for group in self.graph.groups if not group.frozen and group.channels > 1])

    def _fitting(self, before: Sequence[ChannelGroup], groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Return the groups that can be dropped from beside those before and one another; freeze the others."""
        why = self.failure([*before, *groups]) if groups else ""
        if not why:
            return [*groups]
        if len(groups) == 1:
            return self._fitted([*before, *groups], groups[0], why)
        half = len(groups) // 2
        fitting = self._fitting(before, groups[:half])
        return fitting + self._fitting([*before, *fitting], groups[half:])

    def _fitted(self, groups: Sequence[ChannelGroup], group: ChannelGroup, why: str) -> list[ChannelGroup]:
        """Find a way to drop channels of a group beside others; without one, freeze it and return nothing."""
        if self._scales(groups, group):
            return [group]
        self.graph.keep_wide(group)
        if not self.failure(groups):
            return [group]
        self.graph.keep_wide(group, False)
        self.graph.freeze(group, why)
        return []

    def _scales(self, groups: Sequence[ChannelGroup], group: ChannelGroup) -> bool:
        """Find the fewest numbers in modules with which channels of a group can be dropped; false if there are none."""
        sizes, before = self._sizes_of(group), self.graph.sizes

        def fits(names: set[str]) -> bool:
            self.graph.sizes = [*before, *(size for size in sizes if size.attribute in names)]
            return not self.failure(groups)

        numbers = {size.attribute: size.number_in(self.network) for size in sizes}
        every = set(numbers)
        counts = {name for name, number in numbers.items() if number == group.channels}
        choices = [
            *(names for names in self._scaling if names <= every),
            counts,
            every,
            *(every - {n} for n in numbers),
        ]
        found = next((names for names in choices if names and fits(names)), set[str]())
        if found and found not in self._scaling:
            for name in sorted(found, key=lambda name: -numbers[name]):
                found = found - {name} if len(found) > 1 and fits(found - {name}) else found
            self._scaling.append(found)
        self.graph.sizes = [*before, *(size for size in sizes if size.attribute in found)]
        return bool(found)

    def _sizes_of(self, group: ChannelGroup) -> list[NotedSize]:
        """Return the numbers in the modules around a group's writers that may change with its channels."""
        found: dict[tuple[str, str], NotedSize] = {}
        modules = dict(self.network.named_modules())
        for name in group.writers:
            part, rows = self.graph.rows[name], group.rows[name] >= 0
            around = name.rpartition(".")[0]
            while isinstance(modules.get(around), _CONTAINERS) and around:
                around = around.rpartition(".")[0]
            for module_name in (name, around):
                module = modules.get(module_name)
                for attribute, number in vars(module).items() if module is not None else ():
                    if type(number) is int and _may_scale(module, attribute, number, group.channels):
                        found[module_name, attribute] = NotedSize(module_name, attribute, part, rows)
        return list(found.values())

    def failure(self, groups: Sequence[ChannelGroup]) -> str:
        """Return why dropping channels of these groups fails; empty if it does not."""
        liveness = self.graph.propagate(self._some(groups))
        masked = copied(self.network)
        parameters = dict(masked.named_parameters())
        with torch.no_grad():
            for name, mask in liveness.masks(masked).items():
                parameters[name].mul_(mask.to(parameters[name].device))
        small = copied(masked)
        with without_fast_path():
            try:
                resize(small, self.graph, liveness)
                for training in self.modes:
                    expected = outputs(masked, self.example, training)
                    got = outputs(small, self.example, training)
                    if not any(bool(each.isfinite().any()) for each in expected):
                        return "its results at other values are no numbers, so that nothing can be tried"
                    if difference(got, expected) > max(tolerance(expected), _ROUNDING):
                        first = first_difference(masked, small, self.example, training)
                        mode = "training" if training else "evaluation"
                        return f"with fewer channels {first or 'it'} computes something else in {mode}"
            except Exception as error:  # whatever its code may have against another width
                return f"with fewer channels it does not run: {_told(error)}"
        return ""

    def _some(self, groups: Sequence[ChannelGroup]) -> dict[str, Flags]:
        """Return flags of the outputs of layers, of which some units are dropped."""
        kept: dict[str, Flags] = {}
        for index, group in enumerate(groups):
            units = _some_units(group.channels, index)
            for name in group.writers:
                rows = group.rows[name]
                flags = kept.setdefault(name, np.ones(len(rows), dtype=bool))
                flags[rows >= 0] = units[rows[rows >= 0]]
        return kept


def _some_units(count: int, seed: int) -> Flags:
    """Return flags of units that are kept, such that code that counts channels finds others than it should.

    The first is dropped, and those behind it are kept, so that every second, or third, is another one than before; and
    of the second half more are left than of the first.
    """
    units = np.random.default_rng([count, seed]).random(count) < np.linspace(0.25, 0.75, count)
    units[0] = False
    units[1:3] = True
    half = count // 2
    if units[half:].sum() <= units[:half].sum():
        units[half:] = True
    return units


def _may_scale(module: nn.Module | None, attribute: str, number: int, units: int) -> bool:
    """Whether a number may be one of heads or channels: a multiple of the units, and not the width of one of them."""
    if module is None or type(module).__module__.startswith("torch.nn.") or is_conv1d(module):
        return False  # whose numbers are known
    of_one_head = re.search(r"head_?(dim|size|width|channels)$|(dim|size|width|channels)_?(per_)?head$", attribute)
    return number >= units and number % units == 0 and (not of_one_head or attribute.startswith("all"))


def _precisely(network: nn.Module, given: Example) -> tuple[nn.Module, Example]:
    """Return a network and its batch in float64, if it runs in that."""
    double: Example = map_tensors(given, lambda each: each.double() if each.is_floating_point() else each)
    precise = copied(network).double()
    try:
        outputs(precise, double, training=False)
    except Exception:  # whatever a network may have against a type that it is not made for
        return network, given
    return precise, double


def shaken(network: nn.Module) -> nn.Module:
    """Give a network other values, so that nothing is zero, or too small to see, by chance."""
    generator = torch.Generator().manual_seed(0)

    def noise(shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator)

    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() > 1:
                spread = 2 * noise(parameter.shape) - 1
                parameter.copy_(spread * (3 / max(1, parameter[0].numel())) ** 0.5)
            else:
                parameter.copy_(0.5 + noise(parameter.shape))
        for module in network.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(noise(module.running_mean.shape) - 0.5)
                module.running_var.copy_(0.5 + noise(module.running_var.shape))
    return network


def _told(error: Exception) -> str:
    """Return an error in one line, with the last line of the user's code that it came through."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), call_network.__code__.co_filename)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{next(iter(str(error).splitlines()), type(error).__name__)}{place}"
