"""Which round, and which training within it, an epoch of the one fit belongs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """The epochs of a fit that hosts all rounds, counted from 0.

    The dense training comes first. Every round after it ends with the training of its ticket, from the rewind point on;
    where masks come to be within a training, one more of the same length stands before that.

    Attributes:
        epochs: of the dense training.
        rewind: the rewind point in it: whole epochs, and optimizer steps into the epoch after them.
        rounds: after the dense one.
        trainings: of each round, 1 or 2.

    >>> timeline = Timeline(epochs=4, rewind=(1, 0), rounds=2)
    >>> timeline.round_lengths, [timeline.round_of(epoch) for epoch in range(timeline.total_epochs)]
    ([4, 3, 3], [0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    """

    epochs: int = 0
    rewind: tuple[int, int] = (0, 0)
    rounds: int = 0
    trainings: int = 1

    @property
    def epochs_per_training(self) -> int:
        """Of every training after the dense one: what the schedule has left behind the rewind point."""
        return self.epochs - self.rewind[0]

    @property
    def round_lengths(self) -> list[int]:
        """Epochs of every round, the dense one first."""
        return [self.epochs] + [self.trainings * self.epochs_per_training] * self.rounds

    @property
    def total_epochs(self) -> int:
        """Length of the whole fit."""
        return sum(self.round_lengths)

    def round_of(self, epoch: int) -> int:
        """The round that an epoch belongs to."""
        return 0 if epoch < self.epochs else 1 + (epoch - self.epochs) // self.round_lengths[1]

    def ticket_epoch(self, number: int) -> int:
        """The first epoch of the training of a round's ticket."""
        return sum(self.round_lengths[: number + 1]) - (self.epochs_per_training if number else self.epochs)

    def ends_round(self, epoch: int) -> bool:
        """Whether it is the last epoch of a round."""
        return epoch + 1 == self.total_epochs or self.round_of(epoch + 1) != self.round_of(epoch)

    def ends_training(self, epoch: int) -> bool:
        """Whether it is the last epoch of a training, of a ticket or before it."""
        return self.ends_round(epoch) or epoch + 1 == self.ticket_epoch(self.round_of(epoch))
