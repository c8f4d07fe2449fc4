"""The masks as pictures: before, after each structure, and in the order of what is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lt_lightning.report.figures import mask_figure
from lt_lightning.report.found import Search, name_of
from lt_lightning.report.masks import MEANING, PALETTE, REORDERED, Picture, pictures_of
from lt_lightning.report.page import Page, chooser, paragraph, side_by_side
from lt_lightning.study.results import Result
from lt_lightning.ticket import Ticket
from lt_lightning.ticket_names import UNSTRUCTURED

LAYERS = 6  # shown of a network, evenly spaced: pictures are large
OTHER_MASKS = ("shuffle", "random")  # twins that keep other weights than their tickets


Pictures = dict[str, dict[str, list[Picture]]]
"""By search and round, then by layer."""


def mask_pictures(searches: Sequence[Search]) -> tuple[Pictures, list[str]]:
    """Of every data set, network and setting the first search whose tickets can be read; and what could not be read."""
    pictures: Pictures = {}
    problems: list[str] = []
    shown: set[tuple[tuple[str, str], str]] = set()
    for search in searches:
        if (search.kind, search.setting) in shown:
            continue
        try:
            number, drawn = _masks_of(search)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{search.folder.name}: {error}")
            continue
        if drawn:
            shown.add((search.kind, search.setting))
            pictures[f"{search.folder.name}, round {number}"] = drawn
    return pictures, problems


def add_masks(page: Page, pictures: Mapping[str, Mapping[str, Sequence[Picture]]], problems: Sequence[str]) -> None:
    """Adds the part."""
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    blocks = [paragraph(
        "A layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: rows and columns in "
        "the order of the blocks that are executed. Tickets first; then twins that keep other weights, against the "
        "same mask of the search. Drag to zoom, double-click to go back."
    ), f'<p class="key">{key}</p>']  # fmt: skip
    blocks += map(paragraph, problems)
    choices = {
        f"{name}: {layer}": "".join(
            side_by_side(*(page.figure(mask_figure(picture)) for picture in each)) for each in _by_ticket(drawn)
        )
        for name, layers in pictures.items()
        for layer, drawn in layers.items()
    }
    blocks.append(chooser("mask-choice", "Layer", choices) if choices else paragraph("No pruned ticket is there yet."))
    page.add("masks", "Masks", *blocks)


def _by_ticket(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """What stands beside each other: a ticket's mask as it is, and reordered."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        if picture.title.endswith(REORDERED):
            rows[-1].append(picture)
        else:
            rows.append([picture])
    return rows


def _masks_of(search: Search) -> tuple[int, dict[str, list[Picture]]]:
    """The last round, and pictures of it by layer: it is the sparsest, and best seen with all its structures."""
    pruned = [result for result in search.results if result.round > 0]
    structured = [result for result in pruned if result.structure != UNSTRUCTURED]
    number = max((result.round for result in structured or pruned), default=0)
    places = {name_of(result): search.place_of(result) for result in _shown(pruned) if result.round == number}
    if not places:
        return number, {}
    tickets = {name: Ticket.load(place / "ticket") for name, place in places.items()}
    before = tickets.get(UNSTRUCTURED) or next(iter(tickets.values()))  # a search may go on from a structure
    after = [ticket for name, ticket in tickets.items() if name != UNSTRUCTURED]
    layers = [name for name in before.card.get("prunable", ()) if f"{name}.weight" in before.masks]
    step = max(1, math.ceil(len(layers) / LAYERS))
    return number, {layer: pictures_of(layer, before, after) for layer in layers[::-step][::-1]}


def _shown(results: Sequence[Result]) -> list[Result]:
    """Tickets, then the twins whose masks are their own."""
    return [each for each in results if not each.twin] + [each for each in results if each.twin in OTHER_MASKS]
