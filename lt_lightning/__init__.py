"""Structurally sparse lottery tickets: search, structure, retrain, test."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_lightning.pruning.rewinding import Restart
    from lt_lightning.structures.filters import Filters
    from lt_lightning.structures.refill import Refill
    from lt_lightning.structures.regroup import Regroup
    from lt_lightning.tickets.export.network_file import load_network
    from lt_lightning.tickets.hybrid import Hybrid
    from lt_lightning.tickets.shrinking import ShrunkNetwork, load_shrunk, shrink
    from lt_lightning.tickets.ticket import Ticket
    from lt_lightning.training.callback import LotteryTicketPruning
    from lt_lightning.training.classifier import ImageClassifier
    from lt_lightning.training.retraining import TicketTraining

__version__ = "0.1.0"
__all__ = [
    "Filters",
    "Hybrid",
    "ImageClassifier",
    "LotteryTicketPruning",
    "Refill",
    "Regroup",
    "Restart",
    "ShrunkNetwork",
    "Ticket",
    "TicketTraining",
    "load_network",
    "load_shrunk",
    "shrink",
]

_HOMES = {
    "Filters": "structures.filters",
    "Hybrid": "tickets.hybrid",
    "ImageClassifier": "training.classifier",
    "LotteryTicketPruning": "training.callback",
    "Refill": "structures.refill",
    "Regroup": "structures.regroup",
    "Restart": "pruning.rewinding",
    "ShrunkNetwork": "tickets.shrinking",
    "Ticket": "tickets.ticket",
    "TicketTraining": "training.retraining",
    "load_network": "tickets.export.network_file",
    "load_shrunk": "tickets.shrinking",
    "shrink": "tickets.shrinking",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: tickets and structures need torch only, not Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
