"""The one fit that hosts all rounds: which round an epoch belongs to, and which Trainers can run it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from lt_lightning.pruning.rewinding import Step
from lt_lightning.pruning.sparsifiers import Sparsifier
from lt_lightning.training.batches import steps_per_epoch
from lt_lightning.training.lightning_internals import pl, scales_gradients, schedules_of, starts_by_multiprocessing
from lt_lightning.training.pruning_options import ScoresFrom


@dataclass(frozen=True)
class Timeline:
    """The epochs of a fit that hosts all rounds, counted from 0.

    The dense training comes first. Every round after it ends with the training of its ticket, from the rewind point on;
    where masks come to be within a training, one more of the same length stands before that.

    Attributes:
        epochs: number of epochs of the dense training.
        rewind: the rewind point in it: whole epochs, and optimizer steps into the epoch after them.
        rounds: number of rounds after the dense one.
        trainings: number of trainings in each of these rounds, 1 or 2.
        whole: whether these trainings have all epochs; else those from the rewind point on.

    >>> timeline = Timeline(epochs=4, rewind=(1, 0), rounds=2)
    >>> timeline.round_lengths, [timeline.round_of(epoch) for epoch in range(timeline.total_epochs)]
    ([4, 3, 3], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    """

    epochs: int = 0
    rewind: tuple[int, int] = (0, 0)
    rounds: int = 0
    trainings: int = 1
    whole: bool = False

    @property
    def first_epoch(self) -> int:
        """The epoch of the dense training with which each later one begins."""
        return 0 if self.whole else self.rewind[0]

    @property
    def epochs_per_training(self) -> int:
        """Number of epochs of each training after the dense one."""
        return self.epochs - self.first_epoch

    @property
    def round_lengths(self) -> list[int]:
        """Number of epochs of every round, the dense one first."""
        return [self.epochs] + [self.trainings * self.epochs_per_training] * self.rounds

    @property
    def total_epochs(self) -> int:
        """Number of epochs of the whole fit."""
        return sum(self.round_lengths)

    def round_of(self, epoch: int) -> int:
        """Return the round that an epoch belongs to."""
        return 0 if epoch < self.epochs else 1 + (epoch - self.epochs) // self.round_lengths[1]

    def training_epoch(self, epoch: int) -> int:
        """Return which epoch of a training an epoch is; later trainings repeat the dense one from the rewind point on.

        >>> timeline = Timeline(epochs=4, rewind=(1, 0), rounds=2)
        >>> [timeline.training_epoch(epoch) for epoch in range(timeline.total_epochs)]
        [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
        """
        return epoch if epoch < self.epochs else self.first_epoch + (epoch - self.epochs) % self.epochs_per_training

    def ticket_epoch(self, number: int) -> int:
        """Return the first epoch in which a round's ticket is trained."""
        return sum(self.round_lengths[: number + 1]) - (self.epochs_per_training if number else self.epochs)

    def epochs_before(self, number: int, scores_from: ScoresFrom) -> int:
        """Return how many epochs the ancestors of a round's ticket were trained.

        Args:
            number: number of the round.
            scores_from: weights that its masks are made from; see `LotteryTicketPruning`.

        >>> timeline = Timeline(epochs=4, rewind=(1, 0), rounds=2)
        >>> [timeline.epochs_before(2, scores_from) for scores_from in ("trained", "dense", "rewound")]
        [7, 4, 1]
        """
        if number == 0:
            return 0
        if scores_from == "trained":
            return self.ticket_epoch(number)
        first = self.ticket_epoch(1)
        return first if scores_from == "dense" else first - self.epochs + self.rewind[0]

    def ends_round(self, epoch: int) -> bool:
        """Say whether an epoch is the last of its round."""
        return epoch + 1 == self.total_epochs or self.round_of(epoch + 1) != self.round_of(epoch)

    def ends_training(self, epoch: int) -> bool:
        """Say whether an epoch is the last of a training, be it a ticket's or the one before it."""
        return self.ends_round(epoch) or epoch + 1 == self.ticket_epoch(self.round_of(epoch))


NEVER = sys.maxsize


@dataclass(frozen=True)
class Periods:
    """What a Trainer does every few epochs: steps of schedules, and validations.

    Lightning counts the epochs of the fit. Later trainings do both in the epochs of the dense training that they
    repeat.

    Attributes:
        schedules: `frequency` of each schedule; where it counts batches, it begins anew in every epoch.
        validation: `check_val_every_n_epoch` of the Trainer.
    """

    schedules: tuple[int, ...]
    validation: int | None

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Periods:
        """Read them from a Trainer whose schedules are set up."""
        return cls(tuple(each.frequency for each in trainer.lr_scheduler_configs), trainer.check_val_every_n_epoch)

    def follow(self, trainer: pl.Trainer, epoch: int) -> None:
        """Let the current epoch of the fit count as that epoch of a training.

        Args:
            trainer: the Trainer.
            epoch: epoch of the training, counted from 0.
        """
        same = epoch == trainer.current_epoch  # as in the dense training, which is Lightning's own
        for config, every in zip(trainer.lr_scheduler_configs, self.schedules, strict=True):
            if config.interval == "epoch":
                steps = 1 if (epoch + 1) % every == 0 else NEVER
                config.frequency = every if same else steps
        if self.validation is not None:
            validates = 1 if (epoch + 1) % self.validation == 0 else NEVER
            trainer.check_val_every_n_epoch = self.validation if same else validates

    def restore(self, trainer: pl.Trainer) -> None:
        """Give the Trainer back what it had; its schedules end with the fit."""
        trainer.check_val_every_n_epoch = self.validation


def check_trainer(trainer: pl.Trainer) -> None:
    """See that a Trainer can host many rounds, before its optimizers are set up.

    Raises:
        ValueError: if it would end the fit too early, does not say how long one training is, or runs it elsewhere.
    """
    if starts_by_multiprocessing(trainer):
        raise ValueError(
            "strategy='ddp_spawn', 'ddp_fork' or 'ddp_notebook': the fit runs in other processes, which leave "
            "LotteryTicketPruning.history empty here: use 'ddp', or one device"
        )
    if trainer.max_epochs is None or trainer.max_epochs < 1 or trainer.max_steps != -1:
        raise ValueError(
            f"Trainer(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}): max_epochs must be the length "
            "of one training (a round), and max_steps unset"
        )


def check_rewind(trainer: pl.Trainer, step: Step, rewind: tuple[int, int]) -> None:
    """See that a training of the Trainer's length, with its schedules, can go back to a step.

    Args:
        trainer: the Trainer, its optimizers and schedules set up.
        step: the step as it was asked for.
        rewind: the same step as whole epochs, and optimizer steps into the epoch after them.

    Raises:
        ValueError: if the step does not lie in a training, or the schedules do not allow it.
    """
    assert trainer.max_epochs is not None
    epochs, steps = rewind
    if epochs >= trainer.max_epochs:
        raise ValueError(
            f"rewind={step}: must lie before the end of a training of {trainer.max_epochs} epochs "
            f"({trainer.max_epochs * steps_per_epoch(trainer)} steps)"
        )
    # Rounds last whole epochs, so from within an epoch they run a little over the schedule's end.
    if steps and any(isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR) for schedule in schedules_of(trainer)):
        raise ValueError(
            f"rewind={step}: lies within an epoch, and OneCycleLR allows no step beyond its end; rewind to a whole "
            "epoch"
        )
    batches = steps * trainer.accumulate_grad_batches
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step" and batches % config.frequency:
            raise ValueError(
                f"rewind={step}: lies between two steps of a schedule with frequency={config.frequency}, which counts "
                "the batches of each epoch; rewind to a whole epoch"
            )


def check_precision(trainer: pl.Trainer, sparsifier: Sparsifier | None) -> None:
    """See that gradients reach a sparsifier as they are.

    Raises:
        ValueError: if the Trainer's precision scales them.
    """
    if sparsifier is not None and scales_gradients(trainer):
        raise ValueError(
            f"sparsifier={type(sparsifier).__name__}: works on gradients, and Trainer(precision={trainer.precision!r}) "
            "scales them; use 'bf16-mixed', or '32-true'"
        )
