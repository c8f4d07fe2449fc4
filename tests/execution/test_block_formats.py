"""The block format against weights written out by hand and by brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_lightning.execution.blocks.block_formats import BlockFormat
from lt_lightning.structures.plan import Block


def _blocks(*blocks: tuple[list[int], list[int]]) -> list[Block]:
    return [Block(torch.tensor(rows), torch.tensor(columns, dtype=torch.int64)) for rows, columns in blocks]


def test_a_layer_by_hand() -> None:
    """Two input channels, a 1 x 2 kernel: columns 0, 1 are the taps of channel 0, columns 2, 3 those of channel 1."""
    form = BlockFormat.from_blocks(_blocks(([3, 0], [0, 1, 2]), ([1, 2], [3])), (4, 2, 1, 2))
    assert form.rows.tolist() == [3, 0, 1, 2]
    assert form.tap_start.tolist() == [0, 2, 3, 3, 3, 4]
    assert form.channels.tolist() == [0, 1, 0, 1]
    assert (form.rows.dtype, form.tap_start.dtype, form.channels.dtype) == (torch.int64, torch.int32, torch.int32)
    assert (form.groups, form.filters, form.columns, form.taps) == (2, 2, 4, 2)
    weight = torch.arange(16.0).reshape(4, 2, 1, 2)
    assert form.pack(weight).tolist() == [[12, 0], [14, 2], [13, 1], [7, 11]]
    assert form.unpack(form.pack(weight)).reshape(4, 4).tolist() == [
        [0, 1, 2, 0],
        [0, 0, 0, 7],
        [0, 0, 0, 11],
        [12, 13, 14, 0],
    ]


def test_filters_in_no_block_are_zero() -> None:
    form = BlockFormat.from_blocks(_blocks(([1, 2], [0])), (4, 3))
    assert form.groups == 2
    assert form.unpack(torch.ones(1, 2)).reshape(4, 3).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_a_layer_without_columns() -> None:
    form = BlockFormat.from_blocks(_blocks(([0, 1], []), ([2, 3], [])), (4, 3))
    assert form.columns == 0
    assert not form.unpack(form.pack(torch.ones(4, 3))).any()


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (_blocks(([0, 1], [0]), ([2], [0])), "must be of one size"),
        (_blocks(([0, 1], [0]), ([1, 2], [1])), "share filters"),
        (_blocks(([0, 1, 2], [0])), r"\b1 of 4\b"),
        (_blocks(([0, 4], [0])), r"\b0 to 4\b.*\b4\b"),
        (_blocks(([0, 1], [-1]), ([2, 3], [0])), r" -1 to -1\b.*\b3\b"),
        (_blocks(([0, 1], [1, 1]), ([2, 3], [0])), "column twice"),
        ([], "must be of one size"),
    ],
)
def test_what_the_format_cannot_hold(blocks: list[Block], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BlockFormat.from_blocks(blocks, (4, 3))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (3, 3), (1, 5)]),
)
def test_pack_and_unpack_keep_what_is_inside(
    seed: int, groups: int, filters: int, inputs: int, kernel: tuple[int, int]
) -> None:
    torch.manual_seed(seed)
    shape = (groups * filters, inputs, *kernel)
    mask = torch.zeros(shape[0], inputs * kernel[0] * kernel[1], dtype=torch.bool)
    blocks = []
    for rows in torch.randperm(shape[0]).reshape(groups, filters):
        columns = (torch.rand(mask.shape[1]) < torch.rand(())).nonzero().reshape(-1)
        mask[rows[:, None], columns] = True
        blocks.append(Block(rows, columns))
    form = BlockFormat.from_blocks(blocks, shape)
    weight = torch.randn(shape, dtype=torch.float64)
    packed = form.pack(weight)
    assert packed.numel() == int(mask.count_nonzero())
    assert torch.equal(form.unpack(packed), weight * mask.reshape(shape))
    assert torch.equal(form.pack(form.unpack(packed)), packed)
    _check_order(form)


def _check_order(form: BlockFormat) -> None:
    """Within every group and tap the channels ascend."""
    starts: Tensor = form.tap_start.reshape(form.groups, form.taps + 1)
    for group in starts.tolist():
        for begin, end in pairwise(group):
            channels = form.channels[begin:end].tolist()
            assert channels == sorted(set(channels))
