"""Masks as pictures: a layer's weight matrix before and after a structure, also in the order of what is executed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lt_lightning.pruning.layers import weight_of
from lt_lightning.report.contents import Search
from lt_lightning.report.figures import GREY, Picture
from lt_lightning.report.page import Page, chooser, paragraph, side_by_side
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result
from lt_lightning.storage.files import replacing
from lt_lightning.storage.layout import UNSTRUCTURED
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Plan
from lt_lightning.tickets.ticket import Ticket

# Pruned, kept by both, added by the structure, dropped by it; Okabe and Ito's colours.
PALETTE = ((255, 255, 255), (0, 114, 178), (230, 159, 0), (204, 190, 200))
MEANING = ("pruned", "kept", "refilled: kept by the structure alone", "dropped by the structure")
REORDERED = ", reordered"  # at the end of a picture's title
LONGEST = 2304  # rows or columns of a picture; of a larger matrix every so many-th is shown
LAYERS = 6  # of a network, evenly spaced, since pictures are large
WIDTH = 1100  # pixels of a mask in a PNG, where it is not larger

Pictures = Mapping[str, Mapping[str, Sequence[Picture]]]
"""Pictures by search and round, then by layer."""

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
    rest = [row for row in range(rows) if row not in set(ordered)]
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
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=2, optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(title, source, matrix.shape[0], matrix.shape[1], every)


def image_of(picture: Picture) -> Image.Image:
    """Return the pixels of a picture."""
    return Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2])))


# The part of the page.


def mask_pictures(searches: Sequence[Search]) -> tuple[Pictures, list[str]]:
    """Return pictures of one search for each data set, network and setting, the first whose tickets can be read.

    Returns:
        the pictures, and a line for each search that cannot be read.
    """
    pictures: dict[str, Mapping[str, Sequence[Picture]]] = {}
    problems: list[str] = []
    shown: set[tuple[tuple[str, str], str]] = set()
    for search in searches:
        if (search.data_and_model, search.setting) in shown:
            continue
        try:
            number, drawn = _masks_of(search)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{search.folder.name}: {error}")
            continue
        if drawn:
            shown.add((search.data_and_model, search.setting))
            pictures[f"{search.folder.name}, round {number}"] = drawn
    return pictures, problems


def _masks_of(search: Search) -> tuple[int, dict[str, list[Picture]]]:
    """Return the last round that has structured tickets, which is the sparsest, and pictures of it by layer."""
    pruned = [result for result in search.results if result.round > 0]
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


def add_masks(page: Page, pictures: Pictures, problems: Sequence[str]) -> None:
    """Add the part on masks."""
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    blocks = [paragraph(
        "Each picture shows a layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: "
        "rows and columns are in the order of the blocks that are executed. Tickets come first, then controls that "
        "keep other weights, compared with the same mask of the search. Drag to zoom, double-click to go back."
    ), f'<p class="key">{key}</p>']  # fmt: skip
    blocks += map(paragraph, problems)
    choices = {
        f"{name}: {layer}": "".join(
            side_by_side(*(page.figure(picture) for picture in each)) for each in _by_ticket(drawn)
        )
        for name, layers in pictures.items()
        for layer, drawn in layers.items()
    }
    blocks.append(chooser("mask-choice", "Layer", choices) if choices else paragraph("No pruned ticket is there yet."))
    page.add("masks", "Masks", *blocks)


def _by_ticket(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Return what stands beside each other: a ticket's mask as it is, and reordered."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        if picture.title.endswith(REORDERED):
            rows[-1].append(picture)
        else:
            rows.append([picture])
    return rows


# A PNG.


def write_masks_png(path: Path, title: str, pictures: Sequence[Picture]) -> None:
    """Draw a layer's mask by the search and after every structure, below each other; rows are filters."""
    times = min(max(1, WIDTH // pictures[0].columns), 8)
    font, line = ImageFont.load_default(18), 30
    blocks = [(f"{each.title}: {each.rows} filters x {each.columns} weights", image_of(each)) for each in pictures]
    texts = (title, *(text for text, _ in blocks))
    width = max(times * pictures[0].columns, *(int(font.getlength(text)) for text in texts))
    height = line * (len(blocks) + 2 + len(MEANING)) + sum((times * each.rows + line // 2) for each in pictures)
    canvas = Image.new("RGB", (width + 2 * line, height + line), "white")
    drawing = ImageDraw.Draw(canvas)
    drawing.text((line, line // 2), title, "black", font)
    y = 2 * line
    for text, image in blocks:
        drawing.text((line, y), text, "black", font)
        drawn = image.convert("RGB").resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
        canvas.paste(drawn, (line, y + line))
        drawing.rectangle((line - 1, y + line - 1, line + drawn.width, y + line + drawn.height), outline=GREY)
        y += line + drawn.height + line // 2
    for colour, meaning in zip(PALETTE, MEANING, strict=True):
        drawing.rectangle((line, y + 4, line + 16, y + 20), colour, GREY)
        drawing.text((line + 26, y), meaning, "black", font)
        y += line
    with replacing(path) as partial:
        canvas.save(partial, "PNG")
