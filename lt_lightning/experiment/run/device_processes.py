"""A job on several devices: process 0 runs it, the others take part in its trainings and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.execution.machine import keep_freed_memory
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.scheduler import Scheduler
from lt_lightning.experiment.run.stopping import stoppable
from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import Task, tasks_from_json, tasks_to_json
from lt_lightning.storage.rounds import trained_rounds
from lt_lightning.training.agreement import DisagreementError
from lt_lightning.training.launcher import JobError, ProcessDiedError, launch
from lt_lightning.training.processes import follow, rank

ENTRY = f"{__name__}:take_part_in_job"
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
            try:
                elsewhere: Mapping[Task, Exception] = launch(ENTRY, message, experiment.devices, job.config.threads)
                return {**elsewhere, **failed}
            except JobError as ended:
                task = next((task for task in job.tasks if str(task.folder) == ended.at), None)
                if task is None or isinstance(ended.error, ENDING) or not isinstance(ended.error, Exception):
                    raise ended.error from None
                failed[task] = ended.error
            failure = Failure.of(failed[task])
            failure.save(task.folder)
            if task is job.tasks[0] and not any(trained_rounds(task.folder)):
                return failed  # there is no ticket to go on with
            message["given_up"].append(str(task.folder))
            console.print(
                f"{task.label} FAILED: {failure.error}\nThe processes are started anew for what is left.",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def take_part_in_job(message: dict[str, Any]) -> Mapping[Task, Exception] | None:
    """Do this process's part of a job, and return the failed tasks: process 0 schedules, the others follow."""
    config = OmegaConf.create(message["config"])
    assert isinstance(config, DictConfig)
    keep_freed_memory()
    experiment = Experiment.from_config(config)
    experiment.use_threads()
    if rank() == 0:
        job = Job(config, tasks_from_json(message["tasks"]))
        given_up = tuple(task for task in job.tasks if str(task.folder) in message["given_up"])
        with stoppable(), JobProgress(0, Console(), Multirun.of(config)) as progress:
            scheduler = Scheduler(experiment, job, progress, given_up)
            scheduler.run()
        return scheduler.failed
    follow(experiment)
    return None
