"""How tickets are made: from a round's mask to a ticket on disk, and from an unstructured one to a structured one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import weight_of
from lt_lightning.pruning.masks import Masks, count_kept, digest, kept, size
from lt_lightning.storage.files import write_tensors
from lt_lightning.storage.layout import DENSE, FILE, TICKET, UNSTRUCTURED, RoundFacts, read_rounds, round_folder
from lt_lightning.structures.base import Batches, LayerReport, Structure, StructureInput, Unstructured
from lt_lightning.tickets.ticket import Ticket, make_card


def layer_counts(search: Path, masks: Masks, density: float) -> dict[str, int]:
    """Return how many weights of each parameter a search kept in its round of a density.

    Args:
        search: directory of the search, with `rounds.json`.
        masks: masks of the parameters to count.
        density: density that one of the rounds pruned to.

    Raises:
        ValueError: if no round did, or its masks are those of another network.
    """
    if not (rounds := read_rounds(search)):
        raise ValueError(f"imp={search}: no search ended there, {FILE} is missing")
    wanted = round(density * size(masks))
    for facts in rounds:
        if facts["round"] > 0 and round(facts["density"] * size(masks)) == wanted:
            return _counts(round_folder(search, facts["round"]) / UNSTRUCTURED / TICKET, masks)
    raise ValueError(f"imp={search}: none of its rounds has a density of {density:.4g}")


def _counts(path: Path, masks: Masks) -> dict[str, int]:
    theirs = Ticket.load(path).masks
    if {name: mask.shape for name, mask in theirs.items()} != {name: mask.shape for name, mask in masks.items()}:
        raise ValueError(f"imp={path.parents[2]}: is the search of a network with other prunable weights")
    return {name: kept({name: mask}) for name, mask in theirs.items()}


# How tickets are made: from a round's mask to a ticket on disk, and from an unstructured one to a structured one.

GRADIENTS = "gradients.pt"  # in the folder of a round
# What a card says of the training of its ticket, and of no other that is made from it.
OF_TRAINING = (
    "epochs", "best_epoch", "metrics", "train_seconds", "execution", "distillation", "copies", "barrier", "averaged",
    "choice", "decided_by", "left_dense", "kept_whole",
)  # fmt: skip


@dataclass(frozen=True)
class Ratios:
    """A ticket's size and cost, as shares of the dense network's.

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
    """Add up the layers of a ticket.

    Args:
        layers: report of every layer, by name.
        prunable: names of the layers that are pruned.
        masks: the ticket's masks by parameter name; those of other parameters than layer weights count as stored.
        parameters: number of elements of every parameter of the network, by name; one that layers share stands under
            the name of the first.
    """
    pruned = [layers[name] for name in prunable]
    size = sum(report.size for report in pruned)
    stored = dict(parameters)
    stored |= {name: count_kept(mask) for name, mask in masks.items()}
    for name, report in layers.items():
        if (weight := weight_of(name, parameters)) in parameters:  # else it is that of a layer before
            stored[weight] = round(report.density * report.size)
    return Ratios(
        sum(report.target for report in pruned) / size,
        sum(report.density * report.size for report in pruned) / size,
        sum(stored.values()) / sum(parameters.values()),
        sum(report.executed * report.positions for report in layers.values())
        / sum(report.size * report.positions for report in layers.values()),
    )


# From a round's mask to a ticket


def make_ticket(
    name: str,
    structure: Structure,
    given: StructureInput,
    rewind: Mapping[str, Tensor],
    card: Mapping[str, Any] | None = None,
) -> Ticket:
    """Apply a structure to a round's unstructured mask, and return an untrained ticket.

    Args:
        name: name of the structure, for the card.
        structure: structure to apply.
        given: network, masks and weights of the round.
        rewind: values that the ticket restarts from.
        card: further facts for the ticket's card.

    Raises:
        ValueError: if gradients or batches are needed and missing.
    """
    if structure.needs_gradients and given.gradients is None:
        raise ValueError(f"gradients=None: structure {name!r} needs gradients of the loss, summed over some batches")
    structured = structure(given)
    prunable = [layer.name for layer in given.prunable if not layer.tied_to]  # every weight once
    facts = {
        **(card or {}),
        "structure": name,
        **asdict(ratios(structured.layers, prunable, structured.masks, _sizes(given))),
        "prunable": prunable,
        "mask_digest": digest(structured.masks),
    }
    return Ticket(structured.masks, rewind, None, structured.plan, structured.layers, make_card(facts))


def _sizes(given: StructureInput) -> dict[str, int]:
    """Return the size of every parameter, each once: under its first name, a layer's weight under the layer's name."""
    names = {parameter: name for name, parameter in given.network.named_parameters()}
    names |= {given.network.get_parameter(layer.weight): layer.weight for layer in given.layers.values()}
    return {name: parameter.numel() for parameter, name in names.items()}


def structure_ticket(
    ticket: Ticket,
    name: str,
    structure: Structure,
    traced: TracedNetwork,
    gradients: Mapping[str, Tensor] | None = None,
    batches: Batches | None = None,
) -> Ticket:
    """Structure a copy of a trained ticket's mask (paper, algorithm 1), and return an untrained ticket.

    It restarts from the same values, and its card says what the other's does, but for what came of the training.

    Args:
        ticket: unstructured ticket that was trained; its trained weights are scored.
        name: name of the structure, for the card.
        structure: structure to apply.
        traced: the ticket's network; its values do not matter and are left alone.
        gradients: gradients of the loss by the trained weights, for structures that need them (see `load_gradients`).
        batches: gives that many training batches on the device where feature maps are looked at, the same at every
            call, for structures that need them.

    Raises:
        ValueError: if the ticket was not trained, or gradients or batches are needed and missing.
    """
    if ticket.trained is None:
        raise ValueError(f"structure {name!r} scores trained weights, and the ticket holds none")
    given = StructureInput(traced, ticket.masks, ticket.trained, gradients, batches)
    lineage = {key: value for key, value in ticket.card.items() if key not in OF_TRAINING}
    return make_ticket(name, structure, given, ticket.rewind, lineage)


def load_gradients(folder: Path) -> dict[str, Tensor] | None:
    """Read the gradients that a round's structures need; None if its folder has none."""
    path = folder / GRADIENTS
    return torch.load(path, weights_only=True) if path.is_file() else None


# The tickets of every round on disk: the one that it trains, and those of the structures at its end


@dataclass(frozen=True)
class RoundTickets:
    """Makes, writes and reads the tickets of one search.

    Args:
        directory: folder that they are written to, as `round_00/dense`, `round_01/unstructured`, and so on.
        structures: structures by name, applied to a copy of every round's mask at the round's end.
        trained: `unstructured`, or the name of the structure whose ticket a round trains.
        card: facts for the card of every ticket, besides its round.
    """

    directory: Path
    structures: Mapping[str, Structure]
    trained: str
    card: Mapping[str, Any]

    def make(self, number: int, given: StructureInput, rewind: Mapping[str, Tensor]) -> Ticket:
        """Return the ticket that a round trains, made from the masks of its beginning."""
        name = self._trained_in(number)
        structure = self.structures.get(name, Unstructured())
        return make_ticket(name, structure, given, rewind, {"round": number, **self.card})

    def begin(self, number: int, ticket: Ticket) -> None:
        """Write the ticket that a round is about to train."""
        ticket.save(self._path(number, self._trained_in(number)))

    def begun(self, number: int, enforced: Masks) -> Ticket:
        """Read the ticket that a round trains, as it was written when the round began.

        Raises:
            ValueError: if the masks that are enforced now are others.
        """
        path = self._path(number, self._trained_in(number))
        ticket = Ticket.load(path)
        if ticket.card["mask_digest"] != digest(enforced):
            raise ValueError(f"mask integrity: {path} holds other masks than round {number} trains")
        return ticket

    def end(self, number: int, ticket: Ticket, given: StructureInput, facts: RoundFacts, epochs: int) -> None:
        """Write what a round came to: its ticket with its trained weights, and a ticket for each structure.

        Args:
            number: number of the round.
            ticket: the ticket that the round has trained, without its trained weights.
            given: the network with the round's masks and trained weights.
            facts: what the round reached; best epoch, metrics and duration go on the trained ticket's card.
            epochs: number of epochs of its training.
        """
        trained = ticket.with_training(
            given.weights,
            epochs=epochs,
            total_epochs=ticket.epochs_before + epochs,
            best_epoch=facts["best_epoch"],
            metrics=facts["metrics"],
            train_seconds=facts["train_seconds"],
        )
        trained.save(self._path(number, self._trained_in(number)))
        if given.gradients is not None:
            write_tensors(round_folder(self.directory, number) / GRADIENTS, given.gradients)
        if number > 0 and self.trained == UNSTRUCTURED:
            for name, structure in self.structures.items():
                made = structure_ticket(trained, name, structure, given.traced, given.gradients, given.batches)
                made.save(self._path(number, name))

    def _trained_in(self, number: int) -> str:
        return self.trained if number > 0 else DENSE

    def _path(self, number: int, name: str) -> Path:
        return round_folder(self.directory, number) / name / TICKET
