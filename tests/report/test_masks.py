"""Pictures of masks, decoded again, against the masks by hand."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from lt_lightning.report.figures import Picture
from lt_lightning.report.mask_pictures import PALETTE, block_order, order_of, pictures_of
from lt_lightning.structures.plan import Block, BlockPlan
from lt_lightning.tickets.ticket import Ticket


def _decoded(picture: Picture) -> list[list[int]]:
    data = base64.b64decode(picture.source.partition(",")[2])
    colours = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return [[PALETTE.index((int(r), int(g), int(b))) for r, g, b in row] for row in colours]


def test_pictures_tell_what_was_kept_refilled_and_dropped(ticket_of: Callable[[str], Ticket]) -> None:
    pictures = pictures_of("conv", ticket_of("unstructured"), [ticket_of("refill")])
    before, after, reordered = (_decoded(picture) for picture in pictures)
    assert before == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2
    assert after == [[3, 0, 3, 0], [2, 1, 2, 1]] * 2
    assert reordered == [[2, 1, 2, 1]] * 2 + [[3, 0, 3, 0]] * 2


def test_a_search_that_went_on_from_a_structure_shows_that(ticket_of: Callable[[str], Ticket]) -> None:
    ticket = ticket_of("refill")
    first, reordered = pictures_of("conv", ticket, [ticket])
    assert (first.title, reordered.title) == ("refill", "refill, reordered")
    assert _decoded(first) == [[0] * 4, [1] * 4] * 2


def test_reordered_blocks_are_whole_rectangles(ticket_of: Callable[[str], Ticket]) -> None:
    (*_, reordered) = pictures_of("conv", ticket_of("unstructured"), [ticket_of("regroup")])
    kept = np.isin(np.array(_decoded(reordered)), (1, 2))
    assert kept[:2, :2].all()
    assert kept.sum() == 4


def test_orders_are_permutations_and_channels_mean_all_their_columns() -> None:
    plan = BlockPlan("input_channel", {"conv": [Block(torch.tensor([3, 1]), torch.tensor([1]))]})
    order = order_of(plan, "conv", (4, 2, 2, 2))
    assert order is not None
    rows, columns = (each.tolist() for each in order)
    assert rows == [3, 1, 0, 2]
    assert columns == [4, 5, 6, 7, 0, 1, 2, 3]
    assert order_of(plan, "other", (4, 2, 2, 2)) is None
    assert [each.tolist() for each in block_order([], 2, 3)] == [[0, 1], [0, 1, 2]]
