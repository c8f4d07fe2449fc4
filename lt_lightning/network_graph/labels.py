"""Labels: which channel every element of a tensor belongs to, and what has happened to channels in a run.

Every dimension of every parameter gets ids of its own, one for each index: its *channels*. A layer's result has the
channels of its weight's outputs. From there on each tensor carries *labels*: for every element the id of its channel.
What only moves elements (a view, a transposition, a concatenation) is applied to the labels themselves, so that heads,
flattened channels, splits and shuffles need no rules of their own. Where channels meet (a layer reads them, a sum adds
them) their ids are paired: paired channels are kept or dropped together.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor, nn

from lt_lightning.pruning.examples import call_network

Role = Literal[
    "row",  # an output of a convolution or matrix product
    "read",  # an input of one
    "scale",  # multiplies a channel
    "shift",  # is added to a channel
    "norm",  # a normalisation's scale, shift, mean or variance
]

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_RUN = call_network.__code__.co_filename


@dataclass(frozen=True, eq=False)
class ChannelLabels:
    """The channel of every element of a tensor.

    Attributes:
        ids: ids of channels, as many dimensions as the tensor has; of size 1 where all elements are of one channel.
        lifted: what made the elements of a channel that is dropped other than zero; empty if they are zero.
    """

    ids: Tensor
    lifted: str = ""

    @property
    def zero(self) -> bool:
        """Whether elements of a channel that is dropped are zero."""
        return not self.lifted

    @property
    def dims(self) -> set[int]:
        """The dimensions along which channels differ."""
        return {dim for dim, size in enumerate(self.ids.shape) if size > 1}

    def over(self, rank: int) -> ChannelLabels:
        """Return the labels of a tensor of more dimensions, the new ones in front, as broadcasting adds them."""
        return replace(self, ids=self.ids.reshape((1,) * (rank - self.ids.dim()) + tuple(self.ids.shape)))


@dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        labels: labels, several where channels of several kinds cross, along dimensions of their own.
        weight: whether it is computed from parameters and buffers alone.
        name: name of the parameter or buffer, if it is one or a view with all of its elements.
        fresh: labels of a tensor of one value, whose size the code wrote as numbers: dimensions that may follow the
            channels that they meet, if the numbers do. What is computed from such tensors alone has them, too.
    """

    labels: tuple[ChannelLabels, ...] = ()
    weight: bool = False
    name: str = ""
    fresh: tuple[ChannelLabels, ...] = ()

    def acts_on(self, other: Value) -> bool:
        """Whether it is the weight where it meets another value, which may be computed from weights itself."""
        is_parameter, is_other = bool(self.name and self.labels), bool(other.name and other.labels)
        return self.weight and (not other.weight or (is_parameter and not is_other))


@dataclass(frozen=True)
class Part:
    """One dimension of a parameter or buffer, whose indices are channels.

    Attributes:
        parameter: name of the parameter or buffer.
        dim: the dimension.
        first: id of its first index; the others follow.
        size: number of indices.
    """

    parameter: str
    dim: int
    first: int
    size: int

    @property
    def ids(self) -> Tensor:
        """The ids of its indices, (size,)."""
        return torch.arange(self.first, self.first + self.size)


@dataclass
class Record:
    """What running a network has shown.

    Attributes:
        parts: every dimension of every parameter and buffer, by name and dimension.
        roles: what the indices of a part do, in the order of the run.
        pairs: ids that are kept or dropped together.
        sums: ids of the result, of the first and of the second summand, each (n,), where two results are added.
        frozen: ids that must be kept, with the reason.
        summed: ids of channels that are added up, so that no layer reads them.
        normalised: names of the parameters and statistics of each normalisation, scale first, with the ids of the
            channels that it is given.
        counted: weights of normalisations whose statistics run over channels, with the number of all channels.
        grouped: weights of convolutions and normalisations in groups, with the number of groups.
        grouped_inputs: number of inputs of each group of a convolution, by its weight.
        by_functions: weights that functions use, rather than the layers that they are of.
        unknown: operations that no rule knows, with the line that calls them.
        notes: what else could not be seen, one sentence each.
        size: number of ids in use.
    """

    parts: dict[tuple[str, int], Part] = field(default_factory=dict)
    roles: dict[Part, list[Role]] = field(default_factory=dict)
    pairs: list[Tensor] = field(default_factory=list)
    sums: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    summed: list[Tensor] = field(default_factory=list)
    normalised: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    grouped: dict[str, int] = field(default_factory=dict)
    grouped_inputs: dict[str, int] = field(default_factory=dict)
    by_functions: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: int = 0

    def new_ids(self, count: int) -> Tensor:
        """Return so many ids that are not in use."""
        self.size += count
        return torch.arange(self.size - count, self.size)


class Recorder:
    """What is known of every tensor of a run, and what happened to channels so far.

    Attributes:
        record: what was seen.
        in_fresh: whether rules look at the labels of fresh tensors.
    """

    def __init__(self, network: nn.Module, record: Record) -> None:
        self.record = record
        self._names = {module: name for name, module in network.named_modules()}
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # an id is an object's only while the object lives
        self._places: dict[int, list[Tensor]] = {}
        self._calls: list[set[int]] = []  # of each, numbers of those whose results it takes
        self._made: dict[int, list[int]] = {}
        self._to_freeze: list[tuple[int, Tensor, str]] = []
        self.in_fresh = False
        for name, parameter in network.named_parameters():
            self.note(parameter, self._parameter(name, parameter))
        for name, buffer in network.named_buffers():
            self.note(buffer, Value(weight=True, name=name))  # with labels where a normalisation uses it
        self._parts = sorted(record.parts.values(), key=lambda part: part.first)

    def begin(self, given: Iterable[Tensor]) -> None:
        """Note that an operation has run, with the tensors that it took."""
        self._calls.append(self._makers(given))

    def end(self, results: Iterable[Tensor], in_place: bool) -> None:
        """Note which tensors an operation has made, or changed with all that share their memory."""
        for tensor in results:
            self.note(tensor, self.of(tensor))
            for each in self._places[tensor.untyped_storage().data_ptr()]:
                if each is tensor or in_place:
                    self._made.setdefault(id(each), []).append(len(self._calls) - 1)

    def _makers(self, tensors: Iterable[Tensor]) -> set[int]:
        """Return the numbers of the calls whose results tensors hold."""
        return {number for tensor in tensors for number in self._made.get(id(tensor), ())}

    def finish(self, results: Sequence[Tensor]) -> None:
        """Keep the channels that the network returns, and those that operations behind its results had to keep.

        What an operation had to keep is not kept where nothing that the network returns comes of it.

        Args:
            results: the tensors that the network returned.
        """
        for tensor in results:
            self.record.frozen += [(torch.unique(each.ids), "output of the network") for each in self.of(tensor).labels]
        used: set[int] = set()
        waiting = self._makers(results)
        while waiting:
            used |= waiting
            waiting = {number for each in waiting for number in self._calls[each]} - used
        self.record.frozen += [(ids, why) for number, ids, why in self._to_freeze if number in used]

    # Values

    def _parameter(self, name: str, tensor: Tensor) -> Value:
        labels = []
        for dim, size in enumerate(tensor.shape):
            if (name, dim) not in self.record.parts and size > 1:
                first = int(self.record.new_ids(size)[0])
                self.record.parts[name, dim] = Part(name, dim, first, size)
            if size > 1:
                ids = self.record.parts[name, dim].ids
                labels.append(ChannelLabels(ids.reshape([size if d == dim else 1 for d in range(tensor.dim())])))
        return Value(tuple(labels), weight=True, name=name)

    def statistic(self, tensor: Tensor) -> Value:
        """Return what is known of a normalisation's parameter or statistic, whose indices are channels."""
        value = self.of(tensor)
        if value.labels or not value.name:
            return value
        value = self._parameter(value.name, tensor)
        self._parts = sorted(self.record.parts.values(), key=lambda part: part.first)
        self.note(tensor, value)
        return value

    def of(self, tensor: Tensor) -> Value:
        """Return what is known of a tensor."""
        return self._seen(self._values.get(id(tensor), Value()))

    def _seen(self, value: Value) -> Value:
        return replace(value, labels=value.fresh, fresh=()) if self.in_fresh else value

    def note(self, tensor: Tensor, value: Value) -> None:
        """Say what is known of a tensor."""
        if id(tensor) not in self._values:
            self._alive.append(tensor)
            self._places.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._values[id(tensor)] = replace(value, labels=(), fresh=value.labels) if self.in_fresh else value

    @contextmanager
    def looking_at_fresh(self) -> Iterator[None]:
        """Let rules see and make the labels of fresh tensors, as if they were those of channels."""
        self.in_fresh = True
        try:
            yield
        finally:
            self.in_fresh = False

    def sharing(self, tensor: Tensor) -> Iterator[Value]:
        """Yield what is known of other tensors that share a tensor's memory."""
        for other in self._places.get(tensor.untyped_storage().data_ptr(), []):
            if other is not tensor:
                yield self._seen(self._values[id(other)])

    def labels_along(self, tensor: Tensor) -> tuple[ChannelLabels, ...]:
        """Return labels of new ids for every dimension of a tensor that has several indices."""
        return tuple(
            ChannelLabels(self.record.new_ids(size).reshape([size if d == dim else 1 for d in range(tensor.dim())]))
            for dim, size in enumerate(tensor.shape)
            if size > 1
        )

    # What happens to channels

    def pair(self, first: Tensor, second: Tensor) -> None:
        """Keep or drop channels together: ids of both, broadcast against one another."""
        both = torch.stack([ids.reshape(-1) for ids in broadcast(first, second)])
        different = both[:, both[0] != both[1]]
        if different.numel():
            self.record.pairs.append(torch.unique(different, dim=1))

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Note that channels of two results are added, and return the ids of the sums."""
        first, second = broadcast(first, second)
        fresh = self.record.new_ids(first.numel())
        self.record.sums.append((fresh, first.reshape(-1), second.reshape(-1)))
        return fresh.reshape(first.shape)

    def freeze(self, labels: Sequence[ChannelLabels], why: str) -> None:
        """Keep all of these channels, unless nothing comes of the operation that is running."""
        for each in labels:
            self._to_freeze.append((len(self._calls) - 1, torch.unique(each.ids), why))

    def bind(self, labels: ChannelLabels, dims: set[int], why: str) -> ChannelLabels | None:
        """Keep the extent of a tensor along some dimensions, and return the labels that are left along the others.

        Channels that differ along these dimensions alone (those of one head) are kept or dropped together; if there
        are no others, all are kept.
        """
        if labels.dims <= dims:
            self.freeze([labels], why)
            return None
        ids = labels.ids
        for dim in dims & labels.dims:
            first = ids.narrow(dim, 0, 1)
            self.pair(ids, first)
            ids = first
        return replace(labels, ids=ids)

    def bind_all(self, many: Sequence[ChannelLabels], dims: set[int], why: str) -> tuple[ChannelLabels, ...]:
        """Do the same for several labels; those that do not vary along the dimensions stay as they are."""
        left = [self.bind(labels, dims, why) if labels.dims & dims else labels for labels in many]
        return tuple(labels for labels in left if labels is not None)

    def take_role(self, labels: ChannelLabels, role: Role) -> None:
        """Note what the indices of a parameter do."""
        parts = self._parts
        part = parts[bisect_right(parts, int(labels.ids.min()), key=lambda part: part.first) - 1]
        if role in ("row", "read") and not self._is_of_running_layer(part.parameter):
            self.record.by_functions.add(part.parameter)
        roles = self.record.roles.setdefault(part, [])
        if role not in roles:
            roles.append(role)

    def _is_of_running_layer(self, weight: str) -> bool:
        """Whether a weight is that of the layer that is running, or of the layer that an attention has for itself."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not isinstance(running := frame.f_locals.get("self"), nn.Module):
            frame = frame.f_back
        prefix = f"{name}." if frame is not None and (name := self._names.get(running, "")) else ""
        return weight == prefix + ("out_proj.weight" if isinstance(running, nn.MultiheadAttention) else "weight")

    def lift(self, many: Sequence[ChannelLabels], what: str) -> tuple[ChannelLabels, ...]:
        """Return labels of which zeros were turned into other values; the first to do so is remembered."""
        return tuple(replace(each, lifted=each.lifted or f"{what}{self.where()}") for each in many)

    def where(self) -> str:
        """Return what is running, for messages: the module, and the file and line of the user's code."""
        module = line = ""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != _RUN:
            file = frame.f_code.co_filename
            running = frame.f_locals.get("self")
            if not module and isinstance(running, nn.Module):
                module = self._names.get(running, "")
            if not line and not file.startswith((_TORCH, _HERE)):
                line = f"{Path(file).name}:{frame.f_lineno}"
            frame = frame.f_back
        place = ", ".join(part for part in (module, line) if part)
        return f" ({place})" if place else ""


def broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors in the shape that they have together."""
    a, b = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    return a, b
