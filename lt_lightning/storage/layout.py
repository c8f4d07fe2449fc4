"""Where a search keeps its tickets, the names of tickets that no structure may take, and what every round reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from lt_lightning.storage.files import read_json, write_json

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


# `rounds.json`: what every round of a search reached. A round that it lacks is not finished.

FILE = "rounds.json"


class RoundFacts(TypedDict):
    """What one round reached.

    Attributes:
        round: number of the round; 0 is the dense training.
        density: share of the prunable weights that its mask keeps.
        best_epoch: best epoch, counted from 0 at the start of the round's training.
        metrics: metrics of the validation in that epoch.
        train_seconds: duration of the training.
        sparsify_seconds: duration of the training in which the masks formed, if there was one.
    """

    round: int
    density: float
    best_epoch: int
    metrics: dict[str, float]
    train_seconds: float
    sparsify_seconds: NotRequired[float]


def write_rounds(search: Path, rounds: Sequence[RoundFacts]) -> None:
    """Write what the rounds of a search have reached."""
    write_json(search / FILE, list(rounds))


def read_rounds(search: Path) -> list[RoundFacts]:
    """Return what the finished rounds of a search have reached; nothing of what cannot be read."""
    try:
        rounds: Any = read_json(search / FILE)
        return [facts for facts in rounds if isinstance(facts["round"], int) and isinstance(facts["density"], float)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def trained_rounds(search: Path) -> list[int]:
    """Return the rounds of a search, finished or not, whose trained tickets are there."""
    return [facts["round"] for facts in read_rounds(search)]


class History(list[RoundFacts]):
    """The finished rounds of a search, the dense one first; it prints as a table.

    >>> facts = {"density": 0.8, "best_epoch": 3, "metrics": {"val_acc": 0.9}, "train_seconds": 12.3}
    >>> History([RoundFacts(round=1, **facts)])
    round  density  best epoch  seconds  val_acc
        1    80.0%           3     12.3      0.9
    """

    def last_line(self, rounds: int) -> str:
        """Return one line on the last of the finished rounds, of which there are to be so many after the dense one."""
        facts = self[-1]
        metrics = "".join(f", {name} {value:.4g}" for name, value in facts["metrics"].items())
        return (
            f"round {facts['round']} of {rounds}: density {facts['density']:.1%}, best epoch {facts['best_epoch']}"
            f"{metrics}, {facts['train_seconds']:.1f} s"
        )

    def __repr__(self) -> str:
        names = list(dict.fromkeys(name for facts in self for name in facts["metrics"]))
        rows = [["round", "density", "best epoch", "seconds", *names]]
        for facts in self:
            metrics = [f"{facts['metrics'][name]:.4g}" if name in facts["metrics"] else "" for name in names]
            numbers = [str(facts["round"]), f"{facts['density']:.1%}", str(facts["best_epoch"])]
            rows.append([*numbers, f"{facts['train_seconds']:.1f}", *metrics])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(lines)
