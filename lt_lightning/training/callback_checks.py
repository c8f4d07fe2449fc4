"""What `LotteryTicketPruning` refuses: values that are none, and values that do not go together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from lt_lightning.pruning.at_initialisation import SynFlow
from lt_lightning.pruning.densities import descending
from lt_lightning.pruning.rewinding import Mode, Step
from lt_lightning.pruning.selection import Scope
from lt_lightning.pruning.sparsifiers import Sparsifier
from lt_lightning.ticket_names import DENSE, UNSTRUCTURED
from lt_lightning.training.batches import steps_per_epoch
from lt_lightning.training.masked_training import schedules_of

if TYPE_CHECKING:
    from lt_lightning.training.callback import LotteryTicketPruning


OnCollapse = Literal["warn", "stop"]
ScoresFrom = Literal["trained", "dense", "rewound"]
Density = float | Sequence[float] | None


def check_values(pruning: LotteryTicketPruning, rounds: int, density: Density) -> None:
    """Each argument by itself.

    Raises:
        ValueError: that names the argument, its value and what would be right.
    """
    if rounds < 0:
        raise ValueError(f"pruning.rounds={rounds} is not a number of rounds")
    asked = [] if density is None else descending(density)
    if density is not None and not (asked and all(0 < each < 1 for each in asked)):
        raise ValueError(f"pruning.density={density} is not a share in (0, 1), or a list of them")
    if not 0 < pruning.rate < 1:
        raise ValueError(f"pruning.rate={pruning.rate} is not a share in (0, 1)")
    if pruning.gradient_batches < 0:
        raise ValueError(f"pruning.gradient_batches={pruning.gradient_batches} is negative")
    for key, value, allowed in (
        ("scope", pruning.scope, (*get_args(Scope), "imp")),
        ("scores_from", pruning.scores_from, get_args(ScoresFrom)),
        ("mode", pruning.mode, get_args(Mode)),
        ("on_collapse", pruning.on_collapse, get_args(OnCollapse)),
        ("next_round_from", pruning.next_round_from, (UNSTRUCTURED, *pruning.structures)),
    ):
        if value not in allowed:
            raise ValueError(f"pruning.{key}={value!r} is not one of {', '.join(allowed)}")
    if reserved := {UNSTRUCTURED, DENSE} & set(pruning.structures):
        raise ValueError(f"structure.{reserved.pop()} is a reserved name: give the structure another")
    try:
        json.dumps(pruning.facts)
    except TypeError as error:
        raise ValueError(f"facts={pruning.facts} cannot go on a ticket's card: {error}") from None


def check_together(pruning: LotteryTicketPruning, density: Density) -> None:
    """Arguments that are right by themselves, beside each other.

    Raises:
        ValueError: that names both and which to change.
    """
    needy = [name for name, structure in pruning.structures.items() if structure.needs_gradients]
    if needy and not pruning.gradient_batches:
        raise ValueError(
            f"{', '.join(needy)} needs gradients: set pruning.gradient_batches to the number of batches to sum "
            "them over"
        )
    anew = pruning.scores_from != "trained" and pruning.sparsifier is None
    if anew and pruning.mode != "weights" and pruning.rounds > 1:
        raise ValueError(
            f"pruning.scores_from={pruning.scores_from!r} prunes anew in every round, and "
            f"pruning.mode={pruning.mode!r} goes on from the round before: set pruning.rounds=1, or "
            "pruning.mode=weights"
        )
    if pruning.scores_from == "trained" and density is not None and pruning.next_round_from != UNSTRUCTURED:
        raise ValueError(
            f"pruning.density={density} cannot be hit with pruning.next_round_from={pruning.next_round_from!r}, whose "
            "density is its own: set pruning.rounds, or pruning.next_round_from=unstructured"
        )
    if pruning.scope == "imp" and pruning.sparsifier is not None:
        name = type(pruning.sparsifier).__name__
        raise ValueError(f"pruning.scope='imp' goes with a criterion, not with pruning.sparsifier={name}")
    if pruning.scope == "imp" and isinstance(pruning.criterion, SynFlow):
        raise ValueError(
            "pruning.scope='imp' gives layers the densities of another search, and pruning.criterion=SynFlow finds its "
            "own step by step: set pruning.scope=global"
        )
    if pruning.rounds and (pruning.scope == "imp") != (pruning.imp is not None):
        raise ValueError(
            f"pruning.scope={pruning.scope!r} and pruning.imp={pruning.imp}: the scope imp, and no other, goes with "
            "the directory of a search"
        )


def check_trainer(trainer: pl.Trainer) -> None:
    """A Trainer, before its optimizers are set up.

    Raises:
        ValueError: if it would end a fit of many rounds too early, or has no length of one training.
    """
    if any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError("EarlyStopping would end all rounds at once: remove it beside LotteryTicketPruning")
    if trainer.max_epochs is None or trainer.max_epochs < 1 or trainer.max_steps != -1:
        raise ValueError(
            f"trainer.max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}: max_epochs must be the "
            "length of one training (a round), and max_steps unset"
        )


def check_rewind(trainer: pl.Trainer, step: Step, rewind: tuple[int, int]) -> None:
    """A rewind point, as asked for and as whole epochs and steps, beside a Trainer's length and schedules.

    Raises:
        ValueError: if it does not lie in a training, or the schedules do not allow it.
    """
    assert trainer.max_epochs is not None
    epochs, steps = rewind
    if epochs >= trainer.max_epochs:
        raise ValueError(
            f"pruning.rewind={step} is not before the end of a training of {trainer.max_epochs} epochs "
            f"({trainer.max_epochs * steps_per_epoch(trainer)} steps)"
        )
    # Rounds last whole epochs, so from within an epoch they run a little over the schedule's end.
    if steps and any(isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR) for schedule in schedules_of(trainer)):
        raise ValueError(
            f"pruning.rewind={step} lies within an epoch, and OneCycleLR allows no step beyond its end: "
            "rewind to a whole epoch"
        )


def check_precision(trainer: pl.Trainer, sparsifier: Sparsifier | None) -> None:
    """A Trainer's precision beside a sparsifier.

    Raises:
        ValueError: if gradients are scaled that it works on.
    """
    if sparsifier is not None and getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"pruning.sparsifier={type(sparsifier).__name__} works on gradients, and "
            f"trainer.precision={trainer.precision} scales them: use bf16-mixed, or 32-true"
        )
