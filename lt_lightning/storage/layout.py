"""Where a search keeps its tickets, and the names of tickets that no structure may take; quick to import."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DENSE: Final = "dense"
"""Name of the dense network's ticket, of round 0."""

UNSTRUCTURED: Final = "unstructured"
"""Name of a round's ticket before any structure."""

TICKET: Final = "ticket"
"""Stem of a ticket's files in its folder."""


def round_folder(search: Path, number: int) -> Path:
    """Return the folder of all tickets of a round."""
    return search / f"round_{number:02d}"


def is_ticket(folder: Path) -> bool:
    """Whether there is a ticket in a folder, trained or not."""
    return (folder / f"{TICKET}.safetensors").is_file()
