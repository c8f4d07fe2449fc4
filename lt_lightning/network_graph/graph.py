"""The channels of a network: who writes them, who reads them, which go together, and what is left if some are dropped.

`recording` runs the network and pairs channels that meet. Channels that are paired, however far, are one *unit*: a
channel of a convolution with its bias and normalisation, a channel of a residual stream with all that write it, an
attention head. Units of the same writers are a *group*, from which a structure chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from lt_lightning.network_graph.labels import Part, Record
from lt_lightning.network_graph.recording import record_network
from lt_lightning.pruning.examples import Example

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels from which a structure chooses; those of one unit are kept or dropped together.

    Attributes:
        channels: number of units; mostly a unit is a channel, but a head of an attention is one, too.
        rows: unit of every output of each writer and follower, by name; -1 for an output of another group.
        writers: layers whose outputs the channels are; those of a residual stream are several.
        followers: convolutions in groups, such as depthwise ones, on these channels.
        joined: whether an addition unites several tensors in the group (a residual stream).
        frozen: why no channel of the group may be dropped; empty if channels may.
    """

    channels: int
    rows: Mapping[str, Numbers]
    writers: tuple[str, ...]
    followers: tuple[str, ...]
    joined: bool
    frozen: str


@dataclass(frozen=True)
class NotedSize:
    """A number that a module's own code reads, and that is proportional to a group's number of units.

    Attributes:
        module: name of the module.
        attribute: name of its attribute.
        part: outputs of a writer of the group.
        rows: whether each of them is the group's.
    """

    module: str
    attribute: str
    part: Part
    rows: Flags

    def number_in(self, network: nn.Module) -> int:
        """Return the number that a network has."""
        number = getattr(network.get_submodule(self.module), self.attribute)
        assert isinstance(number, int)
        return number

    def scaled(self, number: int, liveness: Liveness) -> int:
        """Return the number in the smaller network."""
        return number * int(liveness.wide[self.part][self.rows].sum()) // int(self.rows.sum())


@dataclass(frozen=True)
class Liveness:
    """Which channels take part in the computation.

    Attributes:
        kept: flag of every index, (..., size), of a part that is not dropped: what masks keep.
        wide: flag of every index, (..., size), of a part that the tensor there has in the smaller network: a layer may
            write some of a stream's channels only, and what could not be made narrow stays wide, with zeros.
        outputs: flag of every output that is not dropped, by name of layer or normalisation.
        inputs: flag of every input that is read, by name of layer.
        computed: flag of every output that the smaller network computes, by name of layer: where a function uses the
            weight, and tensors stay wide, outputs that are dropped are zero, but are computed.
    """

    kept: Mapping[Part, Flags]
    wide: Mapping[Part, Flags]
    outputs: Mapping[str, Flags]
    inputs: Mapping[str, Flags]
    computed: Mapping[str, Flags]

    def masks(self, network: nn.Module) -> dict[str, Tensor]:
        """Return masks, on the CPU, of the parameters of the full network that lose something, by name."""
        parameters = dict(network.named_parameters())
        masks: dict[str, Tensor] = {}
        for part, kept in self.kept.items():
            if part.parameter in parameters and not kept.all():
                shape = parameters[part.parameter].shape
                flags = torch.from_numpy(kept).view([-1 if dim == part.dim else 1 for dim in range(len(shape))])
                masks[part.parameter] = masks.get(part.parameter, torch.ones(shape, dtype=torch.bool)) & flags
        return masks


def module_of(parameter: str) -> str:
    """Return the name of what a weight belongs to.

    >>> [module_of(name) for name in ("conv.weight", "weight", "attention.in_proj_weight", "scale")]
    ['conv', '', 'attention.in_proj', 'scale']
    """
    return parameter.removesuffix("weight").rstrip("._") if parameter.endswith("weight") else parameter


class ChannelGraph:
    """The channels of a network.

    Attributes:
        record: what running the network has shown.
        groups: all groups of channels, in the order of their first writers.
        rows: outputs of every layer, by name.
        reads: inputs of every layer, by name.
        followers: names of layers whose outputs follow their inputs.
        wide: units whose channels are dropped where layers write and read them, while the tensors between stay wide.
        sizes: numbers in modules that change with a group's channels.
        norms: scale and shift of every normalisation, by its name.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> graph = ChannelGraph(net, torch.zeros(1, 1, 8, 8))
    >>> [(group.writers, group.frozen) for group in graph.groups]
    [(('0',), ''), (('3',), 'output of the network')]
    """

    def __init__(self, network: nn.Module, example: Example) -> None:
        """Run the network and analyse it.

        Args:
            network: any module; its state is left as it was.
            example: an input batch of the true shape.

        Raises:
            ValueError: if the network does not run.
        """
        self.record: Record = record_network(network, example)
        roles = self.record.roles
        self.rows = {module_of(part.parameter): part for part, of in roles.items() if "row" in of}
        self.reads = {module_of(part.parameter): part for part, of in roles.items() if "read" in of}
        self.followers = {module_of(name) for name in self.record.grouped_inputs}
        pairs, joins = self._sort_joins()
        self._branches = _classes(self.record.size, pairs)
        self.units = _classes(self.record.size, [*pairs, *joins])
        self._joined = {unit for each in joins for unit in self.units[each[0].numpy()].tolist()}
        self.wide: set[int] = set()
        self.sizes: list[NotedSize] = []
        self.frozen: dict[int, str] = {}
        for ids, why in self.record.frozen:
            for unit in np.unique(self.units[ids.numpy()]).tolist():
                self.frozen.setdefault(unit, why)

    def _sort_joins(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return pairs of channels, and those of them that make a stream: sums of what different layers write."""
        pairs, joins = [*self.record.pairs], list[Tensor]()
        branches = _classes(self.record.size, pairs)
        writers: dict[int, set[str]] = {}
        for name, part in self.rows.items():
            for branch in np.unique(branches[part.first : part.first + part.size]).tolist():
                writers.setdefault(branch, set()).add(name)

        def written_by(ids: Tensor) -> set[str]:
            return set().union(*(writers.get(branch, set()) for branch in np.unique(branches[ids.numpy()]).tolist()))

        for fresh, first, second in self.record.sums:
            by_first, by_second = written_by(first), written_by(second)
            both = [torch.unique(torch.stack([fresh, each]), dim=1) for each in (first, second)]
            (pairs if by_first and by_first == by_second else joins).extend(both)
        return pairs, joins

    # Groups

    @property
    def kept_whole(self) -> list[str]:
        """Why groups of channels are kept whole, but for those that the network returns; each reason once."""
        reasons = dict.fromkeys(group.frozen for group in self.groups)
        return [why for why in reasons if why not in ("", "output of the network")]

    def freeze(self, group: ChannelGroup, why: str) -> None:
        """Keep all channels of a group."""
        self.frozen |= dict.fromkeys(self.units_of(group), why)
        for known in ("groups", "_is_frozen"):
            vars(self).pop(known, None)

    def keep_wide(self, group: ChannelGroup, yes: bool = True) -> None:
        """Let the tensors between a group's writers and readers be as wide as they are, with zeros."""
        units = self.units_of(group)
        self.wide = self.wide | units if yes else self.wide - units
        vars(self).pop("_is_wide", None)

    def units_of(self, group: ChannelGroup) -> set[int]:
        """Return the units of a group."""
        return {
            unit
            for name, units in group.rows.items()
            for unit in np.unique(self.unit_of(self.rows[name])[units >= 0]).tolist()
        }

    def unit_of(self, part: Part) -> Numbers:
        """Return the unit of every index of a part, (size,)."""
        return self.units[part.first : part.first + part.size]

    def branch_of(self, part: Part) -> Numbers:
        """Return the unit of every index of a part where additions unite nothing, (size,)."""
        return self._branches[part.first : part.first + part.size]

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """All groups of channels, in the order of their first writers."""
        writers: dict[int, dict[str, None]] = {}
        for name, part in self.rows.items():
            for unit in np.unique(self.unit_of(part)).tolist():
                writers.setdefault(unit, {})[name] = None
        kinds: dict[tuple[tuple[str, ...], bool, str], list[int]] = {}
        for unit, names in writers.items():
            kinds.setdefault((tuple(names), unit in self._joined, self.frozen.get(unit, "")), []).append(unit)
        order = {name: index for index, name in enumerate(self.rows)}
        groups = [self._group(*kind, units) for kind, units in kinds.items()]
        return sorted((g for g in groups if g.writers), key=lambda group: order[group.writers[0]])

    def _group(self, names: tuple[str, ...], joined: bool, frozen: str, units: list[int]) -> ChannelGroup:
        rows = {}
        known = np.array(sorted(units))
        for name in names:
            of_rows = self.unit_of(self.rows[name])
            places = np.searchsorted(known, of_rows).clip(max=len(known) - 1)
            rows[name] = np.where(known[places] == of_rows, places, -1)
        writers = tuple(name for name in names if name not in self.followers)
        followers = tuple(name for name in names if name in self.followers)
        return ChannelGroup(len(units), rows, writers, followers, joined, frozen)

    # What is left

    def propagate(self, kept: Mapping[str, Flags]) -> Liveness:
        """Find what is left of every parameter where outputs of layers are dropped.

        Args:
            kept: flag of every output, (..., outputs), by layer name; a layer that is not named keeps all. Of several
                alternatives, which are the first dimensions, each is followed for itself.

        Returns:
            what is left. An output is dropped with its bias and its normalisation; a channel of a stream is there if
            one of those who write it keeps it, and the followers and readers of a channel lose what it loses.
        """
        several = np.broadcast_shapes(*(flags.shape[:-1] for flags in kept.values()))
        branches = np.zeros((*several, len(self._numbers)), dtype=bool)
        written = np.zeros(len(self._numbers), dtype=bool)
        for name, part in self.rows.items():
            if name in self.followers:
                continue
            classes = self._compact[part]
            flags = kept.get(name, np.ones(part.size, dtype=bool)) | self._is_frozen[classes]
            _add_any(branches, classes, np.broadcast_to(flags, (*several, part.size)))
            written[classes] = True
        units = np.zeros((*several, self._unit_count), dtype=bool)
        _add_any(units, self._unit_of_branch[written], branches[..., written])
        unwritten = np.ones(self._unit_count, dtype=bool)
        unwritten[self._unit_of_branch[written]] = False
        units |= unwritten
        there = units[..., self._unit_of_branch]
        branches = np.where(written, branches, there)
        return self._liveness(kept, branches, there)

    def _liveness(self, given: Mapping[str, Flags], branches: Flags, there: Flags) -> Liveness:
        wide = {part: (there | self._is_wide)[..., classes] for part, classes in self._compact.items()}
        kept = {part: branches[..., classes] for part, classes in self._compact.items()}
        for part in self.reads.values():
            kept[part] = wide[part] if self.is_by_function(part) else there[..., self._compact[part]]
        for name, part in self.rows.items():
            if name in given:
                kept[part] = kept[part] & (given[name] | self._is_frozen[self._compact[part]])
                bias = self.bias_of(part)
                if bias in kept:  # which goes with its own output, whatever else is kept of the channel
                    kept[bias] = kept[part]
        inputs = {name: kept[part] for name, part in self.reads.items()}
        for weight, count in self.record.grouped_inputs.items():
            outputs = kept[self.rows[module_of(weight)]]
            groups = outputs.reshape(*outputs.shape[:-1], self.record.grouped[weight], -1).any(axis=-1)
            inputs[module_of(weight)] = np.repeat(groups, count, axis=-1)
        written = {name: kept[part] for name, part in (*self.norms.items(), *self.rows.items())}
        computed = {name: (wide if self.is_by_function(part) else kept)[part] for name, part in self.rows.items()}
        return Liveness(kept, wide, written, inputs, computed)

    def is_by_function(self, part: Part) -> bool:
        """Whether a function uses a weight, which writes and reads tensors as wide as they are."""
        return part.parameter in self.record.by_functions

    def bias_of(self, rows: Part) -> Part | None:
        """Return the bias of a layer's outputs; None if it has none."""
        return self.record.parts.get((rows.parameter.removesuffix("weight") + "bias", 0))

    @cached_property
    def norms(self) -> dict[str, Part]:
        """Scale of every normalisation of channels that layers write or read, by its name."""
        return {
            module_of(part.parameter): part
            for part in self.parts
            if "norm" in self.record.roles.get(part, ()) and part.parameter.endswith("weight")
        }

    @cached_property
    def parts(self) -> list[Part]:
        """The dimensions of parameters and buffers whose indices are channels that layers write or read."""
        ends = [self.unit_of(part) for part in (*self.rows.values(), *self.reads.values())]
        units = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *ends]))
        return [part for part in self.record.parts.values() if np.isin(self.unit_of(part), units).any()]

    @cached_property
    def _numbers(self) -> Numbers:
        """All branches that a part belongs to."""
        branches = [self.branch_of(part) for part in self.parts]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *branches]))

    @cached_property
    def _compact(self) -> dict[Part, Numbers]:
        """Position of every index's branch among all, by part."""
        return {part: np.searchsorted(self._numbers, self.branch_of(part)) for part in self.parts}

    @cached_property
    def _unit_of_branch(self) -> Numbers:
        """Number of the unit of every branch."""
        first = np.zeros(len(self._numbers), dtype=np.int64)
        for part, classes in self._compact.items():
            first[classes] = self.unit_of(part)
        return np.unique(first, return_inverse=True)[1]

    @cached_property
    def _unit_count(self) -> int:
        return int(self._unit_of_branch.max(initial=-1)) + 1

    @cached_property
    def _is_frozen(self) -> Flags:
        """Whether a branch must be kept."""
        return self._belongs_to(self.frozen)

    @cached_property
    def _is_wide(self) -> Flags:
        """Whether the tensors of a branch stay as wide as they are."""
        return self._belongs_to(self.wide)

    def _belongs_to(self, units: Collection[int]) -> Flags:
        flags = np.zeros(len(self._numbers), dtype=bool)
        for part, classes in self._compact.items():
            flags[classes] = np.isin(self.unit_of(part), list(units))
        return flags


def _classes(size: int, pairs: Sequence[Tensor]) -> Numbers:
    """Return for each id the number of the set of paired ids that it is in."""
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *(each.numpy() for each in pairs)], axis=1)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    numbers: Numbers = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def _add_any(total: Flags, index: Numbers, flags: Flags) -> None:
    """Set the flags of `total`, (..., n), at those indices where one of the flags, (..., len(index)), is set."""
    if not len(index):
        return
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    total[..., index[order][starts]] |= np.logical_or.reduceat(flags[..., order], starts, axis=-1)
