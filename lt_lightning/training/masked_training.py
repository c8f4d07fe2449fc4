"""What all trainings of tickets share: pruned weights stay zero, and the best validation epoch is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lt_lightning.execution.machine import uncompiled
from lt_lightning.pruning.dry_run import harmless_state
from lt_lightning.pruning.enforcement import (
    EnforcedMasks,
    check_enforced,
    check_finite,
    check_gradients,
    check_masks,
    check_zeros,
    packed,
)
from lt_lightning.pruning.layers import has_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import Restart, copied_values
from lt_lightning.training.agreement import check_agreement
from lt_lightning.training.compatibility import check_first_fit, check_tensors_only
from lt_lightning.training.lightning_internals import Callback, epoch_is_whole, pl, validation_metrics
from lt_lightning.training.timeline import Periods


class StoppedEarlyError(ValueError):
    """Raised at the end of a fit that was stopped before all was trained that had been asked for."""


def stopped_early(trainer: pl.Trainer) -> str:
    """Return the message that a fit is stopped before its end."""
    return (
        f"the fit was stopped in epoch {trainer.current_epoch} of {trainer.max_epochs}: what stops a fit (max_time, "
        "should_stop, a callback) ends no search and no training of a ticket; go on from the last checkpoint"
    )


class MaskedTraining(Callback):
    """Enforce masks on a network while it trains, and remember the state of its best validation.

    Masks live here, not in the network: no hooks, no parametrisation, plain `state_dict` keys.

    Args:
        monitor: metric of the validation by which the best epoch is chosen; None takes the last epoch.
        monitor_mode: whether a higher (`max`) or a lower value (`min`) is better.
        network: path of the submodule of the LightningModule that is pruned; None is its attribute `network` where it
            has one, else the only submodule that has layers to prune, else the LightningModule itself.

    Raises:
        ValueError: if `monitor_mode` is neither of the two.
    """

    def __init__(
        self,
        monitor: str | None = None,
        monitor_mode: Literal["max", "min"] = "max",
        network: str | None = None,
    ) -> None:
        if monitor_mode not in ("max", "min"):
            raise ValueError(f"monitor_mode={monitor_mode!r}: must be one of max, min")
        self.monitor = monitor
        self.monitor_mode = monitor_mode
        self._network_path = network
        self._reset()

    def _reset(self) -> None:
        """Forget every fit before."""
        self.best: dict[str, Any] = {}
        self._validated: dict[str, float] = {}
        self.enforced_masks: Masks = {}
        self._enforced: EnforcedMasks | None = None
        self._reference: dict[str, Tensor] = {}
        self._harmless: frozenset[str] = frozenset()
        self._stepped = False
        self._keeps_rates: Restart | None = None
        self._periods: Periods | None = None
        self._arguments: dict[str, Any] = {}
        self._resumed_arguments: dict[str, Any] | None = None
        self._seconds = 0.0
        self._clock: float | None = None

    def network_of(self, pl_module: pl.LightningModule) -> nn.Module:
        """Return the module that is pruned; of a compiled one the module that was compiled.

        Raises:
            ValueError: if the path names no submodule, or if without a path it is not clear which one is meant.
        """
        return uncompiled(self._chosen_network(pl_module))

    def _chosen_network(self, pl_module: pl.LightningModule) -> nn.Module:
        if self._network_path is not None:
            try:
                return pl_module.get_submodule(self._network_path)
            except AttributeError:
                modules = ", ".join(name for name, _ in pl_module.named_children()) or "none"
                raise ValueError(
                    f"network={self._network_path!r}: is no submodule of {type(pl_module).__name__} (it has {modules})"
                ) from None
        network = getattr(pl_module, "network", None)
        if isinstance(network, nn.Module):
            return network
        able = _with_layers(pl_module)
        if len(able) == 1:
            return pl_module.get_submodule(able[0])
        if type(pl_module).forward.__qualname__ == "LightningModule.forward":
            raise ValueError(
                f"network=None: {type(pl_module).__name__} has no forward of its own, and layers to prune in several "
                f"submodules ({', '.join(able)}); name one of them"
            )
        return pl_module

    def prepare_fit(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, masks: Masks, arguments: dict[str, Any]
    ) -> None:
        """See, before the first epoch, that the optimizers leave pruned weights alone, and what is resumed.

        Args:
            trainer: the Trainer, its optimizers and schedules set up.
            pl_module: the LightningModule.
            masks: masks of all parameters that will be pruned.
            arguments: what determines the training, as builtins; a resumed fit must have the same.

        Raises:
            ValueError: if an optimizer moves pruned weights, or an argument is not the checkpoint's.
        """
        self._arguments = arguments
        if self._resumed_arguments is not None:
            _check_same(arguments, self._resumed_arguments)
        network = self.network_of(pl_module)
        self._harmless = frozenset().union(*(harmless_state(each, network, masks) for each in trainer.optimizers))
        self._periods = Periods.of(trainer)

    def follow_epoch(self, trainer: pl.Trainer, epoch: int) -> None:
        """Let schedules and validations treat the current epoch of the fit as that epoch of a training."""
        assert self._periods is not None
        self._periods.follow(trainer, epoch)

    def enforce(self, trainer: pl.Trainer, network: nn.Module, masks: Masks) -> None:
        """Keep pruned weights zero from now on: in the network, in the optimizers, and after every step."""
        self.enforced_masks = masks
        self._reference = packed(masks)
        self._enforced = EnforcedMasks(network, masks)
        self._enforced.zero_weights()
        self._enforced.zero_gradients()  # those of the step before, which nobody needs any more
        self._enforced.zero_optimizer_state(trainer.optimizers)
        check_agreement(f"masks in epoch {trainer.current_epoch}", masks)
        check_agreement(f"weights in epoch {trainer.current_epoch}", dict(network.named_parameters()))

    def keep_rates(self, restart: Restart | None) -> None:
        """Train at the last learning rates of the dense training from now on, if that is how a restart goes on."""
        self._keeps_rates = restart if restart is not None and restart.mode == "none" else None

    def start_training(self) -> None:
        """Forget the best validation and the time of the training before."""
        self.best = {}
        self._validated = {}
        self._seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Count time from here on."""
        self._clock = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since `start_training`, validation included; pauses before a resume do not count."""
        if self._clock is not None:
            now = time.perf_counter()
            self._seconds += now - self._clock
            self._clock = now
        return self._seconds

    def finish_training(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:
        """Return the best validation: `epoch` (counted from 0), `metrics`, `state` (parameters and buffers, by value).

        Raises:
            ValueError: if there was no validation, or a pruned weight is not zero.
            FloatingPointError: if a value is not finite.
        """
        check_agreement(f"weights in epoch {epoch}", dict(network.named_parameters()))
        if self.monitor is None:
            self.best = {"epoch": epoch, "metrics": self._validated, "state": copied_values(network.state_dict())}
        elif not self.best:
            raise ValueError(f"monitor={self.monitor!r}: needs a validation in every training, and there was none")
        check_finite(self.best["state"])
        if self._enforced is not None:
            check_zeros("the best epoch's weight", self.best["state"], self._enforced.factors)
        return self.best

    def check_integrity(self, trainer: pl.Trainer) -> None:
        """Stop a training in which a pruned weight came back, or a mask is not what it was.

        Raises:
            ValueError: if so, naming the parameter.
            FloatingPointError: if a weight is not a number.
        """
        if self._enforced is None:
            return
        check_masks(self.enforced_masks, self._reference, "enforced")
        applied = {name: factor.bool() for name, factor in self._enforced.factors.items()}
        check_masks(applied, self._reference, "applied")
        check_enforced(self._enforced, trainer.optimizers, self._harmless)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._reset()
        check_first_fit(trainer)
        check_tensors_only(pl_module)
        if self.monitor is not None and not trainer.enable_validation:
            raise ValueError(
                f"monitor={self.monitor!r}: needs a validation, and the fit has none; give it one, or set monitor=None"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stepped = False  # gradients are those of the loss, or add up to them, until the optimizer steps
        if self._keeps_rates is not None:
            self._keeps_rates.fix_rates(trainer.optimizers)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._stepped = True
        if self._enforced is not None:
            self._enforced.zero_gradients()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # An epoch's last batch ends a step, and validation, which comes next, forgets the gradients.
        if self._enforced is not None and trainer.is_last_batch and self._stepped:
            check_gradients(self._enforced)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the masks, and that all of the epoch was trained.

        Raises:
            StoppedEarlyError: if the fit is stopped within the epoch.
            ValueError: see `check_integrity`.
        """
        if not (epoch_is_whole(trainer) or self._may_stop_early(trainer)):
            raise StoppedEarlyError(stopped_early(trainer))
        self.check_integrity(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that no epoch is missing.

        Raises:
            StoppedEarlyError: if the fit is stopped before its last epoch.
        """
        if trainer.current_epoch < (trainer.max_epochs or 0) and not self._may_stop_early(trainer):
            raise StoppedEarlyError(stopped_early(trainer))

    def _may_stop_early(self, trainer: pl.Trainer) -> bool:
        """Say whether the training may be shorter than asked, as its user wants it."""
        return False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.status == "running":
            self.check_integrity(trainer)
            if self._enforced is not None and self._stepped:
                check_gradients(self._enforced)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        logged = validation_metrics(trainer)
        if self.monitor is not None and self.monitor not in logged:
            known = ", ".join(sorted(logged)) or "nothing"
            raise ValueError(f"monitor={self.monitor!r}: is not logged by the validation, which logs {known}")
        if not trainer.sanity_checking:
            self._validated = logged
            self._compare(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self._periods is not None:
            self._periods.restore(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and builtins only, since Lightning loads checkpoints weights-only."""
        return {
            "arguments": self._arguments,
            "enforced_masks": self.enforced_masks,
            "best": self.best,
            "validated": self._validated,
            "seconds": self.seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed_arguments = state_dict["arguments"]
        self.enforced_masks = state_dict["enforced_masks"]
        self.best = state_dict["best"]
        self._validated = state_dict["validated"]
        self._seconds = state_dict["seconds"]

    def _compare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the network of this validation if it is the best of its training."""
        if self.monitor is None:
            return
        value = self._validated[self.monitor]
        if math.isnan(value):
            raise FloatingPointError(
                f"monitor={self.monitor!r}: is nan in epoch {trainer.current_epoch}, the training has diverged"
            )
        sign = 1 if self.monitor_mode == "max" else -1
        # The last of equals is taken: a small validation set saturates long before the training does.
        if not self.best or sign * value >= sign * self.best["metrics"][self.monitor]:
            state = copied_values(self.network_of(pl_module).state_dict())
            self.best = {"epoch": trainer.current_epoch, "metrics": self._validated, "state": state}


def _with_layers(pl_module: nn.Module) -> list[str]:
    """Return the names of the submodules that have layers to prune."""
    return [name for name, module in pl_module.named_children() if any(map(has_layers, module.modules()))]


def _check_same(arguments: Mapping[str, Any], resumed: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if value != resumed.get(name):
            raise ValueError(
                f"{name}={value!r}: the fit that is resumed has {name}={resumed.get(name)!r}; resume it with that, or "
                "start a new one"
            )
