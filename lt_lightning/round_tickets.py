"""The tickets of every round on disk: the one that it trains, and those of the structures at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lt_lightning.files import write_json, write_tensors
from lt_lightning.pruning.masks import Masks, digest
from lt_lightning.structures.base import Structure, Subject
from lt_lightning.structures.unstructured import Unstructured
from lt_lightning.structuring import make_ticket
from lt_lightning.ticket import Ticket
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED


@dataclass(frozen=True)
class RoundTickets:
    """Makes, writes and reads the tickets of one search.

    Args:
        directory: where they are written: `round_00/dense`, `round_01/unstructured`, and so on.
        structures: applied to a copy of every round's mask at the round's end.
        trained: `unstructured`, or the name of the structure whose ticket a round trains.
        card: what every ticket's card tells besides its round.
    """

    directory: Path
    structures: Mapping[str, Structure]
    trained: str
    card: Mapping[str, Any]

    def make(self, number: int, subject: Subject, rewind: Mapping[str, Tensor]) -> Ticket:
        """The ticket that a round trains, from the masks of its beginning."""
        return self._made(number, self._trained_in(number), subject, rewind)

    def begin(self, number: int, ticket: Ticket) -> None:
        """Writes the ticket that a round is about to train."""
        ticket.save(self._path(number, self._trained_in(number)))

    def begun(self, number: int, held: Masks) -> Ticket:
        """Reads the ticket that a round trains, as it was written when the round began.

        Raises:
            ValueError: if the masks held now are others.
        """
        path = self._path(number, self._trained_in(number))
        ticket = Ticket.load(path)
        if ticket.card["mask_digest"] != digest(held):
            raise ValueError(f"mask integrity: {path} holds other masks than round {number} trains")
        return ticket

    def end(self, number: int, ticket: Ticket, subject: Subject, training: Mapping[str, Any]) -> None:
        """Writes what a round came to: its ticket, trained to the subject's weights, and one for each structure.

        Args:
            number: of the round.
            ticket: that it trained.
            subject: the network with the round's masks and trained weights.
            training: `best_epoch`, `metrics` and `train_seconds`, for the trained ticket's card.
        """
        ticket.with_training(subject.weights, **training).save(self._path(number, self._trained_in(number)))
        if subject.gradients is not None:
            write_tensors(self._folder(number) / "gradients.pt", subject.gradients)
        if number > 0 and self.trained == UNSTRUCTURED:
            for name in self.structures:
                self._made(number, name, subject, ticket.rewind).save(self._path(number, name))

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes `rounds.json`: what every round reached. Tickets of rounds that it lacks are not to be taken."""
        write_json(self._history, list(history))

    @property
    def has_history(self) -> bool:
        """Whether a search has written some here before."""
        return self._history.exists()

    @property
    def _history(self) -> Path:
        return self.directory / "rounds.json"

    def _made(self, number: int, name: str, subject: Subject, rewind: Mapping[str, Tensor]) -> Ticket:
        structure = self.structures.get(name, Unstructured())
        return make_ticket(name, structure, subject, rewind, {"round": number, **self.card})

    def _trained_in(self, number: int) -> str:
        return self.trained if number > 0 else DENSE

    def _path(self, number: int, name: str) -> Path:
        return self._folder(number) / name / "ticket"

    def _folder(self, number: int) -> Path:
        return self.directory / f"round_{number:02d}"
