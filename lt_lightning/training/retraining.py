"""The training of one ticket alone, from its rewound values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lt_lightning.execution.execute import DENSE_FORM, execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.execution.machine import compile_like, compiled_as, is_bfloat16, uncompiled
from lt_lightning.execution.shrink_channels import Shrunk, cut_point
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import Example
from lt_lightning.pruning.masks import Masks, digest
from lt_lightning.pruning.rewinding import BESIDE, REWINDS_WEIGHTS, Restart
from lt_lightning.structures.group_penalty import GroupPenalty, penalised_groups
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import example_input
from lt_lightning.training.compatibility import check_callbacks
from lt_lightning.training.distillation import Distillation
from lt_lightning.training.lightning_internals import extend_to, is_lightning, pl, rank_zero_warn, schedules_of
from lt_lightning.training.masked_training import MaskedTraining

Execution = Literal["shrunk", "masked"]


class TicketTraining(MaskedTraining):
    """Start a fit from a ticket, and train it as a round of the search would have.

    `Trainer(max_epochs=E)` is the length of the dense training, for which schedules are set up; the fit is as long
    as what lies behind the rewind point. After the fit `trained` is the ticket with its trained weights, under the
    full network's names.

    What computes a layer's blocks is decided when the fit begins (see `execution.form_choice`), where `decide` has not
    put it on the ticket's card before. With `Trainer(deterministic=True)` it is the same another time.

    Args:
        ticket: ticket to train.
        restart: how its search rewinds (`restart.pt` in the search's folder); None trains from the start of the
            schedule for all of `max_epochs`.
        execution: `shrunk` replaces the LightningModule's network by the one that the ticket's plan makes (fewer
            channels, or layers that compute their blocks), and trains that; without a plan a ticket is trained masked.
        batch_size: batch size at which layers compute their blocks where that is measured faster; None: wherever it is
            possible.
        monitor: see `MaskedTraining`.
        monitor_mode: see `MaskedTraining`.
        network: see `MaskedTraining`.
        traced: a network of the same kind whose channels are known already.
        distillation: soft labels that the loss of the LightningModule takes; None: the loss is its own.
        cycles: number of trainings that the fit consists of, one after the other: each goes on with what the last came
            to, with its schedule taken back as by `again`.
        again: how every training but the first begins and how long it is; its weights and optimizers do not go back.
        group_penalty: strength of the group lasso on what the ticket's structure keeps or drops together, for a ticket
            that another one is grown from; see `GroupPenalty`.

    Raises:
        ValueError: if an argument is out of range, or does not go with the ticket.
    """

    def __init__(
        self,
        ticket: Ticket,
        restart: Restart | None = None,
        execution: Execution = "shrunk",
        batch_size: int | None = None,
        monitor: str | None = None,
        monitor_mode: Literal["max", "min"] = "max",
        network: str | None = None,
        traced: TracedNetwork | None = None,
        distillation: Distillation | None = None,
        cycles: int = 1,
        again: Restart | None = None,
        group_penalty: float = 0.0,
    ) -> None:
        if execution not in get_args(Execution):
            raise ValueError(f"execution={execution!r}: must be one of {', '.join(get_args(Execution))}")
        if cycles < 1 or (cycles > 1 and again is None):
            raise ValueError(f"cycles={cycles}: must be at least 1; more need again, the rewind point of a search")
        if cycles > 1 and ticket.plan is not None:
            raise ValueError(
                f"cycles={cycles}: goes with a ticket without a plan; train a structured one again by itself"
            )
        if group_penalty and ticket.plan is None:
            raise ValueError(
                f"group_penalty={group_penalty}: the ticket has no plan (its structure is "
                f"{ticket.card.get('structure')!r}), so that no weights are kept or dropped together"
            )
        super().__init__(monitor, monitor_mode, network)
        self.ticket = ticket
        self.restart = restart
        self.execution = execution
        self.batch_size = batch_size
        self.traced = traced
        self.distillation = distillation
        self.cycles = cycles
        self.again = again
        self._cycle = 1  # the training that runs
        self.group_penalty = group_penalty
        self._penalty: GroupPenalty | None = None
        self._rate = 0.0  # of the step that is being made
        self.trained: Ticket | None = None
        self._shrunk: Shrunk | None = None
        self._epochs = 0  # of the dense training

    def __repr__(self) -> str:
        return f"TicketTraining({self.ticket!r}, execution={self.execution!r})"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the ticket into the network, and a smaller network in its place, before optimizers are made."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_callbacks(trainer, self, allowed=["EarlyStopping"])
        if self.distillation is not None and not hasattr(pl_module, "distillation"):
            raise ValueError(
                f"distillation={self.distillation}: {type(pl_module).__name__} has no attribute `distillation` that "
                "its loss takes (see Distillation); give it one, or train without soft labels"
            )
        network = self.network_of(pl_module)
        self.ticket.apply(network)
        if self.group_penalty:
            traced = self.traced or TracedNetwork(network, example_input(trainer, pl_module, network))
            groups = penalised_groups(self.ticket.plan, self.ticket.masks, traced)
            self._penalty = GroupPenalty(self.group_penalty, groups)
        if self.execution == "shrunk" and self.ticket.plan is not None:
            device = str(trainer.strategy.root_device)
            example = example_input(trainer, pl_module, network)
            bfloat16 = is_bfloat16(trainer.precision)
            self.ticket = decide(self.ticket, network, example, self.batch_size, device, bfloat16)
            choice = trainer.strategy.broadcast(self.ticket.card["choice"])  # processes may have measured differently
            self._shrunk = execute(network, self.ticket.plan, self.ticket.masks, example, choice, self.traced)
            assert self._shrunk is not None
            compare_networks(network, self._shrunk.network, example)
            self._put_in_place(pl_module, network, self._shrunk.network)
            if self._penalty is not None:
                self._penalty = GroupPenalty(self.group_penalty, self._shrunk.slices.take_known(self._penalty.groups))

    def _put_in_place(self, pl_module: pl.LightningModule, network: nn.Module, small: nn.Module) -> None:
        (path,) = (name for name, module in pl_module.named_modules() if module is network)
        if not path:
            _take_over(pl_module, small)
            return
        parent = pl_module.get_submodule(path.rpartition(".")[0])
        if uncompiled(parent) is network:  # `torch.compile` made a module of its own around it
            pl_module.set_submodule(path.rpartition(".")[0], compiled_as(parent, small))
            return
        compile_like(small, network)
        pl_module.set_submodule(path, small)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        arguments = {
            "execution": self.execution,
            "monitor": self.monitor,
            "monitor_mode": self.monitor_mode,
            "mode": None if self.restart is None else self.restart.mode,
            "masks": digest(self.ticket.masks),
            "max_epochs": trainer.max_epochs,
            "distillation": self._distilled,
            "cycles": self.cycles,
            "group_penalty": self.group_penalty,
        }
        self.prepare_fit(trainer, pl_module, self._masks, arguments)
        self._distil(pl_module)
        assert trainer.max_epochs is not None
        self._epochs = trainer.max_epochs
        extend_to(trainer, self.length(trainer.max_epochs))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sync(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.network_of(pl_module)
        if trainer.global_step > 0:  # resumed
            self.start_clock()
        else:
            self.start_training()
            if self.restart is not None:
                self._restore(trainer, pl_module, self.restart)
        self._sync(trainer)
        self.enforce(trainer, network, self._masks)

    def length(self, epochs: int) -> int:
        """Return the number of epochs of the whole fit, given that of the dense network's training."""
        first = epochs if self.restart is None else self.restart.epochs
        return first + (0 if self.again is None else (self.cycles - 1) * self.again.epochs)

    def _sync(self, trainer: pl.Trainer) -> None:
        """Bring schedules up to the current epoch when it begins; if it is the first of a training, begin that."""
        first = self._epochs if self.restart is None else self.restart.epochs
        length, epoch = first, trainer.current_epoch
        if self.again is not None and epoch >= first:
            length = self.again.epochs
            cycle, epoch = divmod(epoch - first, length)
            if cycle + 2 > self._cycle:
                self._cycle = cycle + 2
                self.again.restore(trainer.optimizers, schedules_of(trainer))
                self.best = {}
        self.keep_rates(self.again if self._cycle > 1 else self.restart)
        self.follow_epoch(trainer, self._epochs - length + epoch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._rate = optimizer.param_groups[0]["lr"]  # schedules step before the batch ends

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._penalty is not None and self._stepped:
            self._penalty.shorten(self.network_of(pl_module), self._rate)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @property
    def _masks(self) -> Masks:
        return self.ticket.masks if self._shrunk is None else self._shrunk.masks

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule, restart: Restart) -> None:
        if restart.mode in REWINDS_WEIGHTS:
            restart.point.restore_beside(pl_module)
        elif any(name.startswith(BESIDE) for names in restart.point.names for name in names):
            rank_zero_warn(
                f"mode={restart.mode!r}: what is trained beside the network starts as it is in "
                f"{type(pl_module).__name__}; the ticket does not have the values of its search"
            )
        if self._shrunk is not None:
            network = self.network_of(pl_module)
            point = cut_point(restart.point, self._shrunk.slices, network, trainer.optimizers, pl_module)
            restart = replace(restart, point=point)
        restart.restore(trainer.optimizers, schedules_of(trainer))

    @property
    def _distilled(self) -> dict[str, float] | None:
        return None if self.distillation is None else self.distillation.facts

    def _distil(self, pl_module: pl.LightningModule) -> None:
        """Give the soft labels to the loss of the LightningModule, which is on its device by now."""
        if self.distillation is not None:
            self.distillation.follow(self.network_of(pl_module))
            module: Any = pl_module
            module.distillation = self.distillation

    def _may_stop_early(self, trainer: pl.Trainer) -> bool:
        return any(is_lightning(each, "EarlyStopping") for each in trainer.callbacks)  # type: ignore[attr-defined]

    def _left_dense(self) -> list[str]:
        """Return the layers of a plan of blocks, or of n:m weights, that were faster dense."""
        choice = {} if self._shrunk is None else self._shrunk.choice
        return [name for name, form in choice.items() if form == DENSE_FORM]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        best = self.finish_training(self.network_of(pl_module), trainer.current_epoch - 1)
        self.trained = self.ticket.with_training(
            self._under_full_names({name: value.cpu() for name, value in best["state"].items()}),
            epochs=trainer.current_epoch,
            total_epochs=self.ticket.epochs_before + trainer.current_epoch,
            best_epoch=best["epoch"],
            metrics=dict(best["metrics"]),
            train_seconds=self.seconds(),
            execution="masked" if self._shrunk is None else "shrunk",
            choice={} if self._shrunk is None else dict(self._shrunk.choice),
            left_dense=self._left_dense(),
            **({} if self.distillation is None else {"distillation": self._distilled}),
            **({"group_penalty": self.group_penalty} if self.group_penalty else {}),
            kept_whole=[] if self._shrunk is None else list(self._shrunk.kept_whole),
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "cycle": self._cycle}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._cycle = state_dict["cycle"]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self.distillation is not None:
            module: Any = pl_module
            module.distillation = None

    def _under_full_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state if self._shrunk is None else self._shrunk.slices.put(state, self.ticket.rewind)


def _take_over(pl_module: pl.LightningModule, small: nn.Module) -> None:
    """Give a LightningModule that is pruned as a whole the layers of its smaller copy; losses and metrics stay."""
    for name, child in small.named_children():
        if next(child.parameters(), None) is not None:
            setattr(pl_module, name, child)
    for name, tensor in (*small.named_parameters(recurse=False), *small.named_buffers(recurse=False)):
        setattr(pl_module, name, tensor)
    for name, number in vars(small).items():
        if type(number) is int and vars(pl_module).get(name) != number:
            setattr(pl_module, name, number)  # a size that it notes of itself


def restart_for(ticket: Ticket, restart: Restart) -> Restart | None:
    """Return how a ticket is trained, given how those of its search are.

    Its card may say by `starts_from` that it is trained differently: from `initial` values, for the whole schedule, or
    with values of its own, so that the `schedule` alone goes back to the rewind point.

    Args:
        ticket: ticket to train.
        restart: the search's rewind point, and what goes back to it.
    """
    match ticket.card.get("starts_from"):
        case "initial":
            return None
        case "schedule" if restart.mode in REWINDS_WEIGHTS:
            return replace(restart, mode="learning_rate")
    return restart


def decide(
    ticket: Ticket,
    network: nn.Module,
    example: Example,
    batch_size: int | None,
    device: str = "cpu",
    bfloat16: bool = False,
) -> Ticket:
    """Return the ticket with a card that says what computes each layer (`choice`), so that all fits compute alike.

    What decided it stands beside it (`decided_by`). A card that has a choice keeps it.

    Args:
        ticket: ticket that will be trained with `execution="shrunk"`.
        network: the ticket's network; its values are overwritten.
        example: an input batch of the true shape.
        batch_size: see `TicketTraining`.
        device: device to measure on.
        bfloat16: whether to measure in bfloat16 rather than float32.
    """
    if "choice" in ticket.card:
        return ticket
    choice = choose_forms(ticket.apply(network), ticket.plan, example, batch_size, True, device, bfloat16)
    return ticket.with_facts(choice=dict(choice.forms), decided_by=dict(choice.decided_by))
