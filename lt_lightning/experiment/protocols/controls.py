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
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED, round_folder

if TYPE_CHECKING:
    from lt_lightning.experiment.parts import Experiment
    from lt_lightning.tickets.ticket import Ticket

CONTROLS = ("reinit", "shuffle", "random", "small_dense", "small_dense_cycles")
OF_UNSTRUCTURED = ("reinit", "random")  # such a ticket has no structure that a shuffle could keep
FROM_START = ("reinit", "small_dense", "small_dense_cycles")  # trained from initial values on, for the whole schedule


class Controls(Protocol):
    """Controls of the tickets of the rounds that are retrained: cut, grown and unstructured ones."""

    name = "controls"

    def wanted(self, config: DictConfig) -> bool:
        """Whether any control is named."""
        if not OmegaConf.is_list(config.controls) or not set(config.controls) <= set(CONTROLS):
            raise ValueError(f"controls={config.controls}: must be a list of {', '.join(CONTROLS)}")
        return bool(config.controls)

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Return a task for each ticket and control."""
        search, *others = tasks
        # Chains that are longer than the search, or grown alone, have rounds that the search has not.
        rounds, beyond = retrained_rounds(config), len(search.parts)
        wanted = [task for task in others if task.round in rounds or task.round >= beyond]
        tickets = [task for task in wanted if task.kind and not task.kind.control]
        return [
            _task(config, search, ticket, control)
            for ticket in [*_of_search(config, search), *tickets]
            for control in CONTROLS
            if control in config.controls and (ticket.kind.structure != UNSTRUCTURED or control in OF_UNSTRUCTURED)  # type: ignore[union-attr]
        ]

    def check(self, experiment: Experiment) -> None:
        """Look whether the network can be made narrower, if that is asked for."""
        narrower = [name for name in experiment.config.controls if name.startswith("small_dense")]
        if narrower and not isinstance(experiment.config.model.get("width"), int):
            raise ValueError(f"controls={narrower[0]} needs a network with an option model.width, a whole number")
        if "small_dense_cycles" in narrower and experiment.options.retraining.length != 1:
            raise ValueError("controls=small_dense_cycles trains as the rounds of a search do: set retraining.length=1")
        if "small_dense_cycles" in narrower and experiment.pruning_options.scores_from != "trained":
            raise ValueError("controls=small_dense_cycles counts the rounds before: set pruning.scores_from=trained")

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        """Make a control of the ticket in `task.source`."""
        import torch  # slow to import, like all that makes tickets

        from lt_lightning.tickets.control_tickets import randomly_masked, reinitialised, shuffled, small_dense
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
            case "small_dense" | "small_dense_cycles":
                width = experiment.config.model.width
                made = small_dense(ticket, partial(experiment.network, seed), width, experiment.example)
            case "random":
                made = randomly_masked(ticket, experiment.network(seed), experiment.example, generator)
            case _:
                made = shuffled(ticket, experiment.network(seed), experiment.example, generator)
        made = made.with_facts(control=control, control_seed=seed)
        if task.cycles > 1:
            made = made.with_facts(cycles=task.cycles)
        return made.with_facts(starts_from="initial") if control in FROM_START else made


def _of_search(config: DictConfig, search: Task) -> list[Task]:
    """The search's own tickets of the rounds that are retrained, as if each were a task."""
    name, last = str(config.pruning.next_round_from), len(search.parts) - 1
    return [
        Task(place, f"{name}, round {number} of {last}", number, TicketKind(name), (place,), goes_on=True)
        for number in retrained_rounds(config)
        for place in (search.parts[number],)
    ]


def _cycles(config: DictConfig, ticket: Task) -> int:
    """Return how many trainings a ticket and its ancestors have, those of the search included."""
    each_round = 1 if config.pruning.get("sparsifier") is None else 2
    return 1 + each_round * ticket.round + (0 if ticket.goes_on else 1)


def _task(config: DictConfig, search: Task, ticket: Task, control: str) -> Task:
    assert ticket.kind is not None
    kind = replace(ticket.kind, control=control)
    what = {"control": control, "of": ticket.folder.name, **meanings(config, RETRAINING_KEYS)}
    folder = round_folder(search.folder, ticket.round) / f"{kind.structure}-{control}-{hash_of(what)}"
    label = f"{control} of {ticket.label}"
    cycles = _cycles(config, ticket) if control == "small_dense_cycles" else 1
    return Task(folder, label, ticket.round, kind, (folder,), ticket.folder, "controls", control in FROM_START, cycles)
