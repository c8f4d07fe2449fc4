"""The devices that a configuration asks for."""

from __future__ import annotations

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.strategies import ParallelStrategy


def devices_of(config: DictConfig) -> tuple[str, ...]:
    """Return the devices that the configuration asks for and this machine has: `cpu`, or `cuda:0`, `cuda:1`, ...

    Raises:
        ValueError: if it asks for another way of using several.
    """
    for key in ("strategy", "num_nodes", "plugins"):
        if (value := config.trainer.get(key)) is not None:
            raise ValueError(
                f"trainer.{key}={value}: a job runs one process a device, on one machine, by DDP: remove it, and "
                "choose the devices by trainer.devices"
            )
    plain = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer: pl.Trainer = instantiate(config.trainer, **plain)
    if isinstance(trainer.strategy, ParallelStrategy):
        return tuple(str(device) for device in trainer.strategy.parallel_devices or ())
    return (str(trainer.strategy.root_device),)
