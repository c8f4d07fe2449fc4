"""Whether a user's own training goes with pruning: its callbacks, its validations, its state, and a second fit.

Everything here is looked at before the first epoch. `docs/callbacks.md` has the callbacks of Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lt_lightning.training.batches import batches_per_epoch
from lt_lightning.training.lightning_internals import is_lightning, pl, rank_zero_warn, validation_clock
from lt_lightning.training.timeline import Timeline

# Callbacks of Lightning, by name; those that inherit from them are meant, too.
REFUSED: Mapping[str, str] = {
    "EarlyStopping": "would end all rounds at once",
    "WeightAveraging": "averages weights of before and after a pruning, and validates others than the ticket's",
    "StochasticWeightAveraging": "averages weights of before and after a pruning, and sets the learning rates",
    "BaseFinetuning": "adds parameters to optimizers while they train, which the rewind point does not have",
    "ModelPruning": "prunes the network with masks of its own",
    "GradientAccumulationScheduler": "counts the epochs of the whole fit, so that rounds take other steps",
    "LearningRateFinder": "trains the network before its training; find the rate with a Trainer of its own",
    "BatchSizeFinder": "trains the network before its training; find the batch size with a Trainer of its own",
}


def check_callbacks(trainer: pl.Trainer, own: object, allowed: Iterable[str] = ()) -> None:
    """See that no callback of Lightning does what pruning, or the training of a ticket, cannot bear.

    Args:
        trainer: the Trainer.
        own: the callback that cannot.
        allowed: names from `REFUSED` that it can bear.

    Raises:
        ValueError: if there is one; it is named, with the reason.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, reason in REFUSED.items():
            if name not in allowed and is_lightning(callback, name):
                raise ValueError(f"{type(callback).__name__}: remove it beside {type(own).__name__}; it {reason}")


def warn_of_checkpoints(trainer: pl.Trainer, example: str) -> None:
    """Say what is compared where a ModelCheckpoint chooses the best epochs.

    Args:
        trainer: the Trainer.
        example: path of a ticket, whose trained weights are those of a round's best epoch.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not is_lightning(callback, "ModelCheckpoint"):
            continue
        monitor, count = callback.monitor, callback.save_top_k
        if monitor is not None and count > 0:
            rank_zero_warn(
                f"ModelCheckpoint(monitor={monitor!r}, save_top_k={count}): compares the epochs of all rounds, of "
                "which the dense ones are usually best; each round's best epoch is in its ticket: "
                f"Ticket.load({example!r}).trained"
            )


def check_first_fit(trainer: pl.Trainer) -> None:
    """See that a Trainer has not trained yet, unless it resumes.

    Raises:
        ValueError: if it has: it would go on counting where it stopped, and train nothing.
    """
    if trainer.current_epoch > 0 and trainer.ckpt_path is None:
        raise ValueError(
            f"Trainer(max_epochs={trainer.max_epochs}): has trained {trainer.current_epoch} epochs already, and a "
            "second fit would go on from there; make a new Trainer, or resume with ckpt_path"
        )


def check_tensors_only(module: nn.Module) -> None:
    """See that the state of a module is tensors, which a ticket can hold.

    Raises:
        ValueError: if one of its modules has an extra state (`get_extra_state`) that is none.
    """
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: get_extra_state returns a {type(value).__name__}, and tickets hold tensors only; let it "
                "return a tensor, or register buffers"
            )


def check_validations(trainer: pl.Trainer, timeline: Timeline, monitor: str) -> None:
    """See that every training has its validations, and later ones at the same batches as the dense one.

    Args:
        trainer: the Trainer, its data loaded.
        timeline: the epochs of the fit.
        monitor: metric that the validations log.

    Raises:
        ValueError: if one has none, or has them elsewhere; it names the argument of the Trainer.
    """
    every, last = trainer.check_val_every_n_epoch, timeline.epochs
    first = last - timeline.epochs_per_training
    if every is not None and last // every == first // every:
        raise ValueError(
            f"Trainer(check_val_every_n_epoch={every}): leaves a training of the epochs {first} to {last - 1} without "
            f"a validation, and monitor={monitor!r} needs one; validate more often, or set monitor=None"
        )
    if seconds := validation_clock(trainer):
        raise ValueError(
            f"Trainer(val_check_interval={seconds:g} s): lets a clock decide what is validated, and "
            f"monitor={monitor!r} compares validations; count batches or epochs, or set monitor=None"
        )
    batches = trainer.val_check_batch
    length = timeline.epochs_per_training * batches_per_epoch(trainer)
    if every is None and batches is not None and not math.isinf(batches) and length % batches:
        raise ValueError(
            f"Trainer(val_check_interval={batches}, check_val_every_n_epoch=None): does not divide the {length} "
            "batches of a round, so that rounds would be validated at other batches than the dense training; choose a "
            "divisor"
        )
