"""From an unstructured ticket to a structured one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from lt_lightning.pruning.masks import digest
from lt_lightning.structures.anatomy import Anatomy
from lt_lightning.structures.base import Batches, Structure, Subject
from lt_lightning.structures.ratios import ratios
from lt_lightning.ticket import Ticket


def structure_ticket(
    ticket: Ticket,
    name: str,
    structure: Structure,
    network: nn.Module,
    example: Tensor,
    gradients: Mapping[str, Tensor] | None = None,
    batches: Batches | None = None,
) -> Ticket:
    """Structures a copy of a trained ticket's mask (paper, algorithm 1: the round itself goes on unstructured).

    Args:
        ticket: unstructured and trained: its trained weights are scored.
        name: of the structure, for the card.
        structure: what to apply.
        network: the ticket's; its values do not matter and are left alone.
        example: an input batch of the true shape.
        gradients: of the loss by the trained weights, for structures that need them.
        batches: gives that many training batches, the same at every call, for structures that look at feature maps;
            on the device that they are looked at on.

    Returns:
        an untrained ticket that restarts from the same values.

    Raises:
        ValueError: if the ticket was not trained, or gradients or batches are needed and missing.
    """
    if ticket.trained is None:
        raise ValueError(f"structure {name!r} scores trained weights, and the ticket holds none")
    subject = Subject(Anatomy(network, example), ticket.masks, ticket.trained, gradients, batches)
    return make_ticket(name, structure, subject, ticket.rewind, _lineage(ticket.card))


def make_ticket(
    name: str,
    structure: Structure,
    subject: Subject,
    rewind: Mapping[str, Tensor],
    card: Mapping[str, Any] | None = None,
) -> Ticket:
    """Applies a structure to one round's unstructured mask.

    Args:
        name: of the structure, for the card.
        structure: what to apply.
        subject: network, masks and trained weights of the round.
        rewind: the values that the ticket restarts from.
        card: what the ticket's card tells besides.

    Raises:
        ValueError: if gradients or batches are needed and missing.
    """
    if structure.needs_gradients and subject.gradients is None:
        raise ValueError(
            f"structure {name!r} needs gradients: set pruning.gradient_batches to the number of batches "
            "to sum them over"
        )
    structured = structure(subject)
    prunable = [layer.name for layer in subject.prunable]
    parameters = {key: parameter.numel() for key, parameter in subject.network.named_parameters()}
    facts = {
        **(card or {}),
        "structure": name,
        **asdict(ratios(structured.layers, prunable, structured.masks, parameters)),
        "prunable": prunable,
        "mask_digest": digest(structured.masks),
    }
    return Ticket(structured.masks, rewind, None, structured.plan, structured.layers, facts)


def _lineage(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a structured ticket has in common with the one it was made from."""
    return {key: value for key, value in card.items() if key in ("data", "model", "seed", "round", "rewind", "mode")}
