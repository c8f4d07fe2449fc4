"""Tasks of a job and the folders of their results; how tickets are named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FROM_START = ("reinit", "small_dense")  # trained from initial values on, for the whole schedule


@dataclass(frozen=True)
class Task:
    """What one process does in one go: a whole search, or the retraining of one structured ticket.

    Attributes:
        folder: of the task; what determines the result hashes to its name.
        label: for people.
        number: round whose ticket is retrained; 0 for a search.
        structure: name of the structure; empty for a search.
        parts: folders, each with a result when the task is finished.
        control: of `CONTROLS`, if it is the control of a ticket; else empty.
        source: folder of the ticket that a control is made from.
    """

    folder: Path
    label: str
    number: int
    structure: str
    parts: tuple[Path, ...]
    control: str = ""
    source: Path | None = None

    @property
    def whole_schedule(self) -> bool:
        """Whether a retraining lasts as long as the dense one, whatever the rewind point."""
        return self.control in FROM_START


def round_folder(search: Path, number: int) -> Path:
    """Folder of all tickets of a round."""
    return search / f"round_{number:02d}"


FROM = " from "


def told(structure: str, source: Path) -> str:
    """Names a ticket that is taken from a search: `refill from digits-resnet8-s0-1a2b3c4d`."""
    return f"{structure}{FROM}{source.name}"


def parted(name: str) -> tuple[str, str]:
    """Structure and search of such a name; no search where it is a ticket of the job's own.

    >>> parted("refill from digits-resnet8-s0-1a2b3c4d"), parted("refill")
    (('refill', 'digits-resnet8-s0-1a2b3c4d'), ('refill', ''))
    """
    structure, _, source = name.partition(FROM)
    return structure, source


def confirmed(structure: str, epochs: int) -> str:
    """Names a ticket that was found by a search with trainings of so many epochs, and is trained for more.

    >>> confirmed("refill", 20)
    'refill, confirmed after screening of 20 epochs'
    """
    return f"{structure}, confirmed after screening of {epochs} epochs"


def unconfirmed(name: str) -> str:
    """The structure of such a name; any other is left as it is.

    >>> unconfirmed("refill, confirmed after screening of 20 epochs"), unconfirmed("refill")
    ('refill', 'refill')
    """
    return re.sub(r", confirmed after screening of \d+ epochs$", "", name)


def is_confirmed(name: str) -> bool:
    """Whether it is such a name."""
    return unconfirmed(name) != name
