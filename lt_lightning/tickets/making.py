"""How tickets are made: from a round's mask to a ticket on disk, and from an unstructured one to a structured one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lt_lightning.files import write_json, write_tensors
from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.masks import Masks, count_kept, digest
from lt_lightning.structures.base import Batches, LayerReport, Structure, StructureInput, Unstructured
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED
from lt_lightning.tickets.ticket import Ticket


@dataclass(frozen=True)
class Ratios:
    """Of a ticket to the dense network.

    Attributes:
        target_density: share of the prunable weights that the round's unstructured mask keeps.
        density: share of the prunable weights that the ticket executes; for an unstructured ticket, which cannot be
            executed sparsely, the share that it keeps.
        params_ratio: parameters to store, over all of the network's.
        flops_ratio: multiply-adds of convolutions and linear layers executed, over the dense network's; 1 for an
            unstructured ticket.
    """

    target_density: float
    density: float
    params_ratio: float
    flops_ratio: float


def ratios(
    layers: Mapping[str, LayerReport], prunable: Collection[str], masks: Masks, parameters: Mapping[str, int]
) -> Ratios:
    """Adds up the layers.

    Args:
        layers: a report per layer.
        prunable: names of the layers that are pruned.
        masks: of the ticket, by parameter name; those of other parameters than layer weights count as stored.
        parameters: number of elements of every parameter of the network, by name.
    """
    pruned = [layers[name] for name in prunable]
    size = sum(report.size for report in pruned)
    stored = dict(parameters)
    stored |= {name: count_kept(mask) for name, mask in masks.items()}
    for name, report in layers.items():
        stored[f"{name}.weight" if name else "weight"] = round(report.density * report.size)
    return Ratios(
        sum(report.asked for report in pruned) / size,
        sum(report.density * report.size for report in pruned) / size,
        sum(stored.values()) / sum(parameters.values()),
        sum(report.executed * report.positions for report in layers.values())
        / sum(report.size * report.positions for report in layers.values()),
    )


# From an unstructured ticket to a structured one.


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
    given = StructureInput(TracedNetwork(network, example), ticket.masks, ticket.trained, gradients, batches)
    return make_ticket(name, structure, given, ticket.rewind, _lineage(ticket.card))


def make_ticket(
    name: str,
    structure: Structure,
    given: StructureInput,
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
    if structure.needs_gradients and given.gradients is None:
        raise ValueError(
            f"structure {name!r} needs gradients: set pruning.gradient_batches to the number of batches "
            "to sum them over"
        )
    structured = structure(given)
    prunable = [layer.name for layer in given.prunable]
    parameters = {key: parameter.numel() for key, parameter in given.network.named_parameters()}
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


# The tickets of every round on disk: the one that it trains, and those of the structures at its end.


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

    def make(self, number: int, given: StructureInput, rewind: Mapping[str, Tensor]) -> Ticket:
        """The ticket that a round trains, from the masks of its beginning."""
        return self._made(number, self._trained_in(number), given, rewind)

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

    def end(self, number: int, ticket: Ticket, given: StructureInput, training: Mapping[str, Any]) -> None:
        """Writes what a round came to: its ticket, trained to the subject's weights, and one for each structure.

        Args:
            number: of the round.
            ticket: that it trained.
            subject: the network with the round's masks and trained weights.
            training: `best_epoch`, `metrics` and `train_seconds`, for the trained ticket's card.
        """
        ticket.with_training(given.weights, **training).save(self._path(number, self._trained_in(number)))
        if given.gradients is not None:
            write_tensors(self._folder(number) / "gradients.pt", given.gradients)
        if number > 0 and self.trained == UNSTRUCTURED:
            for name in self.structures:
                self._made(number, name, given, ticket.rewind).save(self._path(number, name))

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

    def _made(self, number: int, name: str, given: StructureInput, rewind: Mapping[str, Tensor]) -> Ticket:
        structure = self.structures.get(name, Unstructured())
        return make_ticket(name, structure, given, rewind, {"round": number, **self.card})

    def _trained_in(self, number: int) -> str:
        return self.trained if number > 0 else DENSE

    def _path(self, number: int, name: str) -> Path:
        return self._folder(number) / name / "ticket"

    def _folder(self, number: int) -> Path:
        return self.directory / f"round_{number:02d}"
