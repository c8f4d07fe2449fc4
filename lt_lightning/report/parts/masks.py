"""The masks as pictures: before, after each structure, and in the order of what is executed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lt_lightning.report.figures import mask_figure
from lt_lightning.report.found import Search, name_of
from lt_lightning.report.masks import MEANING, PALETTE, pictures_of
from lt_lightning.report.page import Page, chooser, paragraph, side_by_side
from lt_lightning.study.places import UNSTRUCTURED
from lt_lightning.study.results import Result
from lt_lightning.ticket import Ticket

LAYERS = 6  # shown of a network, evenly spaced: pictures are large
OTHER_MASKS = ("shuffle", "random")  # twins that keep other weights than their tickets


def add_masks(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part: of every data set, network and setting the first search whose tickets can be read."""
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    blocks = [paragraph(
        "A layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: rows and columns in "
        "the order of the blocks that are executed. Tickets first; then twins that keep other weights, against the "
        "same mask of the search. Drag to zoom, double-click to go back."
    ), f'<p class="key">{key}</p>']  # fmt: skip
    choices: dict[str, str] = {}
    shown: set[tuple[tuple[str, str], str]] = set()
    for search in searches:
        if (search.kind, search.setting) in shown:
            continue
        try:
            drawn = _masks_of(page, search)
        except (OSError, ValueError, KeyError) as error:
            blocks.append(paragraph(f"{search.folder.name}: {error}"))
            continue
        if drawn:
            shown.add((search.kind, search.setting))
            choices |= drawn
    blocks.append(chooser("mask-choice", "Layer", choices) if choices else paragraph("No pruned ticket is there yet."))
    page.add("masks", "Masks", *blocks)


def _masks_of(page: Page, search: Search) -> dict[str, str]:
    """Pictures of the last round, by layer: that one is the sparsest, and best seen with all its structures."""
    pruned = [result for result in search.results if result.round > 0]
    structured = [result for result in pruned if result.structure != UNSTRUCTURED]
    number = max((result.round for result in structured or pruned), default=0)
    places = {name_of(result): search.place_of(result) for result in _shown(pruned) if result.round == number}
    if UNSTRUCTURED not in places:
        return {}
    before = Ticket.load(places.pop(UNSTRUCTURED) / "ticket")
    after = [Ticket.load(place / "ticket") for place in places.values()]
    layers = [name for name in before.card.get("prunable", ()) if f"{name}.weight" in before.masks]
    step = max(1, math.ceil(len(layers) / LAYERS))
    return {
        f"{search.folder.name}, round {number}: {layer}": side_by_side(
            *(page.figure(mask_figure(picture)) for picture in pictures_of(layer, before, after))
        )
        for layer in layers[::-step][::-1]
    }


def _shown(results: Sequence[Result]) -> list[Result]:
    """Tickets, then the twins whose masks are their own."""
    return [each for each in results if not each.twin] + [each for each in results if each.twin in OTHER_MASKS]
