"""Masks as pictures: a layer's weight matrix before and after a structure, also in the order of what is executed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lt_lightning.pruning.layers import weight_of
from lt_lightning.report.contents import Search, file_name
from lt_lightning.report.page import Html, Page, chooser, first_of, paragraph
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result
from lt_lightning.storage.files import replacing
from lt_lightning.storage.layout import UNSTRUCTURED, is_ticket
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, HybridPlan, Plan, blocks_in_full
from lt_lightning.tickets.ticket import Ticket

# Pruned, kept by both, added by the structure, dropped by it; Okabe and Ito's colours.
PALETTE = ((255, 255, 255), (0, 114, 178), (230, 159, 0), (214, 202, 211))
MEANING = ("pruned", "kept", "refilled: kept by the structure alone", "dropped by the structure")
REORDERED = ", reordered"  # at the end of a picture's title
LONGEST = 2304  # rows or columns of a picture; of a larger matrix every so many-th is shown
LAYERS = 6  # of a network, evenly spaced, since pictures are large
SEARCHES = 12  # whose masks are drawn


@dataclass(frozen=True)
class Picture:
    """The mask of one layer as a picture; rows are filters, columns the weights of a filter.

    Attributes:
        title: what the mask is of.
        image: the pixels.
        every: how many rows and columns of the mask one of the picture stands for.
    """

    title: str
    image: Image.Image
    every: int = 1


# One layer's mask.


def classes(before: Tensor, after: Tensor) -> Tensor:
    """Return the index into `MEANING` of every weight: uint8, (filters, inputs x kernel positions).

    >>> classes(torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])).tolist()
    [[1, 3, 2, 0]]
    """
    before, after = before.bool().flatten(1), after.bool().flatten(1)
    return (before & after).byte() + 2 * (~before & after).byte() + 3 * (before & ~after).byte()


def block_order(blocks: Sequence[Block], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return orders of rows and columns in which the rows of every block, and where possible its columns, are together.

    Rows come block by block. Columns are sorted by which blocks have them, the first block's first.

    >>> blocks = [Block(torch.tensor([2]), torch.tensor([1, 2])), Block(torch.tensor([0]), torch.tensor([2]))]
    >>> [order.tolist() for order in block_order(blocks, 3, 3)]
    [[2, 0, 1], [2, 1, 0]]
    """
    ordered = list(dict.fromkeys(int(row) for block in blocks for row in block.rows))
    rest = sorted(set(range(rows)).difference(ordered))
    member = np.zeros((len(blocks), columns), dtype=bool)
    for index, block in enumerate(blocks):
        member[index, block.columns.numpy()] = True
    by_column = np.lexsort((np.arange(columns), *~member[::-1])) if len(blocks) else np.arange(columns)
    return torch.tensor(ordered + rest), torch.from_numpy(by_column)


def order_of(plan: Plan | None, layer: str, shape: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Return orders of rows and columns that show what a plan executes of a layer.

    Args:
        plan: plan of the ticket.
        layer: name of the layer.
        shape: shape of the layer's weight.

    Returns:
        the orders, or None if the plan does not name the layer.
    """
    if isinstance(plan, HybridPlan):
        here = {name: blocks for name, blocks in plan.blocks.blocks.items() if name == layer}
        alone = replace(plan, blocks=replace(plan.blocks, blocks=here))
        plan = blocks_in_full(alone, {weight_of(layer, ()): shape}) if here else plan.channels
    taps = int(np.prod(shape[2:], dtype=int))
    columns = int(np.prod(shape[1:], dtype=int))
    if isinstance(plan, BlockPlan) and layer in plan.blocks:
        blocks = plan.blocks[layer]
        if plan.granularity == "input_channel":
            blocks = [Block(block.rows, _expanded(block.columns, taps)) for block in blocks]
        return block_order(blocks, shape[0], columns)
    if isinstance(plan, ChannelPlan) and (layer in plan.outputs or layer in plan.inputs):
        kept_in = plan.inputs.get(layer)
        kept_out = plan.outputs.get(layer)
        block = Block(
            torch.arange(shape[0]) if kept_out is None else kept_out,
            torch.arange(columns) if kept_in is None else _expanded(kept_in, taps),
        )
        return block_order([block], shape[0], columns)
    return None


def pictures_of(layer: str, before: Ticket, after: Sequence[Ticket]) -> list[Picture]:
    """Return a layer's mask by the search, and after each structure: as it is, and in the order of the blocks.

    Args:
        layer: name of the layer.
        before: ticket of the search.
        after: tickets made from it.
    """
    name = weight_of(layer, before.masks)
    mask = before.masks[name]
    pictures = [_picture(_title(before), classes(mask, mask))]
    for ticket in after:
        if name not in ticket.masks:
            continue
        title = _title(ticket)
        shown = classes(mask, ticket.masks[name])
        if ticket is not before:
            pictures.append(_picture(title, shown))
        if (order := order_of(ticket.plan, layer, mask.shape)) is not None:
            pictures.append(_picture(f"{title}{REORDERED}", shown[order[0]][:, order[1]]))
    return pictures


def _title(ticket: Ticket) -> str:
    kind = TicketKind(*(str(ticket.card.get(key, "")) for key in ("structure", "control", "origin")))
    return "search (unstructured)" if kind == TicketKind(UNSTRUCTURED) else str(kind)


def _expanded(channels: Tensor, taps: int) -> Tensor:
    """Return the columns of whole input channels."""
    return (channels[:, None] * taps + torch.arange(taps)).flatten()


def _picture(title: str, matrix: Tensor) -> Picture:
    every = -(-max(matrix.shape) // LONGEST)
    matrix = matrix[::every, ::every]
    image = Image.fromarray(matrix.contiguous().numpy(), mode="P")
    image.putpalette([value for colour in PALETTE for value in colour])
    return Picture(title, image, every)


# The part of the page.


def add_masks(page: Page, searches: Sequence[Search]) -> None:
    """Add the part on masks, and write their pictures as files beside the page."""
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    drawn, rest = first_of(searches, SEARCHES, "searches", "the masks of the others are in their tickets")
    blocks = [paragraph(
        "Each picture shows a layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: "
        "rows and columns are in the order of the blocks that are executed. Tickets come first, then controls that "
        "keep other weights, compared with the same mask of the search. A click opens the picture alone."
    ), f'<p class="key">{key}</p>', *rest]  # fmt: skip
    choices: dict[str, str] = {}
    failed = []
    for search in drawn:
        try:
            number, pictures = _masks_of(search)
        except (OSError, ValueError, KeyError) as error:
            failed.append(paragraph(f"{search.folder.name}: {error}"))
            continue
        for layer, each in pictures.items():
            stem = f"{search.folder.name}_round_{number}_{layer}"
            choices[f"{search.folder.name}, round {number}: {layer}"] = "".join(_shown(page, stem, layer, each))
    if choices:
        blocks.append(chooser("mask-choice", "Layer", choices))
    if choices or failed:
        page.add("masks", "Masks", *blocks, *failed)


def _shown(page: Page, stem: str, layer: str, pictures: Sequence[Picture]) -> Iterator[str]:
    """Yield the HTML of pictures, a ticket's mask as it is beside the reordered one, and write each as a file."""
    for index, picture in enumerate(pictures):
        path = page.folder / "masks" / f"{file_name(f'{stem}_{picture.title}')}.png"
        with replacing(path) as partial:
            picture.image.save(partial, "PNG", bits=2, optimize=True)
        columns, rows = picture.image.size
        share = f", 1 of {picture.every} rows and columns" if picture.every > 1 else ""
        caption = f"{picture.title}: {rows} filters x {columns} weights{share}"
        times = max(1, min(480 // columns, 320 // rows))
        image = Html(
            f'<img src="{page.address(path)}" alt="{escape(f"mask of {layer}, {caption}")}" '
            f'width="{times * columns}" height="{times * rows}">'
        )
        if not picture.title.endswith(REORDERED):
            yield '</div><div class="masks">' if index else '<div class="masks">'
        yield f"<figure>{page.link(path, image)}<figcaption>{escape(caption)}</figcaption></figure>"
    yield "</div>"


def _masks_of(search: Search) -> tuple[int, dict[str, list[Picture]]]:
    """Return the last round that has structured tickets, which is the sparsest, and pictures of it by layer."""
    pruned = [result for result in search.results if result.round > 0 and is_ticket(search.folder_of(result))]
    structured = [result for result in pruned if result.structure != UNSTRUCTURED]
    number = max((result.round for result in structured or pruned), default=0)
    folders = {result.kind: search.folder_of(result) for result in _with_masks(pruned) if result.round == number}
    if not folders:
        return number, {}
    tickets = {kind: Ticket.load(folder / "ticket") for kind, folder in folders.items()}
    before = tickets.get(TicketKind(UNSTRUCTURED)) or next(iter(tickets.values()))  # or what the search goes on from
    after = [ticket for kind, ticket in tickets.items() if kind != TicketKind(UNSTRUCTURED)]
    layers = [name for name in before.card.get("prunable", ()) if weight_of(name, before.masks) in before.masks]
    step = max(1, math.ceil(len(layers) / LAYERS))
    return number, {layer: pictures_of(layer, before, after) for layer in layers[::-step][::-1]}


def _with_masks(results: Sequence[Result]) -> list[Result]:
    """Return the tickets, then the controls that keep other weights than their tickets."""
    tickets = [result for result in results if not result.control]
    return tickets + [result for result in results if result.control and math.isnan(result.retained_magnitude)]
