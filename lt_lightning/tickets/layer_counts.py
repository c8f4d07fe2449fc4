"""How many weights of each layer another search kept, for a search whose layers get the same densities."""

from __future__ import annotations

from pathlib import Path

from lt_lightning.pruning.masks import Masks, kept, size
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED, round_folder
from lt_lightning.storage.rounds import FILE, read_rounds
from lt_lightning.tickets.ticket import Ticket


def layer_counts(search: Path, masks: Masks, density: float) -> dict[str, int]:
    """Return how many weights of each parameter a search kept in its round of a density.

    Args:
        search: directory of the search, with `rounds.json`.
        masks: masks of the parameters to count.
        density: density that one of the rounds pruned to.

    Raises:
        ValueError: if no round did, or its masks are those of another network.
    """
    if not (rounds := read_rounds(search)):
        raise ValueError(f"imp={search}: no search ended there, {FILE} is missing")
    wanted = round(density * size(masks))
    for facts in rounds:
        if facts["round"] > 0 and round(facts["density"] * size(masks)) == wanted:
            return _counts(round_folder(search, facts["round"]) / UNSTRUCTURED / TICKET, masks)
    raise ValueError(f"imp={search}: none of its rounds has a density of {density:.4g}")


def _counts(path: Path, masks: Masks) -> dict[str, int]:
    theirs = Ticket.load(path).masks
    if {name: mask.shape for name, mask in theirs.items()} != {name: mask.shape for name, mask in masks.items()}:
        raise ValueError(f"imp={path.parents[2]}: is the search of a network with other prunable weights")
    return {name: kept({name: mask}) for name, mask in theirs.items()}
