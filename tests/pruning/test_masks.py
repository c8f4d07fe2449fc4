"""Masks against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lt_lightning.pruning.masks import density, digest, kept, nested, pack, size, unpack

bits = st.lists(st.booleans(), min_size=0, max_size=70)
shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


def mask_of(values: list[bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


@given(bits)
def test_pack_writes_eight_weights_a_byte_first_weight_highest(values: list[bool]) -> None:
    padded = values + [False] * (-len(values) % 8)
    expected = [int("".join("01"[bit] for bit in padded[i : i + 8]), 2) for i in range(0, len(padded), 8)]
    packed = pack(mask_of(values))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected


@given(shapes, st.integers(0, 2**31))
def test_unpack_is_the_inverse_of_pack_for_every_shape(shape: tuple[int, ...], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    restored = unpack(pack(mask), shape)
    assert restored.dtype == torch.bool
    assert restored.shape == mask.shape
    assert torch.equal(restored, mask)


def test_pack_follows_the_index_not_the_memory() -> None:
    mask = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(pack(mask.contiguous(memory_format=torch.channels_last)), pack(mask))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unpack_refuses_a_wrong_number_of_bytes(count: int) -> None:
    with pytest.raises(ValueError, match=r"shape \(9,\) needs 2 bytes, not"):
        unpack(torch.zeros(count, dtype=torch.uint8), (9,))


@given(bits.filter(len), bits.filter(len))
def test_kept_size_and_density_count(first: list[bool], second: list[bool]) -> None:
    masks = {"a": mask_of(first), "b": mask_of(second)}
    assert kept(masks) == sum(first) + sum(second)
    assert size(masks) == len(first) + len(second)
    assert density(masks) == (sum(first) + sum(second)) / (len(first) + len(second))


def test_nothing_covered_is_dense() -> None:
    assert density({}) == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_nested_is_implication(pairs: list[tuple[bool, bool]]) -> None:
    inner, outer = ({"w": mask_of([pair[i] for pair in pairs])} for i in (0, 1))
    assert nested(inner, outer) == all(b or not a for a, b in pairs)


def test_nested_takes_a_parameter_without_a_mask_as_kept_whole() -> None:
    full, half = {"w": mask_of([True, True])}, {"w": mask_of([True, False])}
    assert nested(half, {})
    assert nested({}, full)
    assert not nested({}, half)


@given(bits.filter(len), st.data())
def test_digest_changes_with_every_bit(values: list[bool], data: st.DataObject) -> None:
    flipped = list(values)
    flipped[data.draw(st.integers(0, len(values) - 1))] ^= True
    assert digest({"w": mask_of(values)}) == digest({"w": mask_of(list(values))})
    assert digest({"w": mask_of(values)}) != digest({"w": mask_of(flipped)})


def test_digest_sees_names_and_shapes_but_not_the_order_of_the_names() -> None:
    a, b = mask_of([True, False]), mask_of([False, True, True])
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a})
    others = [{"a": b, "b": a}, {"a": a, "c": b}, {"a": a}, {"a": a.view(1, 2), "b": b}, {"a": a, "b": b[:2]}]
    assert len({digest({"a": a, "b": b}), *map(digest, others)}) == 1 + len(others)


def test_digest_does_not_take_padding_for_weights() -> None:
    lengths = [digest({"w": torch.zeros(n, dtype=torch.bool)}) for n in range(1, 9)]
    assert len(set(lengths)) == 8
