"""Doing a job's tasks, each in one process at a time: what another one has in hand, or has finished, is left to it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path

from lt_lightning.experiment.protocols.bisection import asked, at_most, bisects
from lt_lightning.experiment.run.experiment import TICKET, Experiment
from lt_lightning.experiment.run.outcome import evaluate
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.retraining_task import run_control, run_retraining
from lt_lightning.experiment.run.search import run_search
from lt_lightning.results import failures
from lt_lightning.results.failures import Failure
from lt_lightning.results.locks import Lock, owner_of
from lt_lightning.results.paths import Task
from lt_lightning.results.records import Result, results_of, write_summary
from lt_lightning.results.status import rounds_done
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.processes import processes, tell

POLL = 0.5  # seconds between two looks at what another process is at


class ElsewhereError(RuntimeError):
    """Another process failed at a task that this one waited for."""


class Work:
    """Does the tasks of a job that are neither finished nor in another process's hands, until none is open.

    With bisection what is asked for is found anew after each task, from what is finished by then.
    A task that fails does not stop the others. While another process runs the search, the tickets of its finished
    rounds are retrained.

    Args:
        study: of the job.
        tasks: of the job: the search first.
        job: progress to report to.
        given_up: tasks that failed before, and are left alone.
    """

    def __init__(
        self, experiment: Experiment, tasks: Sequence[Task], job: JobProgress, given_up: Collection[Task] = ()
    ) -> None:
        self.failed: dict[Task, Exception] = {}
        self._experiment = experiment
        self._search = tasks[0]
        self._job = job
        self._given_up = given_up
        self._start = time.time()
        self._bisect = bisects(experiment.config)
        # Last what failed last time, so that it holds up nothing.
        self._tasks = sorted(tasks, key=lambda task: (task is not tasks[0], Failure.load(task.folder) is not None))
        self._open: list[Task] = []
        self._locks = {task: Lock(task.folder) for task in tasks}
        self._told: set[tuple[Path, object]] = set()

    def run(self) -> None:
        """Returns when every task is finished, has failed, or needs another that failed.

        Raises:
            Exception: what a task raised, if the job has several processes: they are out of step then.
        """
        while self._find_open():
            self._job.expect(sum(self.epochs(task) for task in self._unfinished(at_most(self._tasks, self._bisect))))
            task = next((task for task in self._open if self._ready(task) and self._take(task)), None)
            if task is not None:
                self._do(task)
            elif any(self._ready(task) or self._may_get_ready(task) for task in self._open):
                self._tell_what_is_awaited()
                time.sleep(POLL)
            else:  # what is left needs something that failed
                return

    def epochs(self, task: Task) -> int:
        """That a task lasts if it starts anew."""
        if not task.structure:
            return sum(map(sum, self._experiment.search_lengths()))
        return self._experiment.expected_length(0 if task.whole_schedule else task.number)

    def _find_open(self) -> list[Task]:
        self._open = self._unfinished(asked(self._tasks, self._bisect))
        return self._open

    def _unfinished(self, tasks: Sequence[Task]) -> list[Task]:
        left_out = {*self.failed, *self._given_up}
        return [task for task in tasks if task not in left_out and results_of(task) is None]

    def _ready(self, task: Task) -> bool:
        if not task.structure:
            return True
        there = task.source is None or (task.source / f"{TICKET}.safetensors").is_file()
        searched = min(task.number, len(self._search.parts) - 1)  # tickets of a screening need the dense network alone
        return there and searched in rounds_done(self._search.folder)

    def _may_get_ready(self, task: Task) -> bool:
        sources = (other for other in self._open if other.folder == task.source)
        return self._search in self._open or any(map(self._ready, sources))

    def _take(self, task: Task) -> bool:
        """Takes the task's lock, unless another process has it or has finished or failed meanwhile."""
        if not self._locks[task].take():
            return False
        failure = Failure.load(task.folder)
        if failure is not None and failure.time > self._start:
            self.failed[task] = ElsewhereError(f"{failure.error} (in another process)")
        if task in self.failed or results_of(task) is not None:
            self._locks[task].release()
            return False
        return True

    def _do(self, task: Task) -> None:
        lock = self._locks[task]
        self._job.watched_by(lock.tell)
        tell(str(task.folder))
        try:
            _clear_litter(task)
            self._run(task)
            failures.clear(task.folder)
            write_summary(self._experiment.root)
            tell("")
        except Exception as error:
            Failure.of(error).save(task.folder)
            traceback.clear_frames(error.__traceback__)  # they hold the failed training's memory
            self.failed[task] = error
            if processes() > 1:
                raise
            self._job.finish(f"{task.label} FAILED: {failures.one_line(error)}")
        finally:
            self._job.watched_by(None)
            lock.release()

    def _run(self, task: Task) -> None:
        if task.control:
            run_control(self._experiment, task, self._dense_accuracy(), self._job)
        elif task.structure:
            run_retraining(self._experiment, task.number, task.structure, self._dense_accuracy(), self._job)
        else:
            run_search(self._experiment, self._job)

    def _dense_accuracy(self) -> float:
        """Tested anew where the search has not come so far: it tests its tickets at its end."""
        folder = self._search.parts[0]
        if (result := Result.load(folder)) is not None:
            return result.accuracy
        return evaluate(self._experiment, self._experiment.classifier(), Ticket.load(folder / TICKET))

    def _tell_what_is_awaited(self) -> None:
        for task in self._open:
            owner = owner_of(task.folder)
            if owner is not None and (task.folder, owner.since) not in self._told:
                self._told.add((task.folder, owner.since))
                self._job.note(f"{task.label} is in the hands of {owner}")


def _clear_litter(task: Task) -> None:
    """Removes what a killed owner was just writing; other folders may be in other hands."""
    for folder in {task.folder, *task.parts, *(part.parent for part in task.parts if not task.structure)}:
        for partial in folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)
