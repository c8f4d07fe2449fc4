"""The kind of a ticket: what tells tickets of one round apart, besides their options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class TicketKind:
    """What tells tickets of one round apart.

    Attributes:
        structure: `dense`, `unstructured`, or the name of a structure.
        control: which control of the ticket it is (`reinit`, ...); empty for the ticket itself.
        origin: the data set whose search found its mask; empty where it is the job's own search.
    """

    structure: str
    control: str = ""
    origin: str = ""

    def __str__(self) -> str:
        """The kind as tables show it.

        >>> print(TicketKind("refill", "reinit"), TicketKind("refill", origin="cifar10"), sep="; ")
        refill (reinit control); refill from cifar10
        """
        control = f" ({self.control} control)" if self.control else ""
        return f"{self.structure}{control}" + (f" from {self.origin}" if self.origin else "")
