"""Structurally sparse lottery tickets: search, structure, retrain, test."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_lightning.callback import LotteryTicketPruning
    from lt_lightning.classifier import ImageClassifier
    from lt_lightning.export.network import load_network
    from lt_lightning.retrain import TicketTraining
    from lt_lightning.structures.refill import Refill
    from lt_lightning.structures.regroup import Regroup
    from lt_lightning.ticket import Ticket

__all__ = ["ImageClassifier", "LotteryTicketPruning", "Refill", "Regroup", "Ticket", "TicketTraining", "load_network"]

_HOMES = {
    "ImageClassifier": "classifier",
    "LotteryTicketPruning": "callback",
    "Refill": "structures.refill",
    "Regroup": "structures.regroup",
    "Ticket": "ticket",
    "TicketTraining": "retrain",
    "load_network": "export.network",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use: tickets and structures need torch only, not Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
