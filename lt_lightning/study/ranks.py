"""A job on several devices: process 0 runs it, the others take part in its trainings and tests."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import ParallelStrategy

from lt_lightning.distributed.launch import launch
from lt_lightning.distributed.rank import follow, processes, rank
from lt_lightning.measure.allocator import keep_freed_memory
from lt_lightning.study.quiet import quieten
from lt_lightning.study.stopping import stoppable

ENTRY = "lt_lightning.study.ranks:take_part"


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


def run_in_processes(config: DictConfig) -> Any:
    """What `study.run.run` does, in one process a device.

    They get the composed configuration, so that all of them do the same, whatever started this process.

    Raises:
        Exception: what the first of them to fail raised.
    """
    with stoppable():
        return launch(ENTRY, OmegaConf.to_container(config, resolve=True), devices_of(config), config.threads)


def take_part(job: dict[str, Any]) -> Any:
    """What each of the processes does."""
    from lt_lightning.study.run import run
    from lt_lightning.study.study import Study

    quieten()
    config = OmegaConf.create(job)
    assert isinstance(config, DictConfig)
    if rank() == 0:
        return run(config)
    keep_freed_memory()
    follow(Study.from_config(config))
    return None
