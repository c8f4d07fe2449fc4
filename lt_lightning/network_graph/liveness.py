"""Which channels of a network take part: zeros are followed forwards, and what nobody reads is followed backwards.

Channels are the last dimension of flags. Those before it, where there are any, are alternatives followed in one go.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from lt_lightning.network_graph.operations import Operation

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Alive:
    """What of a layer or normalisation may be other than zero.

    Attributes:
        scale: whether an output takes anything of its inputs, (outputs,).
        shift: whether an output may be other than zero where its inputs are zero, (outputs,).
        reads: which inputs an output takes, (outputs, inputs); None for all that it could take.
    """

    scale: Flags
    shift: Flags
    reads: Flags | None = None


@dataclass(frozen=True)
class Flow:
    """The way of channels through a network.

    Attributes:
        operations: all operations, in the order of execution.
        results: indices of the operations whose results are the network's.
        rigid: indices of the operations whose results are whole or not there.
    """

    operations: Sequence[Operation]
    results: Collection[int]
    rigid: Collection[int]

    def trace_channels(self, kept: Mapping[str, Flags]) -> tuple[list[Flags], list[Flags]]:
        """Return for every operation the channels of its result that may be other than zero, and those also needed.

        Args:
            kept: flag of every output channel, (..., outputs), by layer name; a layer that is not named keeps all.
        """
        alive = {operation.name: _promised(operation, kept.get(operation.name)) for operation in self.operations}
        live = self._forward(alive)
        return live, self._present(live, self._backward(alive, live, {}))

    def find_channels(self, alive: Mapping[str, Alive], nonzero: Sequence[Flags] | None = None) -> list[Flags]:
        """Return for every operation the channels of its result that a network must compute, by its parameters.

        Args:
            alive: what may be other than zero, by name of layer or normalisation.
            nonzero: for inference at given values: for every operation the channels that are other than zero for some
                input; then what no input changes, and is zero there, is dead, too.
        """
        live = self._forward(alive) if nonzero is None else self._forward_at(alive, nonzero)
        spared: dict[int, int] = {}
        while True:
            present = self._present(live, self._backward(alive, live, spared), spared)
            starved = self._starved(present)
            if starved is None:
                return present
            source, channel = starved
            spared[source] = channel

    def _starved(self, present: list[Flags]) -> tuple[int, int] | None:
        """Find an operation with no channel left though its result is needed for its shape, and a channel to spare."""
        for index in self.results:
            if not present[index].any():
                return index, 0
        for index, operation in enumerate(self.operations):
            empty = [source for source in operation.inputs if len(present[source]) and not present[source].any()]
            sums = operation.kind in ("add", "cat")  # of which one input is enough
            if present[index].any() and empty and not (sums and len(empty) < len(operation.inputs)):
                return empty[0], self._channel_behind(operation, int(np.argmax(present[index])))
        return None

    def _channel_behind(self, operation: Operation, channel: int) -> int:
        """Return the channel of the first input that a channel of the result is made from; any where there is none."""
        if operation.kind in ("flatten", "depthwise"):
            return channel // operation.repeat
        aligned = operation.kind in ("norm", "each", "lift", "add", "product")
        return channel if aligned else 0

    def _present(self, live: list[Flags], needed: list[Flags], spared: Mapping[int, int] | None = None) -> list[Flags]:
        """Return the channels that are computed: live and needed, rounded up to what can be left out."""
        present = [flags & wanted for flags, wanted in zip(live, needed, strict=True)]
        for index, channel in (spared or {}).items():
            present[index][..., channel] = True
        for index, operation in enumerate(self.operations):
            if index in self.rigid:
                present[index] = _whole(present[index], operation.channels)
            elif operation.kind in ("grouped", "depthwise", "flatten"):
                present[index] = np.repeat(fold(present[index], operation.repeat), operation.repeat, axis=-1)
        return present

    def _forward(self, alive: Mapping[str, Alive]) -> list[Flags]:
        """Return the channels that may be other than zero."""
        live: list[Flags] = []
        for operation in self.operations:
            live.append(
                _live_outputs(operation, [live[index] for index in operation.inputs], alive.get(operation.name))
            )
        return live

    def _forward_at(self, alive: Mapping[str, Alive], nonzero: Sequence[Flags]) -> list[Flags]:
        """Return the channels that depend on the input, or are other than zero."""
        still = {name: replace(of, shift=np.zeros_like(of.shift)) for name, of in alive.items()}
        vary: list[Flags] = []
        live: list[Flags] = []
        for index, operation in enumerate(self.operations):
            given = [vary[source] for source in operation.inputs]
            match operation.kind:
                case "lift":
                    varies = given[0]
                case "product":
                    both = reduce(operator.and_, (live[source] for source in operation.inputs))
                    varies = reduce(operator.or_, given) & both
                case _:
                    varies = _live_outputs(operation, given, still.get(operation.name))
            vary.append(varies)
            live.append(varies | nonzero[index])
        return live

    def _backward(self, alive: Mapping[str, Alive], live: list[Flags], spared: Mapping[int, int]) -> list[Flags]:
        """Return the channels that the network's results are made from."""
        needed = [np.zeros(operation.channels, dtype=bool) for operation in self.operations]
        for index in self.results:
            needed[index][:] = True
        for index, channel in spared.items():
            needed[index][channel] = True
        for index in reversed(range(len(self.operations))):
            operation = self.operations[index]
            wanted = needed[index] & live[index]
            sizes = [self.operations[source].channels for source in operation.inputs]
            for source, flags in zip(
                operation.inputs, _read_inputs(operation, wanted, sizes, alive.get(operation.name)), strict=True
            ):
                needed[source] = needed[source] | flags
        return needed


def _promised(operation: Operation, kept: Flags | None) -> Alive:
    """Return what may be other than zero once channels are dropped, with a normalisation's shift where its input is."""
    keep = np.ones(operation.channels, dtype=bool) if kept is None else kept
    shifts = operation.kind in ("dense", "grouped") and operation.has_bias
    return Alive(keep, keep if shifts else np.zeros_like(keep))


def _live_outputs(operation: Operation, given: list[Flags], alive: Alive | None) -> Flags:
    """Return which channels of the result may be other than zero."""
    match operation.kind:
        case "dense" | "grouped":
            assert alive is not None
            taken = _any(given[0]) if alive.reads is None else (alive.reads & given[0]).any(axis=1)
            return alive.shift | (alive.scale & taken)
        case "depthwise":
            assert alive is not None
            return alive.shift | (alive.scale & np.repeat(given[0], operation.repeat, axis=-1))
        case "norm":
            assert alive is not None
            return alive.shift | (alive.scale & given[0])
        case "each":
            return given[0]
        case "flatten":
            return np.repeat(given[0], operation.repeat, axis=-1)
        case "cat":
            several = np.broadcast_shapes(*(flags.shape[:-1] for flags in given))
            return np.concatenate([np.broadcast_to(flags, (*several, flags.shape[-1])) for flags in given], axis=-1)
        case "add":
            return reduce(operator.or_, given)
        case "product":
            return reduce(operator.and_, given)
        case _:
            return np.ones(operation.channels, dtype=bool)


def _read_inputs(operation: Operation, wanted: Flags, sizes: list[int], alive: Alive | None) -> list[Flags]:
    """Return which channels of each input, of these sizes, are read, given those of the result that are."""
    match operation.kind:
        case "dense" | "grouped":
            assert alive is not None
            wanted = wanted & alive.scale
            if alive.reads is None:
                return [_whole(wanted, sizes[0])]
            return [np.asarray(alive.reads[wanted].any(axis=0))]
        case "depthwise":
            assert alive is not None
            return [fold(wanted & alive.scale, operation.repeat)]
        case "norm":
            assert alive is not None
            return [wanted & alive.scale]
        case "flatten":
            return [fold(wanted, operation.repeat)]
        case "each" | "lift" | "add" | "product":
            return [wanted for _ in operation.inputs]
        case "cat":
            return list(np.split(wanted, np.cumsum(sizes)[:-1], axis=-1))
        case _:  # of several tensors nothing is known
            return [np.ones(size, dtype=bool) if operation.channels == 0 else _whole(wanted, size) for size in sizes]


def fold(flags: Flags, repeat: int) -> Flags:
    """Return for every `repeat` flags whether one of them is set."""
    return np.asarray(flags.reshape(*flags.shape[:-1], -1, repeat).any(axis=-1))


def _any(flags: Flags) -> Flags:
    """Return whether a flag is set, (..., 1)."""
    return np.asarray(flags.any(axis=-1, keepdims=True))


def _whole(flags: Flags, channels: int) -> Flags:
    """Return flags of so many channels, all set if one of the given is."""
    return np.repeat(_any(flags), channels, axis=-1)
