"""The scheduler: each task of a job in one process at a time; what others do, or have finished, is left to them.

A job on several devices is handed to one process a device; the first schedules, the others take part in trainings.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.execution.machine import keep_freed_memory
from lt_lightning.experiment.config.checks import naming_among
from lt_lightning.experiment.config.options import options_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.checkpoints import stoppable
from lt_lightning.experiment.run.environments import change_since
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.run_task import evaluate, run_retraining, run_search
from lt_lightning.experiment.sweep import Multirun
from lt_lightning.results import failures
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import Task, tasks_from_json, tasks_to_json
from lt_lightning.results.locks import Lock, owner_of
from lt_lightning.results.records import Result, results_of
from lt_lightning.storage.layout import TICKET, is_ticket, trained_rounds
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.agreement import DisagreementError
from lt_lightning.training.processes import (
    ProcessDiedError,
    announce,
    announced,
    dismiss,
    follow,
    grouped,
    invite,
    launch,
    processes,
)

POLL = 0.5  # seconds between two looks at what another process does


class ElsewhereError(RuntimeError):
    """Another process failed at a task that this one waited for."""


class Scheduler:
    """Runs the tasks of a job that are neither finished nor in another process's hands, until none is open.

    Which tasks are asked for is found anew after each task, from what is finished by then. A task that fails does not
    stop the others. While another process runs the search, the tickets of its finished rounds are retrained.

    Args:
        experiment: parts of the job.
        job: job whose tasks are run.
        progress: progress to report to.
        given_up: tasks that failed before, and are left alone.

    Attributes:
        failed: what the tasks that failed have raised.
    """

    def __init__(
        self, experiment: Experiment, job: Job, progress: JobProgress, given_up: Collection[Task] = ()
    ) -> None:
        self.failed: dict[Task, Exception] = {}
        self._experiment = experiment
        self._job = job
        self._search = job.tasks[0]
        self._progress = progress
        self._given_up = given_up
        self._start = time.time()
        self._locks = {task: Lock(task.folder) for task in job.tasks}
        # What failed last time comes last, so that it holds up nothing.
        self._last = {task for task in job.tasks if Failure.load(task.folder) is not None} - {self._search}
        self._announced: set[tuple[Path, object]] = set()

    def run(self) -> None:
        """Return when every task is finished, has failed, or needs another that failed.

        Raises:
            Exception: what a task raised, if the job has several processes: they are out of step then.
            FileNotFoundError: if the ticket that a task is to be made from has disappeared.
        """
        while tasks := self._asked(unfinished := self._unfinished()):
            self._progress.expect(sum(map(self._epochs, self._asked(unfinished, at_most=True))))
            tasks.sort(key=lambda task: task in self._last)
            task = next((task for task in tasks if self._is_ready(task) and self._take(task)), None)
            if task is not None:
                with self._holding(task):
                    if task.kind is None:
                        run_search(self._experiment, task, self._progress)
                    else:
                        run_retraining(self._experiment, task, self._dense_accuracy(), self._progress)
            elif any(self._is_ready(task) or self._may_get_ready(task, tasks) for task in tasks):
                self._tell_who_is_awaited(tasks)
                time.sleep(POLL)
            elif not self.failed and not self._given_up:
                raise FileNotFoundError(f"{tasks[0].label}: there is no ticket in {tasks[0].source}")
            else:  # what is left needs something that failed
                return

    def _epochs(self, task: Task) -> int:
        """The epochs of a task that starts anew."""
        if task.kind is None:
            return sum(map(sum, self._experiment.search_lengths()))
        return self._experiment.options.retraining.copies * self._experiment.epochs_of(task)

    def _unfinished(self) -> set[Task]:
        left_out = {*self.failed, *self._given_up}
        return {task for task in self._job.tasks if task not in left_out and results_of(task) is None}

    def _asked(self, unfinished: Collection[Task], at_most: bool = False) -> list[Task]:
        return [task for task in self._job.asked(at_most) if task in unfinished]

    def _is_ready(self, task: Task) -> bool:
        if task.source is None:
            return True
        trained = trained_rounds(self._search.folder)
        if task.source in self._search.parts:  # a ticket that the search lost is an error
            return self._search.parts.index(task.source) in trained
        if task.goes_on:
            return Result.load(task.source) is not None
        return bool(trained) and is_ticket(task.source)  # a grown ticket's round may lie beyond the search

    def _may_get_ready(self, task: Task, tasks: Sequence[Task]) -> bool:
        sources = (other for other in tasks if other.folder == task.source)
        return self._search in tasks or any(map(self._is_ready, sources))

    def _take(self, task: Task) -> bool:
        """Take the task's lock, unless another process has it, or has finished the task or failed at it meanwhile."""
        if not self._locks[task].take():
            return False
        if (failure := _failure_since(self._start, task)) is not None:
            self.failed[task] = ElsewhereError(f"{failure.error} (in another process)")
        if task in self.failed or results_of(task) is not None:
            self._locks[task].release()
            return False
        return True

    @contextmanager
    def _holding(self, task: Task) -> Iterator[None]:
        """Within it the task is run; the lock is given back, and a failure recorded, whatever happens."""
        lock = self._locks[task]
        self._progress.watcher = lock.write
        announce(str(task.folder))
        try:
            _clear_litter(task)
            with naming_among(self._experiment.config, "data", "pruning", "classifier"):
                yield
            if results_of(task) is None:  # or the task would be run again for ever
                raise RuntimeError(f"{task.folder} has no result that can be read, although the task has ended")
            failures.clear(task.folder)
            announce("")
        except Exception as error:
            if processes() == 1 or _failure_since(self._start, task) is None:  # else this one only lost its partner
                Failure.of(error).save(task.folder)
            traceback.clear_frames(error.__traceback__)  # they hold the failed training's memory
            self.failed[task] = error
            if processes() > 1:
                raise
            self._progress.finish(f"{task.label} FAILED: {failures.one_line(error)}")
        finally:
            self._progress.watcher = None
            lock.release()

    def _dense_accuracy(self) -> float:
        """The dense network's accuracy; it is tested here as long as the search, which tests at its end, runs."""
        folder = self._search.parts[0]
        if (result := Result.load(folder)) is not None:
            return result.accuracy
        return evaluate(self._experiment, Ticket.load(folder / TICKET))

    def _tell_who_is_awaited(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            owner = owner_of(task.folder)
            if owner is not None and (task.folder, owner.since) not in self._announced:
                self._announced.add((task.folder, owner.since))
                self._progress.note(f"{task.label} is in the hands of {owner}")


def _failure_since(start: float, task: Task) -> Failure | None:
    """Return the failure of a task if it is newer than a time."""
    failure = Failure.load(task.folder)
    return failure if failure is not None and failure.time > start else None


def _clear_litter(task: Task) -> None:
    """Remove what a killed owner was just writing; other folders may be in other hands."""
    rounds = {part.parent for part in task.parts} if task.kind is None else set()
    for folder in {task.folder, *task.parts, *rounds}:
        for partial in folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def run_tasks(
    experiment: Experiment, job: Job, console: Console, given_up: Collection[Task] = ()
) -> Mapping[Task, Exception]:
    """Run the tasks of a job in this process, and in those that were started with it, and return what failed.

    Args:
        experiment: parts of the job.
        job: job whose tasks are run.
        console: console to print on.
        given_up: tasks that failed before, and are left alone.
    """
    keep_freed_memory()
    experiment.use_threads()
    invite(take_part, OmegaConf.to_container(job.config, resolve=True))
    with (
        grouped(torch.device(experiment.device)),
        stoppable(),
        JobProgress(0, console, Multirun.of(job.config)) as progress,
    ):
        if change := change_since(experiment.search_folder):
            progress.note(change)
        scheduler = Scheduler(experiment, job, progress, given_up)
        scheduler.run()
        dismiss()
    return scheduler.failed


def take_part(_: None, config: dict[str, Any]) -> None:
    """Take part in a job's trainings and tests, in every process but the first; see `invite`."""
    made = OmegaConf.create(config)
    assert isinstance(made, DictConfig)
    keep_freed_memory()
    experiment = Experiment.from_config(made)
    experiment.use_threads()
    with grouped(torch.device(experiment.device)):
        try:
            follow(experiment)
        except Exception as error:
            if folder := announced():
                Failure.of(error).save(Path(folder))
            raise


# A job on several devices: the first process runs it, the others take part in its trainings and tests.

# After these errors the processes end: someone has killed one, or they cannot be trusted. No task has caused them.
ENDING = (ProcessDiedError, DisagreementError)


def run_in_processes(experiment: Experiment, job: Job, console: Console) -> Mapping[Task, Exception]:
    """Run a job in new processes, which get its configuration and tasks, whatever started this process.

    A task that fails leaves the processes out of step. So all of them are ended, and started anew for the other tasks.

    Returns:
        The exceptions that tasks have raised.

    Raises:
        Exception: what the first process to fail raised, if no task has caused it.
    """
    failed: dict[Task, Exception] = {}
    message: dict[str, Any] = {
        "config": OmegaConf.to_container(job.config, resolve=True), "tasks": tasks_to_json(job.tasks), "given_up": [],
    }  # fmt: skip
    with stoppable():
        while True:
            start = time.time()
            try:
                elsewhere: Mapping[Task, Exception] = launch(lead, message, experiment.size)
                return {**elsewhere, **failed}
            except Exception as error:
                task = next((task for task in job.tasks if _failure_since(start, task) is not None), None)
                if task is None or isinstance(error, ENDING):
                    raise
                failed[task] = error
            if task is job.tasks[0] and not any(trained_rounds(task.folder)):
                return failed  # there is no ticket to go on with
            message["given_up"].append(str(task.folder))
            console.print(
                f"{task.label} FAILED: {failures.one_line(failed[task])}\n"
                "The processes are started anew for what is left.",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def lead(message: dict[str, Any]) -> Mapping[Task, Exception]:
    """Run a job in the first of its processes, and return the failed tasks."""
    config = OmegaConf.create(message["config"])
    assert isinstance(config, DictConfig)
    experiment = Experiment.from_config(config)
    job = Job(config, options_of(config), tasks_from_json(message["tasks"]))
    given_up = [task for task in job.tasks if str(task.folder) in message["given_up"]]
    return run_tasks(experiment, job, Console(), given_up)
