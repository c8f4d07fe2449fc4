"""Both Lightning packages side by side, and all that uses what they do not document, as pytorch-lightning 2.6 has it.

`pytorch_lightning` and `lightning.pytorch` have equal classes that are not the same ones. One of them is enough, and
where both are installed a user may mean either. What is handed to a Trainer is therefore a class of both, and what is
looked for among the user's objects is known by name.

Nothing else in the package touches a private attribute of Lightning, or the loops of a Trainer. The tests of this
module, and those of resuming, fail where another version of Lightning has other names.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_utilities.core import rank_zero
from torch import Tensor
from torchmetrics import Metric

NAMES = ("pytorch_lightning", "lightning.pytorch")


def installed_packages() -> list[ModuleType]:
    """Import and return those of the two packages that are installed, first the one that is imported already.

    They share one logger, which each takes for itself when it is imported; it stays the first one's.

    Raises:
        ImportError: if there is none.
    """
    packages: list[ModuleType] = []
    logger = None
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            packages.append(import_module(name))
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
        else:
            logger = logger or rank_zero.log
    if logger is None:
        raise ImportError(f"training needs Lightning, and there is neither {' nor '.join(NAMES)}: install one of them")
    rank_zero.log = logger
    return packages


if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import WandbLogger
    from pytorch_lightning.plugins import LayerSync
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.seed import isolate_rng
else:
    _packages = installed_packages()
    pl = _packages[0]
    Callback = type("Callback", tuple(each.Callback for each in _packages), {"__doc__": "A callback of each package."})
    LayerSync = pl.plugins.LayerSync
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    isolate_rng = pl.utilities.seed.isolate_rng


def is_lightning(thing: object, *names: str) -> bool:
    """Whether an object's class, or one of its bases, is a Lightning class of one of these names, in either package.

    >>> from pytorch_lightning.callbacks import EarlyStopping
    >>> is_lightning(EarlyStopping("loss"), "EarlyStopping", "Timer"), is_lightning(EarlyStopping("loss"), "Timer")
    (True, False)
    """
    return any(
        each.__name__ in names and each.__module__.startswith(tuple(f"{name}." for name in NAMES))
        for each in type(thing).__mro__
    )


__all__ = ["Callback", "LayerSync", "is_lightning", "isolate_rng", "pl", "rank_zero_info", "rank_zero_warn"]


# The loops of a fit


def extend_to(trainer: pl.Trainer, epochs: int) -> None:
    """Make the running fit that many epochs long."""
    trainer.fit_loop.max_epochs = epochs


def load_data(trainer: pl.Trainer) -> None:
    """Set up the loaders of a fit before Lightning does so itself, so that the length of an epoch is known."""
    trainer.fit_loop.setup_data()


def training_loader(trainer: pl.Trainer) -> Any:
    """Return a new loader of the training data, as the LightningModule or the data module gives it."""
    return trainer.fit_loop._data_source.dataloader()


def schedules_of(trainer: pl.Trainer) -> list[Any]:
    """Return the learning-rate schedules of a fit."""
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def validation_clock(trainer: pl.Trainer) -> float | None:
    """Return the seconds after which a fit validates; None where it counts batches or epochs."""
    seconds: float | None = getattr(trainer, "_val_check_time_interval", None)
    return seconds


def scales_gradients(trainer: pl.Trainer) -> bool:
    """Say whether the precision scales the loss, and gradients with it, as float16 does in mixed precision."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def steps_in_epoch(trainer: pl.Trainer) -> int:
    """Return the number of optimizer steps done in the current epoch."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(batches.processed) // trainer.accumulate_grad_batches


def epoch_is_whole(trainer: pl.Trainer) -> bool:
    """Say whether the last batch of the current epoch is done."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def share_of_epoch(trainer: pl.Trainer) -> float:
    """Return the share of the batches of the current epoch that are done."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return min(1.0, float(batches.processed / trainer.num_training_batches))


def batch_in_fit(trainer: pl.Trainer) -> int:
    """Return the index of the current batch, counted from the beginning of the fit."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return what the validation that ends now has logged, by name: means over all its batches."""
    assert trainer._results is not None
    return {name: float(value) for name, value in trainer._results.metrics(on_step=False)["callback"].items()}


def logged_step(trainer: pl.Trainer) -> int:
    """Return the step under which loggers get what is logged now."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: pl.Trainer, step: int) -> None:
    """Set the step under which loggers get what is logged next; a resume at an epoch's start counts one too many."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def begin_counting(trainer: pl.Trainer) -> None:
    """Count the batches of the epoch that begins from 0, as Lightning does after the callbacks."""
    trainer.fit_loop.epoch_loop.reset()


def log_step(trainer: pl.Trainer) -> None:
    """Send to the loggers what was logged in the step that ends, as Lightning does after the callbacks."""
    trainer._logger_connector.update_train_step_metrics()


def between_steps(trainer: pl.Trainer) -> bool:
    """Say whether the next thing that the fit does, were it not stopped, is another step of this epoch."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    stopped, trainer.should_stop = trainer.should_stop, False
    between = not (loop._is_training_done or loop._should_check_val_fx(fetcher) or loop._should_accumulate())
    trainer.should_stop = stopped
    return between


def starts_by_multiprocessing(trainer: pl.Trainer) -> bool:
    """Say whether the fit runs in copies of this process, which get its callbacks and give none back."""
    return is_lightning(getattr(trainer.strategy, "launcher", None), "_MultiProcessingLauncher")


# The part of a running epoch that Lightning's checkpoints leave out: random states, means so far, the loader


def running_state(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return the state of this process within an epoch, between two steps, as tensors and builtins."""
    # Where an epoch begins, the loader still stands at the end of the epoch before.
    loader: Any = trainer.train_dataloader if steps_in_epoch(trainer) else None
    return {
        "random": random_states(pl_module.device),
        "loader": loader.state_dict() if hasattr(loader, "state_dict") else None,
        "metrics": _metrics_state(pl_module),
        "logged": _logged_state(trainer),
    }


def restore_running(trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
    """Restore what `running_state` returned; to be called when all is set up, right before the first step."""
    loader: Any = trainer.train_dataloader
    if state["loader"] is not None:  # Lightning has asked the loader for its iterator already, but for no batch
        loader.load_state_dict(state["loader"])
    _restore_metrics(pl_module, state["metrics"])
    _restore_logged(trainer, pl_module, state["logged"])
    restore_random_states(state["random"], pl_module.device)


# Random states


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators: PyTorch's (the CPU's and the device's), NumPy's, Python's."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), *(float(value) for value in rest)],
        "python": random.getstate(),
    }


def restore_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


# Metrics of torchmetrics: their states are not part of a module's state dict


def _metrics_state(pl_module: pl.LightningModule) -> dict[str, Any]:
    return {
        name: {"values": _copy(module.metric_state), "updates": module._update_count}
        for name, module in pl_module.named_modules()
        if isinstance(module, Metric)
    }


def _restore_metrics(pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
    for name, module in pl_module.named_modules():
        if name in state:
            for key, value in state[name]["values"].items():
                setattr(module, key, _copy(value, pl_module.device))
            module._update_count = state[name]["updates"]


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device or value.device, copy=True)
    if isinstance(value, dict):
        return {key: _copy(each, device) for key, each in value.items()}
    return [_copy(each, device) for each in value] if isinstance(value, list) else value


# Means over the epoch of what was logged


def _logged_state(trainer: pl.Trainer) -> dict[str, Any]:
    connector = trainer._logger_connector
    return {
        "entries": [_entry(each) for each in trainer.fit_loop.epoch_loop._results.values() if not each.has_reset],
        "first_batch": connector._first_loop_iter,
        "hook": connector._current_fx,
    }


def _entry(each: Any) -> dict[str, Any]:
    meta = each.meta
    return {
        "log": {
            "fx": meta.fx, "name": meta.name, "prog_bar": meta.prog_bar, "logger": meta.logger,
            "on_step": meta.on_step, "on_epoch": meta.on_epoch, "enable_graph": meta.enable_graph,
            "add_dataloader_idx": meta.add_dataloader_idx, "metric_attribute": meta.metric_attribute,
            "sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only,
        },
        "reduce": meta.reduce_fx.__name__,
        "value": _copy(each.value) if each.is_tensor else None,
        "count": _copy(each.cumulated_batch_size) if each.is_tensor and meta.is_mean_reduction else None,
    }  # fmt: skip


def _restore_logged(trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
    results = trainer.fit_loop.epoch_loop._results
    device = pl_module.device
    for entry in state["entries"]:
        log = entry["log"]
        value = torch.zeros((), device=device) if entry["value"] is not None else _metric(pl_module, log)
        results.log(
            **log, value=value, reduce_fx=getattr(torch, entry["reduce"]), sync_dist_fn=trainer.strategy.reduce,
            batch_size=1,
        )  # fmt: skip
        restored: Any = results[f"{log['fx']}.{log['name']}"]
        if entry["value"] is not None:
            restored.value = _copy(entry["value"], device)
        if entry["count"] is not None:
            restored.cumulated_batch_size = _copy(entry["count"], device)
    connector = trainer._logger_connector
    connector._first_loop_iter = state["first_batch"]
    connector._current_fx = state["hook"]


def _metric(pl_module: pl.LightningModule, log: dict[str, Any]) -> Metric:
    metric = pl_module.get_submodule(log["metric_attribute"])
    assert isinstance(metric, Metric)
    return metric


# The terminal

MESSAGES = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*smaller than the logging interval.*",
    ".*in distributed setting to accumulate.*",  # what every process has alike: round, density, rate
    ".*Grad strides do not match bucket view strides.*",  # 1x1 convolutions, whose strides can be written in two ways
)


def quieten() -> None:
    """Silence what Lightning says of every Trainer, and its warnings of what is so by design."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message)


def drop_outdated_settings(logger: WandbLogger) -> None:
    """Take back the setting `anonymous`, which Lightning always hands to W&B, and of which W&B warns whatever it is."""
    logger._wandb_init.pop("anonymous", None)
