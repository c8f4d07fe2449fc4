"""Grown tickets (`grown=[regroup]`): each round prunes, structures and trains the structured ticket of the last round.

A grown search is a chain of tasks that begins with the job's dense network. Each ticket is trained as the smaller
network that it is, and is the source of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.fingerprint import hash_of, retraining_fingerprint
from lt_lightning.experiment.config.tasks import densities_of, retrained_rounds
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.pruning.densities import descending
from lt_lightning.results.job_record import Task, TicketKind
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED, round_folder
from lt_lightning.storage.near_names import did_you_mean

if TYPE_CHECKING:
    from lt_lightning.experiment.parts import Experiment
    from lt_lightning.tickets.ticket import Ticket

CONTROLS = ("dense", "random")  # one prunes nothing, the other prunes weights at random


class Grown(Protocol):
    """Chains of structured tickets, and their controls, which are trained for as many rounds."""

    name = "grown"

    def wanted(self, config: DictConfig) -> bool:
        """Whether a structure is to be grown."""
        given = [key for key in ("alone", "densities", "group_penalty") if config.growing[key]]
        if given and not config.grown:
            raise ValueError(
                f"growing.{given[0]}={config.growing[given[0]]}: nothing is grown; name structures in grown"
            )
        known = [*map(str, config.structure), *CONTROLS]
        for name in config.grown:
            if name in CONTROLS and name in config.structure:
                raise ValueError(f"structure.{name}: is the name of the control grown={name}; choose another")
            if name not in known:
                raise ValueError(f"grown={name}: must be one of {', '.join(known)}{did_you_mean(name, known)}")
            if _kind(name).structure in config.structure:
                raise ValueError(f"structure.{_kind(name).structure}: is the name of what grown={name} makes")
        return bool(config.grown)

    def prepared(self, config: DictConfig) -> DictConfig:
        """Note the density of every round; where tickets are grown alone, leave the search without rounds."""
        densities, config = _densities(config), config.copy()
        with open_dict(config):
            config.growing.densities = densities
            if config.growing.alone:
                config.pruning.rounds, config.pruning.density, config.retrain_rounds = 0, None, None
        return config

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Return a task for each round of each chain, to the last round that is retrained."""
        search, last = tasks[0], len(config.growing.densities)
        chains = []
        for name in dict.fromkeys(map(str, config.grown)):
            kind, source = _kind(name), search.parts[0]
            for number in range(1, last + 1):
                digits = retraining_fingerprint(config, name, _origin(config, name, number))
                folder = round_folder(search.folder, number) / f"{kind.control or kind.structure}-{digits}"
                label = f"{kind}, round {number} of {last}"
                chains.append(Task(folder, label, number, kind, (folder,), source, self.name, goes_on=True))
                source = folder
        return chains

    def check(self, experiment: Experiment) -> None:
        """Look whether tickets can be made from each other."""
        options = experiment.pruning_options
        for key, value, right in (
            ("next_round_from", options.next_round_from, UNSTRUCTURED),
            ("scores_from", options.scores_from, "trained"),
            ("sparsifier", options.sparsifier, None),
        ):
            if value != right:
                raise ValueError(f"pruning.{key}={value}: grown needs {'null' if right is None else right}")
        if options.scope == "imp":
            raise ValueError("pruning.scope=imp: grown compares scores itself; set global, layer or erk")
        for name in set(experiment.config.grown) - set(CONTROLS):
            if experiment.structures[name].needs_gradients:
                raise ValueError(f"grown={name}: structure.{name} needs gradients, which no round of a chain sums")

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        """Make a ticket from the trained one in `task.source`."""
        import torch  # slow to import, like all that makes tickets

        from lt_lightning.pruning.criteria import Random
        from lt_lightning.pruning.rewinding import Restart
        from lt_lightning.structures.base import Unstructured
        from lt_lightning.tickets.growing import Growth
        from lt_lightning.tickets.ticket import Ticket
        from lt_lightning.training.batches import plain_batches

        assert task.source is not None
        assert task.kind is not None
        ticket, options, control = Ticket.load(task.source / TICKET), experiment.pruning_options, task.kind.control
        densities = experiment.config.growing.densities
        density = 1.0 if control == "dense_cycles" else densities[task.round - 1]
        seed = int(hash_of({"seed": experiment.config.seed, "round": task.round}), 16)
        name = {_kind(each): each for each in experiment.config.grown}[task.kind]
        growth = Growth(
            task.kind.structure,
            experiment.structures.get(name, Unstructured()),
            Random(seed) if control == "random_cycles" else options.scoring,
            options.compared_in,
            Restart.load(experiment.search_folder / "restart.pt"),
            experiment.traced,
            experiment.example,
            plain_batches(experiment.data, torch.device(experiment.device)),
            experiment.device,
        )
        facts = {
            **experiment.labels, "round": task.round, "rewind": ticket.card["rewind"], "mode": options.mode,
            "total_epochs": ticket.card["total_epochs"], "first_epoch": ticket.card["total_epochs"],
        }  # fmt: skip
        made = growth.next_ticket(ticket, density, facts)
        if control:
            return made.with_facts(control=control)
        penalty = experiment.options.growing.group_penalty
        if task.round == len(densities) or made.plan is None or not penalty:
            return made
        return made.with_facts(group_penalty=penalty)


def _densities(config: DictConfig) -> list[float]:
    """Return the density of every round, to the last that is retrained."""
    if config.growing.densities is not None:
        return descending(config.growing.densities)
    return densities_of(config)[: max(retrained_rounds(config), default=0)]


def _origin(config: DictConfig, name: str, number: int) -> dict[str, str]:
    """Return what, besides structure and training, determines a round's ticket; no default, nothing about controls."""
    origin, penalty = {"grown": name}, float(config.growing.group_penalty)
    last = len(config.growing.densities)
    if penalty and name not in CONTROLS and last > 1:  # the last round is trained without it, from rounds with it
        origin["group_penalty"] = str(penalty) if number < last else f"{penalty} before"
    if (densities := list(config.growing.densities)[:number]) != densities_of(config)[:number]:
        origin["densities"] = str(densities)
    return origin


def _kind(name: object) -> TicketKind:
    """Return the kind of a chain's tickets."""
    return TicketKind(UNSTRUCTURED, f"{name}_cycles") if name in CONTROLS else TicketKind(f"{name}_grown")
