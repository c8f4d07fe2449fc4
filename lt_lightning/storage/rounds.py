"""`rounds.json`: what every round of a search reached. A round that it lacks is not finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from lt_lightning.storage.files import read_json, write_json

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
