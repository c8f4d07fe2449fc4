"""What each of PyTorch's operations does to channels.

Operations are those that PyTorch is made of (ATen), which every call comes down to, whoever makes it: a module, a
function, a method. An operation that no rule knows keeps all channels that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lt_lightning.network_graph.labels import ChannelLabels, Recorder, Role, Value, broadcast

Meeting = Literal["sum", "product"]
Arguments = tuple[Any, ...]
Options = dict[str, Any]
Rule = Callable[[Recorder, "Call"], None]


_FRESH = {"zeros", "ones", "full", "empty"}
"""Operations that make a tensor of one value, with sizes that are numbers."""


class Call:
    """One call of an operation.

    Attributes:
        func: the operation.
        in_place: whether it changes a tensor that it was given.
        name: name of the operation, without the underscore of one that works in place.
        args: its arguments.
        kwargs: its named arguments.
        result: what it returned.
    """

    def __init__(self, func: Any, args: Arguments, kwargs: Options, result: Any) -> None:
        self.func = func
        schema = func._schema
        self.in_place: bool = schema.is_mutable
        name = schema.name.split("::")[-1]
        self.name: str = name.rstrip("_") if self.in_place else name
        self.args, self.kwargs, self.result = args, kwargs, result
        self._names: list[str] = [argument.name for argument in schema.arguments]

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that it returned."""
        results = self.result if isinstance(self.result, (tuple, list)) else [self.result]
        return [each for each in results if isinstance(each, Tensor)]

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that it was given, those in lists, too."""
        found = []
        for value in (*self.args, *self.kwargs.values()):
            found += list(value if isinstance(value, (tuple, list)) else [value])
        return [each for each in found if isinstance(each, Tensor)]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name, wherever it stands."""
        if name in self.kwargs:
            return self.kwargs[name]
        position = self._names.index(name) if name in self._names else len(self.args)
        return self.args[position] if position < len(self.args) else default


def apply_rule(recorder: Recorder, func: Any, args: Arguments, kwargs: Options, result: Any) -> None:
    """Note what an operation that has run did to channels."""
    call = Call(func, args, kwargs, result)
    known = [recorder.of(tensor) for tensor in call.inputs]
    if any(value.labels for value in known):
        _apply(recorder, call)
    elif any(value.fresh for value in known):
        with recorder.looking_at_fresh():
            _apply(recorder, call)
    else:
        weight = bool(known) and all(value.weight for value in known)
        for output in call.outputs:
            recorder.note(output, Value(weight=weight, fresh=_fresh(recorder, call)))


def _apply(recorder: Recorder, call: Call) -> None:
    before = [recorder.of(output) for output in call.outputs] if call.in_place else []
    RULES.get(call.name, _unknown)(recorder, call)
    for output, old in zip(call.outputs, before, strict=False):
        _check_sharing(recorder, call, output, old)


def _check_sharing(recorder: Recorder, call: Call, output: Tensor, before: Value) -> None:
    """Keep the channels of a tensor that was changed through another one, unless zeros have stayed zeros."""
    after = recorder.of(output)
    if len(after.labels) == len(before.labels) and all(
        new.lifted == old.lifted and torch.equal(new.ids, old.ids)
        for new, old in zip(after.labels, before.labels, strict=True)
    ):
        return
    for other in recorder.sharing(output):
        recorder.freeze([*other.labels, *after.labels], f"{call.name} in place on a view{recorder.where()}")


def _fresh(recorder: Recorder, call: Call) -> tuple[ChannelLabels, ...]:
    """Return labels of a tensor that was made of one value, with sizes that are numbers; none of any other."""
    made = call.name in _FRESH or (call.name.startswith("new_") and call.name[4:] in _FRESH)
    return recorder.labels_along(call.outputs[0]) if made else ()


def _unknown(recorder: Recorder, call: Call) -> None:
    if recorder.in_fresh:
        _freeze_all(recorder, call, "an unknown operation")
        return
    name = f"{call.name}{recorder.where()}"
    if name not in recorder.record.unknown:
        recorder.record.unknown.append(name)
    _freeze_all(recorder, call, f"unknown operation {name}")


def _freeze_all(recorder: Recorder, call: Call, why: str) -> None:
    for tensor in call.inputs:
        recorder.freeze(recorder.of(tensor).labels, why)
    for output in call.outputs:
        recorder.note(output, Value())


# Operations that move elements, and nothing else: they move the ids alike


def _move(recorder: Recorder, call: Call) -> None:
    (source, *_) = call.inputs
    known = recorder.of(source)
    moved: list[list[ChannelLabels]] = [[] for _ in call.outputs]
    for labels in known.labels:
        ids = labels.ids.expand(source.shape)
        if call.name in ("view", "_unsafe_view", "_reshape_alias", "as_strided"):
            ids = ids.contiguous()
        results = call.func(*_with_ids(call.args, source, ids), **call.kwargs)
        results = results if isinstance(results, (tuple, list)) else [results]
        for place, ids in zip(moved, results, strict=True):
            place.append(replace(labels, ids=ids))
    whole = known.name if all(output.numel() == source.numel() for output in call.outputs) else ""
    for output, labels_of in zip(call.outputs, moved, strict=True):
        recorder.note(output, Value(_compressed(recorder, labels_of), known.weight, whole))


def _restride(recorder: Recorder, call: Call) -> None:
    """Look at memory in another way, which is understood where memory is in the order of the elements."""
    (_move if call.args[0].is_contiguous() else _unknown)(recorder, call)


def _with_ids(args: Arguments, source: Tensor, ids: Tensor) -> Arguments:
    return tuple(ids if each is source else each for each in args)


def _compressed(recorder: Recorder, many: Sequence[ChannelLabels]) -> tuple[ChannelLabels, ...]:
    """Return labels of size 1 along dimensions in which they are the same; a channel alone is kept."""
    left = []
    for labels in many:
        ids = labels.ids
        for dim, size in enumerate(ids.shape):
            first = ids.narrow(dim, 0, 1)
            if size > 1 and bool((ids == first).all()):
                ids = first
        if ids.numel() > 1:
            left.append(replace(labels, ids=ids.clone()))
        elif ids.numel() == 1:
            recorder.freeze([labels], f"a single channel is taken{recorder.where()}")
    return tuple(left)


def _same(recorder: Recorder, call: Call) -> None:
    """Copies, in another type or memory format."""
    known = recorder.of(call.inputs[0])
    for output in call.outputs:
        recorder.note(output, known)


def _copy(recorder: Recorder, call: Call) -> None:
    target, source = call.args[0], call.args[1]
    known = recorder.of(source)
    if target.shape != source.shape or next(recorder.sharing(target), None) is not None:
        _freeze_all(recorder, call, f"channels are written into a part of a tensor{recorder.where()}")
        return
    recorder.note(target, known)


def _like(recorder: Recorder, call: Call) -> None:
    """Makes a tensor of the same shape with other values."""
    known = recorder.of(call.inputs[0])
    labels = tuple(replace(each, lifted="") for each in known.labels)
    recorder.note(call.outputs[0], Value(labels if call.name == "zeros_like" else recorder.lift(labels, call.name)))


def _new(recorder: Recorder, call: Call) -> None:
    """Makes a tensor of a shape that is written as numbers."""
    recorder.note(call.outputs[0], Value(fresh=_fresh(recorder, call)))


def _index(recorder: Recorder, call: Call) -> None:
    """Takes elements by index: their ids are moved alike, unless the indices are computed from channels."""
    indices = [each for each in call.args[1] if isinstance(each, Tensor)]
    if any(recorder.of(each).labels for each in indices):
        _unknown(recorder, call)
        return
    _move(recorder, call)


def _pad(recorder: Recorder, call: Call) -> None:
    source, pad = call.args[0], call.args[1]
    value = call.get("value", 0)
    padded = {source.dim() - 1 - index // 2 for index, width in enumerate(pad) if width}
    moved: list[ChannelLabels] = []
    for labels in recorder.of(source).labels:
        if not labels.dims & padded:
            moved += recorder.lift([labels], "padding") if value else [labels]
            continue
        ids = torch.constant_pad_nd(labels.ids.expand(source.shape), pad, -1)
        outside = recorder.record.new_ids(int((ids < 0).sum()))
        recorder.record.frozen.append((outside, f"padding{recorder.where()}"))
        ids = ids.masked_scatter(ids < 0, outside)
        moved.append(replace(labels, ids=ids))
    recorder.note(call.outputs[0], Value(_compressed(recorder, moved), recorder.of(source).weight))


def _cat(recorder: Recorder, call: Call) -> None:
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    dim = int(call.get("dim", 0)) % tensors[0].dim()
    _concatenate(recorder, call, tensors, dim)


def _stack(recorder: Recorder, call: Call) -> None:
    dim = int(call.get("dim", 0)) % (call.args[0][0].dim() + 1)
    lifted = []
    for tensor in call.args[0]:
        known = recorder.of(tensor)
        lifted.append(tensor.unsqueeze(dim))
        labels = tuple(replace(each, ids=each.ids.unsqueeze(dim)) for each in known.labels)
        recorder.note(lifted[-1], replace(known, labels=labels, name=""))
    _concatenate(recorder, call, lifted, dim)


def _concatenate(recorder: Recorder, call: Call, tensors: list[Tensor], dim: int) -> None:
    values = [recorder.of(tensor) for tensor in tensors]
    along, across = [], []
    for value in values:
        mine = [labels for labels in value.labels if dim in labels.dims]
        along.append(mine[0] if mine else None)
        recorder.freeze(mine[1:], f"channels of two kinds in one concatenation{recorder.where()}")
        across.append(replace(value, labels=tuple(labels for labels in value.labels if dim not in labels.dims)))
    result = list(
        _meet(recorder, "sum", list(zip(across, [t.shape for t in tensors], strict=True)), join=False, dim=dim)
    )
    if any(along):
        result.append(_in_a_row(recorder, tensors, along, dim))
    weight = all(value.weight for value in values)
    recorder.note(call.outputs[0], Value(_compressed(recorder, result), weight))


def _in_a_row(
    recorder: Recorder, tensors: Sequence[Tensor], along: Sequence[ChannelLabels | None], dim: int
) -> ChannelLabels:
    """Return the labels of tensors in a row; those of a tensor that has none are new, and kept."""
    ids = []
    for tensor, labels in zip(tensors, along, strict=True):
        if labels is None:
            size = tensor.shape[dim]
            fixed = recorder.record.new_ids(size)
            recorder.record.frozen.append((fixed, f"concatenated with what no layer puts out{recorder.where()}"))
            ids.append(fixed.reshape([size if d == dim else 1 for d in range(tensor.dim())]))
        else:
            ids.append(labels.ids)
    shape = [max(sizes) for sizes in zip(*(each.shape for each in ids), strict=True)]
    expanded = [each.expand([each.shape[d] if d == dim else shape[d] for d in range(len(shape))]) for each in ids]
    lifted = next((labels.lifted for labels in along if labels is not None and labels.lifted), "")
    return ChannelLabels(torch.cat(expanded, dim), lifted)


# Operations on each element, or on the positions of each channel


def _each(recorder: Recorder, call: Call, keeps: bool = True) -> None:
    """Act on each channel alone; `keeps` says whether zeros stay zeros."""
    source = call.inputs[0]
    known = recorder.of(source)
    for output in call.outputs:
        fits = output.dim() == source.dim()
        kept = [each for each in known.labels if fits and all(output.shape[d] == source.shape[d] for d in each.dims)]
        recorder.freeze(
            [each for each in known.labels if each not in kept], f"{call.name} over channels{recorder.where()}"
        )
        labels = tuple(kept) if keeps else recorder.lift(kept, call.name)
        recorder.note(output, Value(labels, known.weight))


def _lift(recorder: Recorder, call: Call) -> None:
    _each(recorder, call, keeps=False)


def _windows(recorder: Recorder, call: Call) -> None:
    """Pool or resize over the last dimensions, as many as the operation's name says."""
    count = next(int(digit) for digit in "123" if f"{digit}d" in call.name)
    known = recorder.of(call.inputs[0])
    spatial = set(range(call.inputs[0].dim() - count, call.inputs[0].dim()))
    apart = recorder.bind_all(known.labels, spatial, f"{call.name} over channels{recorder.where()}")
    for output in call.outputs:
        recorder.note(output, Value(apart, known.weight))


def _clamp(recorder: Recorder, call: Call) -> None:
    lower = call.get("min", call.get("min_val"))
    upper = call.get("max", call.get("max_val"))
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        _unknown(recorder, call)
        return
    _each(recorder, call, (lower is None or lower <= 0) and (upper is None or upper >= 0))


def _threshold(recorder: Recorder, call: Call) -> None:
    _each(recorder, call, call.get("threshold") < 0 or call.get("value") == 0)


def _power(recorder: Recorder, call: Call) -> None:
    exponent = call.get("exponent")
    if isinstance(exponent, Tensor) or isinstance(call.args[0], (int, float)):
        _each(recorder, call, False) if len(call.inputs) == 1 else _unknown(recorder, call)
        return
    _each(recorder, call, exponent > 0)


def _dropout(recorder: Recorder, call: Call) -> None:
    known = recorder.of(call.inputs[0])
    recorder.note(call.outputs[0], replace(known, name=""))
    for mask in call.outputs[1:]:
        recorder.note(mask, Value(recorder.lift(known.labels, "the mask of a dropout")))


# Operations on several tensors, element by element


def _sum(recorder: Recorder, call: Call) -> None:
    """Add, subtract, interpolate, or take the larger or the smaller: zeros give zero."""
    _elementwise(recorder, call, "sum", call.args[:2])


def _reversed_difference(recorder: Recorder, call: Call) -> None:
    _elementwise(recorder, call, "sum", (call.args[1], call.args[0]))


def _product(recorder: Recorder, call: Call) -> None:
    _elementwise(recorder, call, "product", call.args[:2])


def _quotient(recorder: Recorder, call: Call) -> None:
    """Divide: zero over anything but zero is zero."""
    first, second = call.args[:2]
    if isinstance(second, Tensor):
        known = recorder.of(second)
        if any(labels.zero for labels in known.labels) and not known.weight:
            recorder.freeze([labels for labels in known.labels if labels.zero], f"a division by it{recorder.where()}")
        known = replace(known, labels=recorder.lift(known.labels, "a division"))
        _elementwise(recorder, call, "product", (first, second), {id(second): known})
        return
    _elementwise(recorder, call, "product", (first, second))


def _where(recorder: Recorder, call: Call) -> None:
    """Choose between two tensors by a condition."""
    condition, first, second = call.args
    _elementwise(recorder, call, "sum", (first, second), condition=condition)


def _masked_fill(recorder: Recorder, call: Call) -> None:
    source, mask, value = call.args
    _elementwise(recorder, call, "sum", (source, value), condition=mask)


def _sum_of_products(recorder: Recorder, call: Call) -> None:
    """addcmul: a sum of a tensor and the product of two."""
    first, second, third = call.args[:3]
    shape = call.outputs[0].shape
    known = [(recorder.of(each), each.shape) for each in (second, third)]
    product = Value(_meet(recorder, "product", known, shape=shape), all(value.weight for value, _ in known))
    labels = _meet(recorder, "sum", [(recorder.of(first), first.shape), (product, shape)], shape=shape)
    recorder.note(call.outputs[0], Value(labels))


def _elementwise(
    recorder: Recorder,
    call: Call,
    meeting: Meeting,
    operands: Sequence[Any],
    known: dict[int, Value] | None = None,
    condition: Tensor | None = None,
) -> None:
    shape = call.outputs[0].shape
    given: list[tuple[Value, torch.Size]] = []
    numbers = [each for each in operands if isinstance(each, (int, float, complex))]
    for each in operands:
        if isinstance(each, Tensor):
            given.append(((known or {}).get(id(each), recorder.of(each)), _extent(each)))
    labels = _meet(recorder, meeting, given, shape=shape)
    if condition is not None and (value := recorder.of(condition)).labels:
        labels = _meet(recorder, "product", [(Value(labels), shape), (value, condition.shape)], shape=shape)
    elif condition is not None:
        labels = _meet(recorder, "product", [(Value(labels), shape), (value, _extent(condition))], shape=shape)
    if meeting == "sum" and any(numbers):
        labels = recorder.lift(labels, f"{call.name} of a number")
    weight = all(value.weight for value, _ in given)
    recorder.note(call.outputs[0], Value(_compressed(recorder, labels), weight))


def _extent(tensor: Tensor) -> torch.Size:
    """Return the shape of a tensor, of size 1 where it repeats one value in memory."""
    return torch.Size(1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _meet(
    recorder: Recorder,
    meeting: Meeting,
    given: Sequence[tuple[Value, Sequence[int]]],
    shape: Sequence[int] | None = None,
    join: bool = True,
    dim: int | None = None,
) -> tuple[ChannelLabels, ...]:
    """Bring together the channels of tensors that are added or multiplied element by element.

    Args:
        recorder: where channels are paired.
        meeting: what is done.
        given: what is known of each tensor, and its shape.
        shape: shape of the result; None for that of the first tensor.
        join: whether a sum of two results makes a stream of them.
        dim: a dimension along which sizes may differ.
    """
    rank = len(given[0][1] if shape is None else shape)
    result: list[tuple[ChannelLabels, set[int]]] = []  # with the tensors that have such channels
    for index, (value, _) in enumerate(given):
        for labels in value.labels:
            mine = labels.over(rank)
            for position, (other, owners) in enumerate(result):
                if mine.dims & other.dims:
                    others = [given[owner][0] for owner in owners]
                    together = _united(recorder, meeting, (other, others), (mine, value), join)
                    result[position] = (together, owners | {index})
                    break
            else:
                result.append((mine, {index}))
    left = [_beside(recorder, meeting, labels, owners, given, rank, dim) for labels, owners in result]
    return tuple(labels for labels in left if labels is not None)


def _united(
    recorder: Recorder,
    meeting: Meeting,
    first: tuple[ChannelLabels, Sequence[Value]],
    second: tuple[ChannelLabels, Value],
    join: bool,
) -> ChannelLabels:
    (a, owners), (b, value) = first, second
    role: Role = "scale" if meeting == "product" else "shift"
    of_a = owners[0]
    for weight, channels, own, other in ((a, b, of_a, value), (b, a, value, of_a)):
        if own.acts_on(other):
            recorder.take_role(weight, role)
        if own.weight and weight.dims < channels.dims:  # one scale for several heads
            why = f"one parameter for several units{recorder.where()}"
            recorder.freeze([weight], why)
            recorder.bind(channels, weight.dims, why)
            return channels if meeting == "product" else recorder.lift([channels], "a sum with a parameter")[0]
    ids, others = broadcast(a.ids, b.ids)
    lifted = (a.lifted or b.lifted) if meeting == "sum" else (a.lifted and b.lifted)
    activations = not value.weight and not of_a.weight
    if meeting == "sum" and join and activations and not torch.equal(ids, others):
        return ChannelLabels(recorder.join(ids, others), lifted)
    recorder.pair(ids, others)
    return ChannelLabels((others if of_a.weight else ids).clone(), lifted)


def _beside(
    recorder: Recorder,
    meeting: Meeting,
    labels: ChannelLabels,
    owners: set[int],
    given: Sequence[tuple[Value, Sequence[int]]],
    rank: int,
    dim: int | None,
) -> ChannelLabels | None:
    """Return labels beside the tensors that do not have such channels; None if they are fixed by that."""
    for index, (value, shape) in enumerate(given):
        if index in owners:
            continue
        sizes = (1,) * (rank - len(shape)) + tuple(shape)
        follows = _following(recorder, labels, [fresh.over(rank) for fresh in value.fresh])
        fixed = {each for each in labels.dims - follows if each != dim and sizes[each] > 1}
        if fixed and recorder.bind(labels, fixed, f"meets a tensor of fixed width{recorder.where()}") is None:
            return None
        if meeting == "sum":
            (labels,) = recorder.lift([labels], "a sum with other values")
    return labels


def _following(recorder: Recorder, labels: ChannelLabels, fresh: Sequence[ChannelLabels]) -> set[int]:
    """Let dimensions of a fresh tensor follow the channels that they meet, and return these dimensions."""
    following: set[int] = set()
    for each in fresh:
        if each.dims <= labels.dims:
            recorder.pair(each.ids, labels.ids)
            following |= each.dims
    return following


# Sums over elements: convolutions, matrix products, attention, means


def _reduce(recorder: Recorder, call: Call, adds: bool = False) -> None:
    """Reduce dimensions. A sum over channels leaves out those that are dropped, if they are zero."""
    source = call.inputs[0]
    known = recorder.of(source)
    named = call.get("dim")
    rank = source.dim()
    dims = (
        set(range(rank))
        if named in (None, [])
        else {each % rank for each in ([named] if isinstance(named, int) else named)}
    )
    left: list[ChannelLabels] = []
    for labels in known.labels:
        if adds and labels.zero and labels.dims <= dims:
            recorder.record.summed.append(labels.ids.reshape(-1))  # what is dropped adds nothing
            continue
        kept = recorder.bind_all([labels], dims, f"{call.name} over channels{recorder.where()}")
        left += recorder.lift(kept, call.name) if call.name.startswith("arg") else kept
    for output in call.outputs:
        apart = tuple(dims) if output.dim() < rank else ()
        reduced = tuple(replace(each, ids=each.ids.squeeze(apart)) if apart else each for each in left)
        recorder.note(output, Value(reduced, known.weight))


def _add_up(recorder: Recorder, call: Call) -> None:
    _reduce(recorder, call, adds=True)


def _vector_norm(recorder: Recorder, call: Call) -> None:
    _reduce(recorder, call, adds=call.get("ord", 2) > 0)


def _softmax(recorder: Recorder, call: Call) -> None:
    known = recorder.of(call.inputs[0])
    dim = int(call.args[1]) % call.inputs[0].dim()
    left = recorder.bind_all(known.labels, {dim}, f"softmax over channels{recorder.where()}")
    recorder.note(call.outputs[0], Value(recorder.lift(left, "softmax")))


def _cumulate(recorder: Recorder, call: Call) -> None:
    known = recorder.of(call.inputs[0])
    dim = int(call.args[1]) % call.inputs[0].dim()
    left = recorder.bind_all(known.labels, {dim}, f"{call.name} over channels{recorder.where()}")
    recorder.note(call.outputs[0], Value(left, known.weight))


def _matrix_product(recorder: Recorder, call: Call) -> None:
    a, b = call.args[:2]
    value = _contract(recorder, (recorder.of(a), a.shape), (recorder.of(b), b.shape))
    recorder.note(call.outputs[0], replace(value, labels=_compressed(recorder, value.labels)))


def _sum_and_matrix_product(recorder: Recorder, call: Call) -> None:
    bias, a, b = call.args[:3]
    product = _contract(recorder, (recorder.of(a), a.shape), (recorder.of(b), b.shape))
    shape = call.outputs[0].shape
    given = [(product, shape), (recorder.of(bias), bias.shape)]
    labels = _meet(recorder, "sum", given, shape=shape)
    recorder.note(call.outputs[0], Value(_compressed(recorder, labels), product.weight))


def _contract(recorder: Recorder, first: tuple[Value, Sequence[int]], second: tuple[Value, Sequence[int]]) -> Value:
    """Multiply matrices, (..., m, k) by (..., k, n)."""
    (a, a_shape), (b, b_shape) = first, second
    rank = len(a_shape)
    k_of_a, k_of_b = rank - 1, rank - 2
    inner_a = [labels for labels in a.labels if k_of_a in labels.dims]
    inner_b = [labels for labels in b.labels if k_of_b in labels.dims]
    outer_a = [labels for labels in a.labels if k_of_a not in labels.dims]
    outer_b = [labels for labels in b.labels if k_of_b not in labels.dims]
    if b.acts_on(a):
        _read(recorder, (inner_a, inner_b), (k_of_a, k_of_b))
        for each in outer_b:
            recorder.take_role(each, "row")
    elif a.acts_on(b):
        _read(recorder, (inner_b, inner_a), (k_of_b, k_of_a))
        for each in outer_a:
            recorder.take_role(each, "row")
    elif a.weight:
        recorder.freeze([*inner_a, *inner_b], f"a product of weights{recorder.where()}")
    elif inner_a and inner_b:
        unit = _one_unit(recorder, inner_a[0], inner_b[0].ids.transpose(-1, -2), k_of_a)
        outer_a.append(unit)
        outer_b.append(unit)
        recorder.freeze([*inner_a[1:], *inner_b[1:]], f"channels of two kinds in one product{recorder.where()}")
    else:
        recorder.freeze([*inner_a, *inner_b], f"a product with a tensor of fixed width{recorder.where()}")
    batch = [max(sizes) for sizes in zip(a_shape[:-2], b_shape[:-2], strict=True)]
    shape = (*batch, a_shape[-2], b_shape[-1])
    left = (Value(tuple(outer_a), a.weight), (*a_shape[:-1], 1))
    right = (Value(tuple(outer_b), b.weight), (*b_shape[:-2], 1, b_shape[-1]))
    labels = _meet(recorder, "product", [left, right], shape=shape)
    return Value(tuple(each for each in labels if each.ids.numel() > 1), a.weight and b.weight)


def _read(
    recorder: Recorder, inner: tuple[Sequence[ChannelLabels], Sequence[ChannelLabels]], dims: tuple[int, int]
) -> None:
    """A layer reads channels, the first, by the inputs of its weight, the second."""
    channels, inputs = inner
    for each in inputs[:1]:
        recorder.take_role(each, "read")
    apart = all(each.dims == {dims[0]} for each in channels) and all(each.dims == {dims[1]} for each in inputs)
    if len(channels) == 1 and len(inputs) == 1 and apart:
        recorder.pair(channels[0].ids.reshape(-1), inputs[0].ids.reshape(-1))
        _check_zero(recorder, channels)
        return
    recorder.freeze(inputs, "input of the network, or of an operation of fixed width")
    recorder.freeze(channels, f"a layer reads it in a way that is not understood{recorder.where()}")


def _check_zero(recorder: Recorder, channels: Sequence[ChannelLabels]) -> None:
    """Keep channels that would be other than zero where a layer reads them, if they were dropped."""
    for labels in channels:
        if labels.lifted:
            recorder.freeze([labels], f"{labels.lifted} turns zeros into other values")


def _one_unit(recorder: Recorder, first: ChannelLabels, second: Tensor, dim: int) -> ChannelLabels:
    """Keep all channels that are summed over together (a head), and return what is left of their labels."""
    ids = broadcast(first.ids, second)
    head = ids[0].narrow(dim, 0, 1)
    for each in ids:
        recorder.pair(each, head)
    return replace(first, ids=head)


def _convolution(recorder: Recorder, call: Call) -> None:
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.get("transposed")), int(call.get("groups"))
    known, of_weight = recorder.of(x), recorder.of(weight)
    inner, other = (
        [labels for labels in known.labels if labels.dims == {1}],
        [labels for labels in known.labels if labels.dims != {1}],
    )
    recorder.freeze(other, f"a convolution over channels{recorder.where()}")
    outputs, inputs = (1, 0) if transposed else (0, 1)
    rows = [labels for labels in of_weight.labels if labels.dims == {outputs}]
    columns = [labels for labels in of_weight.labels if labels.dims == {inputs}]
    for each in rows:
        recorder.take_role(each, "row")
    if not of_weight.weight:
        recorder.freeze([*inner, *of_weight.labels], f"a convolution whose weight is computed{recorder.where()}")
    elif groups == 1:
        _read(recorder, (inner, columns), (1, inputs))
    else:
        _group(recorder, call, (inner, columns, rows), groups, transposed)
    places = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    out = tuple(replace(each, ids=each.ids.reshape(places)) for each in rows[:1])
    of_one_group = transposed and groups > 1  # its weight has ids for the outputs of one group, not of the others
    result: Value = Value(() if of_one_group or not of_weight.weight else out, False)
    if bias is not None and of_one_group:
        recorder.freeze(recorder.of(bias).labels, f"outputs of a transposed convolution in groups{recorder.where()}")
    elif bias is not None:
        shape = [1] * x.dim()
        shape[1] = len(bias)
        biases = tuple(replace(each, ids=each.ids.reshape(shape)) for each in recorder.of(bias).labels)
        labels = _meet(
            recorder, "sum", [(result, call.outputs[0].shape), (replace(recorder.of(bias), labels=biases), shape)]
        )
        result = Value(labels)
    recorder.note(call.outputs[0], result)


def _group(
    recorder: Recorder,
    call: Call,
    sides: tuple[Sequence[ChannelLabels], Sequence[ChannelLabels], Sequence[ChannelLabels]],
    groups: int,
    transposed: bool,
) -> None:
    """A convolution in groups: a group's inputs and outputs stay together."""
    channels, columns, rows = sides
    name = recorder.of(call.args[1]).name
    recorder.freeze(columns, "inputs within a group")
    if transposed or not name or not channels or not rows:
        recorder.freeze([*channels, *rows], f"a convolution in groups that is not understood{recorder.where()}")
        return
    recorder.record.grouped[name] = groups
    recorder.record.grouped_inputs[name] = channels[0].ids.numel() // groups
    _check_zero(recorder, channels)
    inputs, outputs = channels[0].ids.reshape(groups, -1), rows[0].ids.reshape(groups, -1)
    recorder.pair(inputs, outputs[:, :1])
    recorder.pair(outputs, outputs[:, :1])


def _attention(recorder: Recorder, call: Call) -> None:
    q, k, v = call.args[:3]
    of_q, of_k, of_v = (recorder.of(each) for each in (q, k, v))
    if len({q.shape[1], k.shape[1], v.shape[1]}) > 1:  # several queries share a key
        of_k, of_v = (_shared_heads(each, q.shape[1]) for each in (of_k, of_v))
    turned = replace(of_k, labels=tuple(replace(each, ids=each.ids.transpose(-1, -2)) for each in of_k.labels))
    *batch, _, width = q.shape
    shape = (*batch, q.shape[-2], k.shape[-2])
    scores = _contract(recorder, (of_q, q.shape), (turned, (*batch, width, k.shape[-2])))
    mask = call.get("attn_mask", call.get("attn_bias"))
    if isinstance(mask, Tensor):
        given = [(scores, shape), (recorder.of(mask), _extent(mask))]
        scores = Value(_meet(recorder, "sum", given, shape=shape))
    lifted = replace(scores, labels=recorder.lift(scores.labels, "softmax"))
    result = _contract(recorder, (lifted, shape), (of_v, (*batch, *v.shape[-2:])))
    for index, output in enumerate(call.outputs):
        recorder.note(output, replace(result, labels=_compressed(recorder, result.labels)) if index == 0 else Value())


def _shared_heads(value: Value, heads: int) -> Value:
    """Return keys or values as they are repeated for the heads that share them."""
    labels = []
    for each in value.labels:
        ids = each.ids
        labels.append(replace(each, ids=ids.repeat_interleave(heads // ids.shape[1], 1) if ids.shape[1] > 1 else ids))
    return replace(value, labels=tuple(labels))


# Normalisations


def _batch_norm(recorder: Recorder, call: Call) -> None:
    x = call.args[0]
    known = recorder.of(x)
    inside = [labels for labels in known.labels if labels.dims == {1}]
    recorder.freeze(
        [labels for labels in known.labels if labels.dims != {1}], f"{call.name} over channels{recorder.where()}"
    )
    affine = all(isinstance(call.get(name), Tensor) for name in ("weight", "bias"))
    names = []
    for part in ("weight", "bias", "running_mean", "running_var"):
        if not isinstance(tensor := call.get(part), Tensor):
            continue
        of_part = recorder.statistic(tensor)
        names.append(of_part.name)
        for labels in of_part.labels[:1]:
            recorder.take_role(labels, "norm")
            if inside:
                recorder.pair(labels.ids.reshape(-1), inside[0].ids.reshape(-1))
            else:
                recorder.freeze([labels], "normalises what no layer puts out")
    if inside and affine:
        recorder.record.normalised.append((tuple(names), inside[0].ids.reshape(-1)))
    result = tuple(replace(labels, lifted="") for labels in inside[:1])
    if not affine:
        result = recorder.lift(result, "a normalisation without a scale and a shift")
    for index, output in enumerate(call.outputs):
        if output is x or index == 0:
            recorder.note(output, Value(result))


def _layer_norm(recorder: Recorder, call: Call) -> None:
    x, shape = call.args[0], call.args[1]
    known = recorder.of(x)
    last = {x.dim() - 1}
    over = set(range(x.dim() - len(shape), x.dim()))
    inside = [labels for labels in known.labels if labels.dims & over]
    weight, bias = call.get("weight"), call.get("bias")
    name = recorder.of(weight).name if isinstance(weight, Tensor) else ""
    if len(inside) == 1 and inside[0].dims == last and len(shape) == 1 and name:
        for tensor in (weight, bias):
            for labels in recorder.of(tensor).labels if isinstance(tensor, Tensor) else ():
                recorder.take_role(labels, "norm")
                recorder.pair(labels.ids.reshape(-1), inside[0].ids.reshape(-1))
        recorder.record.counted[name] = int(shape[0])
        result = tuple(replace(labels, lifted="") for labels in inside)
    else:
        for tensor in (weight, bias):
            recorder.freeze(
                recorder.of(tensor).labels if isinstance(tensor, Tensor) else (), "normalises what no layer puts out"
            )
        recorder.freeze(inside, f"{call.name} over channels{recorder.where()}")
        result = ()
    others = recorder.lift([labels for labels in known.labels if labels not in inside], "a normalisation")
    recorder.note(call.outputs[0], Value((*result, *others)))


def _group_norm(recorder: Recorder, call: Call) -> None:
    x, weight, bias = call.args[:3]
    groups = int(call.get("group"))
    known = recorder.of(x)
    inside = [labels for labels in known.labels if labels.dims == {1}]
    recorder.freeze(
        [labels for labels in known.labels if labels.dims != {1}], f"{call.name} over channels{recorder.where()}"
    )
    of_weight, of_bias = ((recorder.of(each) if isinstance(each, Tensor) else Value()) for each in (weight, bias))
    name = of_weight.name
    if not inside or not name:
        recorder.freeze(
            [*inside, *of_weight.labels, *of_bias.labels],
            f"{call.name} without a scale of its own{recorder.where()}",
        )
        recorder.note(call.outputs[0], Value())
        return
    ids = inside[0].ids.reshape(-1)
    for labels in (*of_weight.labels, *of_bias.labels):
        recorder.take_role(labels, "norm")
        recorder.pair(labels.ids.reshape(-1), ids)
    if groups == 1:
        recorder.record.counted[name] = len(ids)
    else:
        grouped = ids.reshape(groups, -1)
        recorder.pair(grouped, grouped[:, :1])
        recorder.record.grouped[name] = groups
    recorder.note(call.outputs[0], Value((replace(inside[0], lifted=""),)))


def _embedding(recorder: Recorder, call: Call) -> None:
    weight, indices = call.args[:2]
    if recorder.of(indices).labels:
        _unknown(recorder, call)
        return
    rows = [labels for labels in recorder.of(weight).labels if labels.dims == {1}]
    shape = [1] * indices.dim() + [-1]
    for labels in recorder.of(weight).labels:
        if labels.dims == {1}:
            recorder.take_role(labels, "row")
    result = tuple(ChannelLabels(labels.ids.reshape(shape)) for labels in rows)
    recorder.note(call.outputs[0], Value(result))


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(
        "view _unsafe_view reshape permute transpose t numpy_T expand unsqueeze squeeze slice select split "
        "split_with_sizes unbind roll flip repeat index_select unfold pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle narrow chunk movedim swapaxes diagonal tile repeat_interleave "
        "unsafe_split unsafe_chunk unsafe_split_with_sizes split_copy unsqueeze_copy _reshape_alias",
        _move,
    ),
    **_table("clone contiguous alias detach _to_copy lift_fresh lift resize_ view_as_real set_ positive", _same),
    "as_strided": _restride,
    "copy": _copy,
    "index": _index,
    "constant_pad_nd": _pad,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    **_table("empty_like zeros_like ones_like full_like rand_like randn_like randint_like bernoulli", _like),
    **_table("new_empty new_zeros new_ones new_full new_empty_strided", _new),
    **_table(
        "relu relu6 leaky_relu elu celu selu gelu silu mish hardswish tanh abs neg sign sgn sqrt square sin tan asin "
        "atan sinh asinh atanh expm1 log1p erf round floor ceil trunc frac nan_to_num softshrink hardshrink rrelu "
        "rrelu_with_noise rrelu_with_noise_functional fake_quantize_per_tensor_affine "
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
        "isnan isinf zero",
        _each,
    ),
    **_table(
        "sigmoid exp exp2 cos cosh softplus hardsigmoid log_sigmoid_forward log_sigmoid reciprocal rsqrt log log2 "
        "log10 logical_not bitwise_not eq ne lt le gt ge uniform normal random exponential fill acos acosh erfc lgamma "
        "digamma logit",
        _lift,
    ),
    **_table(
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
        "avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
        "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        _windows,
    ),
    **_table("hardtanh clamp clamp_min clamp_max clip", _clamp),
    "threshold": _threshold,
    "pow": _power,
    **_table("dropout native_dropout feature_dropout alpha_dropout", _dropout),
    **_table("add sub maximum minimum lerp", _sum),
    "rsub": _reversed_difference,
    **_table("mul logical_and bitwise_and _prelu_kernel prelu", _product),
    **_table("div floor_divide", _quotient),
    "where": _where,
    "masked_fill": _masked_fill,
    "addcmul": _sum_of_products,
    **_table("sum norm_sum", _add_up),
    "linalg_vector_norm": _vector_norm,
    **_table("mean amax amin var std var_mean std_mean max min prod any all argmax argmin logsumexp median", _reduce),
    **_table("_softmax _log_softmax _safe_softmax softmax log_softmax", _softmax),
    **_table("cumsum cumprod logcumsumexp", _cumulate),
    **_table("mm bmm matmul", _matrix_product),
    **_table("addmm baddbmm", _sum_and_matrix_product),
    "convolution": _convolution,
    **_table(
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention",
        _attention,
    ),
    **_table(
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_native_batch_norm_legit_functional cudnn_batch_norm miopen_batch_norm _batch_norm_with_update "
        "_batch_norm_no_update",
        _batch_norm,
    ),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "embedding": _embedding,
}
"""The rule of every operation that is known, by its name."""
