"""Pictures of masks, as they are and decoded again from their files, against the masks by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from lt_lightning.report import mask_pictures
from lt_lightning.report.contents import Search
from lt_lightning.report.mask_pictures import PALETTE, add_masks, block_order, order_of, pictures_of
from lt_lightning.report.page import Page
from lt_lightning.structures.plan import Block, BlockPlan
from lt_lightning.tickets.ticket import Ticket
from tests.toys import DENSE

BEFORE = [[1, 0, 1, 0], [0, 1, 0, 1]] * 2
REFILLED = [[3, 0, 3, 0], [2, 1, 2, 1]] * 2
REORDERED = [[2, 1, 2, 1]] * 2 + [[3, 0, 3, 0]] * 2


def _decoded(image: Image.Image) -> list[list[int]]:
    colours = np.asarray(image.convert("RGB"))
    return [[PALETTE.index((int(r), int(g), int(b))) for r, g, b in row] for row in colours]


def test_pictures_tell_what_was_kept_refilled_and_dropped(ticket_of: Callable[[str], Ticket]) -> None:
    pictures = pictures_of("conv", ticket_of("unstructured"), [ticket_of("refill")])
    assert [_decoded(picture.image) for picture in pictures] == [BEFORE, REFILLED, REORDERED]


def test_a_search_that_went_on_from_a_structure_shows_that(ticket_of: Callable[[str], Ticket]) -> None:
    ticket = ticket_of("refill")
    first, reordered = pictures_of("conv", ticket, [ticket])
    assert (first.title, reordered.title) == ("refill", "refill, reordered")
    assert _decoded(first.image) == [[0] * 4, [1] * 4] * 2


def test_reordered_blocks_are_whole_rectangles(ticket_of: Callable[[str], Ticket]) -> None:
    (*_, reordered) = pictures_of("conv", ticket_of("unstructured"), [ticket_of("regroup")])
    kept = np.isin(np.array(_decoded(reordered.image)), (1, 2))
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


def test_every_picture_of_the_page_is_a_file_beside_it_with_the_same_pixels(
    ticket_of: Callable[[str], Ticket], tmp_path: Path
) -> None:
    results = []
    for structure in ("unstructured", "refill"):
        results.append(replace(DENSE, round=1, structure=structure, place=f"search-0/{structure}"))
        ticket_of(structure).save(tmp_path / "search-0" / structure / "ticket")
    page = Page(tmp_path / "a report", "", "")
    add_masks(page, [Search(tmp_path / "search-0", {}, tuple(results), ())])
    ((_, _, html),) = page.sections
    addresses = re.findall(r'<img [^>]*src="([^"]+)"', html)
    assert re.findall(r'<a href="([^"]+)"><img', html) == addresses
    images = [Image.open(page.folder / unquote(address)) for address in addresses]
    assert [image.format for image in images] == ["PNG"] * 3
    assert [_decoded(image) for image in images] == [BEFORE, REFILLED, REORDERED]
    # The search alone, then the ticket beside what is executed of it. 4 x 4 pixels are shown 320 high.
    assert [part.count("<img") for part in html.split('<div class="masks">')[1:]] == [1, 2]
    assert html.count('width="320" height="320"') == 3


def test_what_has_no_masks_leaves_the_pictures_of_the_others_and_what_is_damaged_is_told(
    ticket_of: Callable[[str], Ticket], tmp_path: Path
) -> None:
    names = ("unstructured", "refill", "torch_pruning_magnitude")
    results = tuple(replace(DENSE, round=1, structure=name, place=f"search-0/{name}") for name in names)
    for structure in names[:2]:
        ticket_of(structure).save(tmp_path / "search-0" / structure / "ticket")
    page = Page(tmp_path / "a report", "", "")
    add_masks(page, [Search(tmp_path / "search-0", {}, results, ())])
    ((_, _, html),) = page.sections
    assert html.count("<img ") == 3
    (tmp_path / "search-0" / "refill" / "ticket.safetensors").write_bytes(b"damaged")
    page = Page(tmp_path / "a report", "", "")
    add_masks(page, [Search(tmp_path / "search-0", {}, results, ())])
    ((_, _, html),) = page.sections
    assert "refill" in html
    assert "<img " not in html


def test_of_a_mask_that_is_too_large_some_rows_and_columns_are_shown(
    ticket_of: Callable[[str], Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_pictures, "LONGEST", 3)
    (picture,) = pictures_of("conv", ticket_of("unstructured"), [])
    assert picture.every == 2
    assert _decoded(picture.image) == [[1, 1], [1, 1]]
