"""Controls (`controls=[reinit,small_dense]`): trained beside a job's tickets, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.fingerprint import hash_of, meanings
from lt_lightning.experiment.config.options import RETRAINING_KEYS
from lt_lightning.experiment.config.tasks import retrained_rounds
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.layout import DENSE, TICKET, UNSTRUCTURED, round_folder

if TYPE_CHECKING:
    from lt_lightning.experiment.parts import Experiment
    from lt_lightning.tickets.ticket import Ticket

OF_TICKETS = ("reinit", "shuffle", "random", "small_dense")
OF_DENSE = "retrained_dense"  # once in a job
CONTROLS = (*OF_TICKETS, OF_DENSE)
OF_UNSTRUCTURED = ("reinit", "random")  # such a ticket has no structure that a shuffle could keep
FROM_START = ("reinit", "small_dense")  # trained from initial values on, for the whole schedule


class Controls(Protocol):
    """Controls of tickets that the job retrains, of the unstructured ones of these rounds, and of the dense network."""

    name = "controls"

    def wanted(self, config: DictConfig) -> bool:
        """Whether any control is named."""
        if not OmegaConf.is_list(config.controls) or not set(config.controls) <= set(CONTROLS):
            raise ValueError(f"controls={config.controls}: must be a list of {', '.join(CONTROLS)}")
        return bool(config.controls)

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Return a task for each ticket and control, and one for the dense network."""
        search, *retrainings = tasks
        made = [_task(config, search, _dense_of(search), OF_DENSE)] if OF_DENSE in config.controls else []
        return made + [
            _task(config, search, ticket, control)
            for ticket in [*_of_search(config, search), *retrainings]
            for control in OF_TICKETS
            if control in config.controls and (ticket.kind.structure != UNSTRUCTURED or control in OF_UNSTRUCTURED)  # type: ignore[union-attr]
        ]

    def check(self, experiment: Experiment) -> None:
        """Look whether the network can be made narrower, if that is asked for."""
        if "small_dense" in experiment.config.controls and not isinstance(experiment.config.model.get("width"), int):
            raise ValueError("controls=small_dense needs a network with an option model.width, a whole number")

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        """Make a control of the ticket in `task.source`."""
        import torch  # slow to import, like all that makes tickets

        from lt_lightning.tickets.control_tickets import (
            randomly_masked,
            reinitialised,
            retrained_dense,
            shuffled,
            small_dense,
        )
        from lt_lightning.tickets.ticket import Ticket

        assert task.source is not None
        assert task.kind is not None
        ticket, control = Ticket.load(task.source / TICKET), task.kind.control
        # Each control has a seed of its own, so that no two share their initial values or their permutations.
        facts = [task.round, task.kind.structure, control]
        seed = int(hash_of({"seed": experiment.config.seed, "control": facts}), 16)
        generator = torch.Generator().manual_seed(seed)
        match control:
            case "reinit":
                made = reinitialised(ticket, experiment.network(seed))
            case "small_dense":
                width = experiment.config.model.width
                made = small_dense(ticket, partial(experiment.network, seed), width, experiment.example)
            case "retrained_dense":
                made = retrained_dense(ticket)
            case "random":
                made = randomly_masked(ticket, experiment.network(seed), experiment.example, generator)
            case _:
                made = shuffled(ticket, experiment.network(seed), experiment.example, generator)
        made = made.with_facts(control=control, control_seed=seed)
        return made.with_facts(starts_from="initial") if control in FROM_START else made


def _of_search(config: DictConfig, search: Task) -> list[Task]:
    """The search's own tickets of the rounds that are retrained, as if each were a task."""
    name, last = str(config.pruning.next_round_from), len(search.parts) - 1
    return [
        Task(place, f"{name}, round {number} of {last}", number, TicketKind(name), (place,))
        for number in retrained_rounds(config)
        for place in (search.parts[number],)
    ]


def _dense_of(search: Task) -> Task:
    """The search's dense network, as if it were a task."""
    return Task(search.parts[0], "dense network", 0, TicketKind(DENSE), search.parts[:1])


def _task(config: DictConfig, search: Task, ticket: Task, control: str) -> Task:
    assert ticket.kind is not None
    kind = replace(ticket.kind, control=control)
    what = {"control": control, "of": ticket.folder.name, **meanings(config, RETRAINING_KEYS)}
    folder = round_folder(search.folder, ticket.round) / f"{kind.structure}-{control}-{hash_of(what)}"
    label = f"{control} of {ticket.label}"
    return Task(folder, label, ticket.round, kind, (folder,), ticket.folder, "controls", control in FROM_START)
