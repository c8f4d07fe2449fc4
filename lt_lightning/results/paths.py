"""Where results lie under the folder of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TICKET: Final = "ticket"
"""Stem of a ticket's files in its folder."""


def round_folder(search: Path, number: int) -> Path:
    """Return the folder of all tickets of a round."""
    return search / f"round_{number:02d}"


def is_ticket(folder: Path) -> bool:
    """Whether there is a ticket in a folder, trained or not."""
    return (folder / f"{TICKET}.safetensors").is_file()
