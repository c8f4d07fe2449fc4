"""Masks as pictures: a layer's weight matrix before and after a structure, also with its blocks put together."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lt_lightning.report.contents import named
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Plan
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.ticket import Ticket

# Pruned, kept by both, added by the structure, dropped by it; Okabe and Ito's colours.
PALETTE = ((255, 255, 255), (0, 114, 178), (230, 159, 0), (204, 190, 200))
MEANING = ("pruned", "kept", "refilled: kept by the structure alone", "dropped by the structure")
REORDERED = ", reordered"  # at the end of a picture's title
LONGEST = 2304  # rows or columns of a picture; of a larger matrix every so many-th is shown


@dataclass(frozen=True)
class Picture:
    """Of one layer's mask as a matrix: filters x (inputs x kernel positions).

    Attributes:
        title: for people.
        source: PNG as a data URI.
        rows: of the picture.
        columns: likewise.
        every: of so many rows and columns one is shown.
    """

    title: str
    source: str
    rows: int
    columns: int
    every: int = 1

    def image(self) -> Image.Image:
        """For drawing."""
        return Image.open(io.BytesIO(base64.b64decode(self.source.partition(",")[2])))


def classes(before: Tensor, after: Tensor) -> Tensor:
    """Index into `MEANING` of every weight: uint8, (filters, inputs x kernel positions).

    >>> classes(torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])).tolist()
    [[1, 3, 2, 0]]
    """
    before, after = before.bool().flatten(1), after.bool().flatten(1)
    return (before & after).byte() + 2 * (~before & after).byte() + 3 * (before & ~after).byte()


def block_order(blocks: Sequence[Block], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Orders of rows and columns in which every block's rows, and as far as can be its columns, stand together.

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
    """Orders of rows and columns that show what a plan executes of a layer; None if it says nothing of it.

    Args:
        plan: of the ticket.
        layer: its name.
        shape: of its weight.
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
    """A layer's mask by the search, and after each structure: as in the network, and in the order of its blocks."""
    name = f"{layer}.weight"
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
    structure = str(ticket.card.get("structure", "structured"))
    return (
        "search (unstructured)" if structure == UNSTRUCTURED else named(structure, str(ticket.card.get("control", "")))
    )


def _expanded(channels: Tensor, taps: int) -> Tensor:
    """Columns of whole input channels."""
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
