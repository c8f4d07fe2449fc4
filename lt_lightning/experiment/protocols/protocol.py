"""What a protocol is: something that a job may do besides its search and the retraining of its tickets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from omegaconf import DictConfig

from lt_lightning.results.job_record import Task

if TYPE_CHECKING:
    from lt_lightning.experiment.parts import Experiment
    from lt_lightning.tickets.ticket import Ticket


class Protocol:
    """Something that a job may do besides its search and the retraining of its tickets.

    A protocol reads its own options from the configuration, and says whether they ask for it. Nothing else knows them.
    A job asks the same questions of all protocols that its configuration asks for, in the order of
    `protocols.PROTOCOLS`. A subclass answers those that concern it.

    Attributes:
        name: name of the protocol, by which a task says who makes its ticket.
    """

    name: ClassVar[str]

    def wanted(self, config: DictConfig) -> bool:
        """Whether the configuration asks for the protocol; else it is asked nothing more.

        Raises:
            ValueError: if an option has an impossible value; the message names the key.
        """
        return True

    def prepared(self, config: DictConfig) -> DictConfig:
        """Return the configuration with what the protocol derives from it filled in."""
        return config

    def needed(self, config: DictConfig) -> list[DictConfig]:
        """Return the jobs that must be finished before this one can begin."""
        return []

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        """Return what the protocol adds to a job's tasks.

        Args:
            config: configuration of the job.
            tasks: tasks that the job has so far: the search, the retrainings, and what protocols before have added.

        Raises:
            ValueError: if the options ask for something impossible.
        """
        return []

    def asked(self, config: DictConfig, tasks: Sequence[Task], at_most: bool = False) -> list[Task]:
        """Return which of the tasks the job asks for, given what is finished by now.

        Args:
            config: configuration of the job.
            tasks: tasks of the job.
            at_most: whether to return, instead, tasks that cost as much as all that may still be asked for.
        """
        return list(tasks)

    def check(self, experiment: Experiment) -> None:
        """Look whether the protocol can do what it is asked for, before anything is trained.

        Raises:
            ValueError: if it cannot.
        """

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        """Make the ticket of a task that the protocol has added.

        Its card says by `starts_from` how it is trained, if not as the search's own tickets are; see
        `training.retraining.restart_for`.
        """
        raise NotImplementedError(f"{type(self).__name__} adds no tasks")

    def notes(self, config: DictConfig, tasks: Sequence[Task]) -> list[str]:
        """Return what there is to say about the results so far, a line each."""
        return []
