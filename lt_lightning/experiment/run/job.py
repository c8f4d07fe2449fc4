"""A job: its configuration, the tasks that it consists of, and the jobs that it needs first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from omegaconf import DictConfig

from lt_lightning.experiment import protocols
from lt_lightning.experiment.config.options import JobOptions, options_of
from lt_lightning.experiment.config.tasks import retraining_tasks, search_task
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.results.job_record import JobRecord, Task
from lt_lightning.results.records import Result, results_of


@dataclass(frozen=True)
class Job:
    """One configuration with one seed.

    Attributes:
        config: composed configuration, with what protocols derive from it filled in.
        options: options of the job, checked.
        tasks: tasks of the job: the search first, then the retrainings, then what protocols add.
        needed: jobs that must be finished before this one.
    """

    config: DictConfig
    options: JobOptions
    tasks: tuple[Task, ...]
    needed: tuple[Job, ...] = ()

    @classmethod
    def of(cls, config: DictConfig) -> Job:
        """Make the list of tasks, once for everybody who asks.

        Raises:
            ValueError: if the configuration asks for something impossible; the message names the key.
        """
        options, wanted = options_of(config), protocols.wanted_by(config)
        needed = tuple(Job.of(other) for protocol in wanted for other in protocol.needed(config))
        for protocol in wanted:
            config = protocol.prepared(config)
        search = search_task(config)
        tasks = [search, *retraining_tasks(config, search)]
        for protocol in wanted:
            tasks += protocol.tasks(config, tasks)
        return cls(config, options, tuple(tasks), needed)

    @cached_property
    def protocols(self) -> list[Protocol]:
        """The protocols that the configuration asks for."""
        return protocols.wanted_by(self.config)

    @property
    def title(self) -> str:
        """The job for people: data set, network and seed."""
        return f"{self.config.labels.data}, {self.config.labels.model}, seed {self.config.seed}"

    def asked(self, at_most: bool = False) -> list[Task]:
        """Return the tasks that the job asks for, given what is finished by now.

        Args:
            at_most: whether to return, instead, tasks that cost as much as all that may still be asked for.
        """
        tasks = list(self.tasks)
        for protocol in self.protocols:
            tasks = protocol.asked(self.config, tasks, at_most)
        return tasks

    @property
    def is_finished(self) -> bool:
        """Whether everything that the job asks for is there."""
        return all(results_of(task) is not None for task in self.asked())

    def results(self) -> list[Result]:
        """Return all results of the job's tasks so far."""
        return [result for task in self.tasks for result in results_of(task) or ()]

    def notes(self) -> list[str]:
        """Return what the protocols have to say about the results so far."""
        return [note for protocol in self.protocols for note in protocol.notes(self.config, self.tasks)]

    def record(self, record: JobRecord | None = None) -> JobRecord:
        """Return the job's record with its tasks as they are by now."""
        wanted = set(self.asked())
        asked = tuple(place for place, task in enumerate(self.tasks) if task in wanted)
        return replace(record or JobRecord(), tasks=self.tasks, asked=asked, notes=tuple(self.notes()))
