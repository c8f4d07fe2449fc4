"""Tickets that a job takes from other searches: on other data sets, at another width, or with short trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lt_lightning.experiment.config.tasks import CONFIRM
from lt_lightning.experiment.protocols.sources import other_data, sources_of
from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.paths import parted, round_folder
from lt_lightning.structures.base import Unstructured
from lt_lightning.structures.refill import Refill
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.making import load_gradients, structure_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.tickets.transfer import Transferred, transfer

if TYPE_CHECKING:
    from lt_lightning.experiment.run.experiment import Experiment


CARD = "transferred_from"
SCREENED = "screened"


def transferred_ticket(experiment: Experiment, number: int, name: str, network: nn.Module) -> Ticket:
    """A round's ticket of another search, fitted to this network and structured; its card tells where it is from.

    Args:
        study: of the job.
        number: of the round.
        name: as `sources.told` makes it.
        network: of this study, freshly initialised.
    """
    structure, source = parted(name)
    (search,) = (folder for folder in sources_of(experiment.config, [number]) if folder.name == source)
    theirs: Any = OmegaConf.load(search / "config.yaml")
    moved = _moved(experiment, search, number, network)
    unstructured = moved.ticket
    if moved.resized:  # its own network's values at the rewind point serve better than initial ones
        point = Restart.load(experiment.search_folder / "restart.pt").point.network
        unstructured = replace(unstructured, rewind={name: value.cpu().clone() for name, value in point.items()})
    origin = f"{theirs.labels.data} at width {theirs.model.get('width')}" if moved.resized else theirs.labels.data
    ticket = structure_ticket(
        unstructured,
        f"{structure} from {origin}",
        experiment.structures.get(structure, Unstructured()),
        TracedNetwork(network, experiment.example),
        _gradients(search, number, moved),
    )
    lineage = {
        "search": source, "data": theirs.labels.data, "model": theirs.labels.model, "seed": theirs.seed,
        "round": number, "replaced": moved.replaced, "resized": moved.resized,
    }  # fmt: skip
    return replace(ticket, card={**ticket.card, **experiment.labels, CARD: lineage})


def confirmed_ticket(experiment: Experiment, ticket: Ticket, name: str) -> Ticket:
    """A ticket of a screening, to be trained by this study; its card tells where it is from.

    Masks and plan are those that were screened. What goes back, goes back to this study's own dense training: values,
    momentum and schedule. Where `pruning.mode` takes back less, it goes on from the values that the screening had.

    Args:
        study: of the job that confirms.
        ticket: of the screening.
        name: as `sources.confirmed` makes it.
    """
    restart = Restart.load(experiment.search_folder / "restart.pt")
    own = restart.mode == "weights"
    values = {key: value.clone() for key, value in restart.point.network.items()} if own else ticket.rewind
    confirm = experiment.config[CONFIRM]
    lineage = {"search": confirm.search, "epochs": confirm.epochs, "values": "dense training" if own else "screening"}
    rewind = str(experiment.pruning().rewind.within(experiment.config.trainer.max_epochs))
    card = {key: value for key, value in ticket.card.items() if key not in ("best_epoch", "metrics", "train_seconds")}
    return replace(
        ticket, rewind=values, trained=None, card={**card, "structure": name, "rewind": rewind, SCREENED: lineage}
    )


def check_transfers(experiment: Experiment, network: nn.Module) -> None:
    """Looks whether the tickets that are taken from elsewhere fit this study's network, and can be structured.

    Raises:
        ValueError: naming the search and what does not fit, or the structure that needs their data.
    """
    if not (numbers := sorted({number for number, name in experiment.cells() if parted(name)[1]})):
        return
    for name, structure in experiment.structures.items():
        if isinstance(structure, Refill) and structure.needs_batches:
            raise ValueError(
                f"structure.{name}.score={structure.score!r} looks at feature maps, which a ticket of other data or of "
                "another width has none of here: with transfer set it to l1, l2, count or saliency"
            )
    for search in sources_of(experiment.config, numbers):
        try:
            moved = _moved(experiment, search, numbers[0], network)
        except ValueError as error:
            raise ValueError(f"transfer.from={search}: {error}") from None
        needy = [name for name, structure in experiment.structures.items() if structure.needs_gradients]
        if moved.resized and needy:
            raise ValueError(
                f"structure.{needy[0]} scores by gradients, which do not fit another width than that of "
                f"transfer.from={search}: score by weights"
            )


def restart_for(ticket: Ticket, restart: Restart) -> Restart:
    """How to train a ticket of this study, or one from elsewhere.

    The latter brings its own values, to which the momentum of this study's dense training does not belong. Its
    schedule goes back to the same point, so that it trains as long as the study's own tickets. One of another width
    brings masks alone, and is trained as the study's own.
    """
    lineage = ticket.card.get(CARD)
    if lineage is None or lineage.get("resized") or restart.mode != "weights":
        return restart
    return replace(restart, mode="learning_rate")


def _moved(experiment: Experiment, search: Path, number: int, network: nn.Module) -> Transferred:
    theirs: Any = OmegaConf.load(search / "config.yaml")
    ticket = Ticket.load(_path(search, number))
    return transfer(ticket, network, experiment.example, other_data(theirs, experiment.config))


def _path(search: Path, number: int) -> Path:
    return round_folder(search, number) / UNSTRUCTURED / "ticket"


def _gradients(search: Path, number: int, moved: Transferred) -> Mapping[str, Tensor] | None:
    """None of what was initialised anew: they are zero."""
    if (gradients := load_gradients(round_folder(search, number))) is None:
        return None
    masks = moved.ticket.masks
    return {
        name: torch.zeros(masks[name].shape) if name in masks and name in moved.replaced else value
        for name, value in gradients.items()
    }
