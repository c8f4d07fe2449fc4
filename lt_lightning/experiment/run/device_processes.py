"""A job on several devices: process 0 runs it, the others take part in its trainings and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import ParallelStrategy
from rich.console import Console

from lt_lightning.execution.timing import keep_freed_memory
from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.experiment.run.stopping import stoppable
from lt_lightning.results.failures import Failure
from lt_lightning.results.paths import Task
from lt_lightning.results.status import rounds_done
from lt_lightning.training.agreement import DisagreementError
from lt_lightning.training.launcher import JobError, ProcessDiedError, launch
from lt_lightning.training.lightning_internals import quieten
from lt_lightning.training.processes import follow, processes, rank

ENTRY = "lt_lightning.experiment.run.device_processes:take_part"
# No task's own: someone wants the processes to end, or they cannot be trusted.
ENDING = (ProcessDiedError, DisagreementError)


def devices_of(config: DictConfig) -> list[str]:
    """The devices that the configuration asks for and this machine has: `cpu`, or `cuda:0`, `cuda:1`, ...

    Raises:
        ValueError: if it asks for another way of using several.
    """
    for key in ("strategy", "num_nodes", "plugins"):
        if (value := config.trainer.get(key)) is not None:
            raise ValueError(
                f"trainer.{key}={value}: a job runs one process a device, on one machine, by DDP: remove it, and "
                "choose the devices by trainer.devices"
            )
    quieten()
    plain = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer: pl.Trainer = instantiate(config.trainer, **plain)
    if isinstance(trainer.strategy, ParallelStrategy):
        return [str(device) for device in trainer.strategy.parallel_devices or ()]
    return [str(trainer.strategy.root_device)]


def needs_processes(config: DictConfig) -> bool:
    """Whether the job is still to be handed to several processes."""
    return processes() == 1 and len(devices_of(config)) > 1


def work_in_processes(config: DictConfig, tasks: Sequence[Task]) -> Mapping[Task, Exception]:
    """What `study.run.work` does, in one process a device.

    They get the composed configuration, so that all of them do the same, whatever started this process. One that fails
    leaves the others out of step, so all are ended with it, and started anew for the other tasks.

    Raises:
        Exception: what the first of them to fail raised, if that is no task's own failure.
    """
    failed: dict[Task, Exception] = {}
    job: dict[str, Any] = {"config": OmegaConf.to_container(config, resolve=True), "given_up": []}
    with stoppable():
        while True:
            try:
                elsewhere: Mapping[Task, Exception] = launch(ENTRY, job, devices_of(config), config.threads)
                return {**elsewhere, **failed}
            except JobError as ended:
                task = next((task for task in tasks if str(task.folder) == ended.at), None)
                if task is None or isinstance(ended.error, ENDING) or not isinstance(ended.error, Exception):
                    raise ended.error from None
                failed[task] = ended.error
            failure = Failure.of(failed[task])
            failure.save(task.folder)
            if task is tasks[0] and not any(rounds_done(task.folder)):
                return failed  # there is no ticket to go on with
            job["given_up"].append(str(task.folder))
            Console().print(
                f"{task.label} FAILED: {failure.error}\nThe processes are started anew for what is left.",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def take_part(job: dict[str, Any]) -> Mapping[Task, Exception] | None:
    """What each of the processes does."""
    from lt_lightning.experiment.run.experiment import Experiment
    from lt_lightning.experiment.run.run import work

    quieten()
    config = OmegaConf.create(job["config"])
    assert isinstance(config, DictConfig)
    if rank() == 0:
        tasks = tasks_of(config)
        return work(config, tasks, [task for task in tasks if str(task.folder) in job["given_up"]])
    keep_freed_memory()
    follow(Experiment.from_config(config))
    return None
