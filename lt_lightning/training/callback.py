"""Iterative magnitude pruning with rewinding inside one fit: the rounds, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from lt_lightning.network_graph.graph import TracedNetwork
from lt_lightning.pruning.criteria import Context, Criterion, Magnitude
from lt_lightning.pruning.densities import densities
from lt_lightning.pruning.enforcement import check_masks, collapsed, packed
from lt_lightning.pruning.layers import full_masks, prunable_layers
from lt_lightning.pruning.masks import Masks, density, kept, size
from lt_lightning.pruning.rewinding import Mode, Restart, RewindPoint, Step
from lt_lightning.pruning.selection import Scope, prune, prune_each
from lt_lightning.pruning.sparsifiers import Aim, Sparsification, Sparsifier
from lt_lightning.structures.base import Structure, StructureInput
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.layer_counts import layer_counts
from lt_lightning.tickets.making import RoundTickets
from lt_lightning.training.agreement import check_agreement
from lt_lightning.training.batches import example_input, first_batches, plain_batches, steps_per_epoch
from lt_lightning.training.callback_checks import (
    OnCollapse,
    ScoresFrom,
    check_precision,
    check_rewind,
    check_together,
    check_trainer,
    check_values,
)
from lt_lightning.training.masked_training import MaskedTraining, extend_to, schedules_of
from lt_lightning.training.timeline import Timeline


class LotteryTicketPruning(MaskedTraining):
    """Finds lottery tickets: train, prune, rewind, train again (paper, algorithm 1), for any LightningModule.

    `Trainer(max_epochs=E)` is the length of one training; the callback makes the fit as long as all rounds need.
    Round 0 trains the dense network. Each further round prunes the trained network, rewinds what is left and
    trains it from the rewind point to the end of the schedule. Optimizers and schedules need nothing special: they are
    set up once, for one training, and taken back by value.

    On disk, under `directory`: a folder for each ticket (`round_00/dense`, `round_01/unstructured`, and one for each
    structure) with `ticket.safetensors` and its card `ticket.json`; `rounds.json` (what every round reached);
    `restart.pt` (how to train a ticket alone); `round_01/gradients.pt` if gradients are summed.

    `scores_from` makes other methods of it. With `trained` every round prunes on from the masks before. With `dense`
    (one-shot pruning) and `rewound` (at `0ep`: pruning at initialisation) every round prunes the whole network
    to its density, and rounds differ in nothing else.

    With a `sparsifier` masks come to be within a training: a round begins with one more, of the same length and
    schedule, that ends with its masks. It starts from the weights that `scores_from` names.

    Args:
        rounds: pruning rounds after the dense one; 0 trains the dense network alone.
        directory: where tickets are written.
        rate: share of the remaining weights that a round prunes, in (0, 1).
        density: to hit exactly, one or several in (0, 1), instead of `rounds`: with `trained` in as many rounds as
            reach it at `rate` (from the last one asked for), the last pruning less; else one round for each.
        scope: `global` compares all layers' scores, `layer` prunes every layer alike, `erk` gives layers the densities
            of Erdős-Rényi-Kernel (see `prune`), `imp` those of another search.
        imp: directory of that search, one by iterative magnitude pruning usually; a round takes the densities of its
            round of equal density.
        criterion: scores weights; magnitude by default.
        sparsifier: in place of a criterion: makes a round's masks in a training of their own.
        scores_from: the weights that are scored: those that the last round `trained`, the `dense` network's at the end
            of its training, or those `rewound` to.
        rewind: the step to rewind to: epochs (`8ep`) or optimizer steps (`500it`) of the dense training, or a share of
            its epochs (`5%`).
        mode: what goes back: `weights` (weights, BatchNorm statistics, optimizer and schedule), `learning_rate`
            (the schedule alone) or `none` (nothing: fine-tuning at the last learning rate).
        exempt: roles (`stem`, `classifier`, `depthwise`, `linear`) or layer-name patterns that stay dense.
        structures: applied to a copy of every round's mask at the round's end, each saved as a ticket of its own.
        next_round_from: `unstructured`, or the name of the structure whose mask a round trains and the next round
            prunes (the paper's group-aware variant).
        gradient_batches: sum gradients over that many last steps of each round, for structures that need them.
        on_collapse: when a layer has no weight left: `warn`, or `stop` before the round is trained.
        monitor: logged metric that tells the best epoch of a round; None takes the last.
        monitor_mode: `max` or `min`.
        network: path of the submodule to prune; see `MaskedTraining`.
        facts: goes on the card of every ticket (data, model, seed, ...); JSON values.

    Example:
        >>> callback = LotteryTicketPruning(rounds=3, directory="tickets", rewind="1ep")
        >>> callback.rounds, str(callback.rewind)
        (3, '1ep')
    """

    def __init__(
        self,
        rounds: int,
        directory: Path | str,
        rate: float = 0.2,
        density: float | Sequence[float] | None = None,
        scope: Literal[Scope, "imp"] = "global",
        imp: Path | str | None = None,
        criterion: Criterion | None = None,
        sparsifier: Sparsifier | None = None,
        scores_from: ScoresFrom = "trained",
        rewind: str | int = "0ep",
        mode: Mode = "weights",
        exempt: Sequence[str] = ("stem", "classifier"),
        structures: Mapping[str, Structure] | None = None,
        next_round_from: str = UNSTRUCTURED,
        gradient_batches: int = 0,
        on_collapse: OnCollapse = "warn",
        monitor: str | None = "val/accuracy",
        monitor_mode: Literal["max", "min"] = "max",
        network: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(monitor, monitor_mode, network)
        self.directory = Path(directory)
        self.rate = rate
        self.scope = scope
        self.imp = None if imp is None else Path(imp)
        if sparsifier is not None and criterion is not None:
            raise ValueError(
                f"pruning.sparsifier={type(sparsifier).__name__} scores weights itself, in place of "
                f"pruning.criterion={type(criterion).__name__}: set one of the two to null"
            )
        self.criterion = criterion or Magnitude()
        self.sparsifier = sparsifier
        self.scores_from = scores_from
        self.rewind = Step.parse(rewind)
        self.mode = mode
        self.exempt = tuple(exempt)
        self.structures = dict(structures or {})
        self.next_round_from = next_round_from
        self.gradient_batches = gradient_batches
        self.on_collapse = on_collapse
        self.facts = dict(facts or {})
        check_values(self, rounds, density)
        self.densities = densities(rounds, rate, density, at_once=scores_from != "trained")
        self.rounds = len(self.densities)
        check_together(self, density)

    def _reset(self) -> None:
        super()._reset()
        self.round = 0
        self.masks: Masks = {}
        self.history: list[dict[str, Any]] = []
        self.restart: Restart | None = None
        self._point: RewindPoint | None = None
        self._dense: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._sparsification: Sparsification | None = None
        self._sparsification_state: dict[str, Any] | None = None
        self._sparsify_seconds = 0.0
        self._last_rates: list[list[float]] = []
        self._example = torch.empty(0)
        self._traced: TracedNetwork | None = None
        self.timeline = Timeline()

    # Hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_trainer(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizers and schedules are set up by now, for one training: make the fit as long as all rounds."""
        assert trainer.max_epochs is not None
        trainer.fit_loop.setup_data()
        self.rewind = self.rewind.within(trainer.max_epochs)
        rewind = self.rewind.split(steps_per_epoch(trainer))
        check_rewind(trainer, self.rewind, rewind)
        check_precision(trainer, self.sparsifier)
        self.timeline = Timeline(trainer.max_epochs, rewind, self.rounds, 1 if self.sparsifier is None else 2)
        self._example = example_input(trainer, pl_module)
        self._traced = TracedNetwork(self.network_of(pl_module), self._example)
        if not self.masks:
            self.masks = self._full_masks(self._traced)
        for structure in self.structures.values():
            structure.check(self.network_of(pl_module), self._example)
        extend_to(trainer, self.timeline.total_epochs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > 0:  # resumed
            network = self.network_of(pl_module)
            if self._sparsification_state is not None:
                assert self.sparsifier is not None
                self._sparsification = Sparsification.resumed(self.sparsifier, network, self._sparsification_state)
                self._sparsification_state = None
            elif self.round > 0 and trainer.is_global_zero:
                self._tickets.begun(self.round, self.enforced_masks)
            self.hold(trainer, network, self.enforced_masks)
            self.start_clock()
        else:
            self.start_training()
        if trainer.is_global_zero and self._tickets.has_history:
            self._tickets.write_history(self.history)  # of a round that is trained again nobody may take the ticket
        # A resume from an epoch's last batch skips on_train_epoch_start.
        self._sync_round(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sync_round(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.round > 0 and self.restart is not None and self._sparsification is None:
            self.restart.fix_rates(trainer.optimizers)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._sparsification is not None:
            self._sparsification.before_step()
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self.timeline.ends_training(trainer.current_epoch):
            return
        if self.round == 0:  # after the last step Lightning steps the schedule again, beyond its end
            self._last_rates = [[float(group["lr"]) for group in each.param_groups] for each in trainer.optimizers]
        if self.gradient_batches:
            self._sum_gradients(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        epochs, steps = self.timeline.rewind
        if self._point is None and steps and trainer.current_epoch == epochs and self._steps_in(trainer) == steps:
            self._capture(trainer, pl_module)
        if self._sparsification is not None and self._sparsification.after_step():
            self.masks = self._sparsification.masks
            self.hold(trainer, self.network_of(pl_module), self.enforced_masks | self.masks)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.timeline.ends_round(trainer.current_epoch):
            self._end_round(trainer, pl_module)

    def check_integrity(self, trainer: pl.Trainer) -> None:
        super().check_integrity(trainer)
        whole = packed({name: torch.ones_like(mask) for name, mask in self.masks.items()})
        reference = {name: self._reference.get(name, bits) for name, bits in whole.items()}
        check_masks(self.masks, reference, "round's")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.timeline.epochs:
            extend_to(trainer, self.timeline.epochs)

    # Rounds

    def _sync_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the state up to the current epoch. Called at every epoch's start, it acts at most once a round.

        Pruning and rewinding stand at the start of a round, not at the end of the one before: a checkpoint written
        at the end of an epoch then holds the trained network.
        """
        if self._point is None and self.timeline.rewind == (trainer.current_epoch, 0):
            self._capture(trainer, pl_module)
        while self.round < min(self.timeline.round_of(trainer.current_epoch), self.rounds):
            self._begin_round(trainer, self.network_of(pl_module))
        if self._sparsification is not None and trainer.current_epoch >= self.timeline.ticket_epoch(self.round):
            self._begin_ticket(trainer, self.network_of(pl_module))

    def _capture(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._point = RewindPoint.capture(self.network_of(pl_module), trainer.optimizers, schedules_of(trainer))

    def _begin_round(self, trainer: pl.Trainer, network: nn.Module) -> None:
        if self.restart is None:
            self.restart = self._make_restart(trainer)
            if self.scores_from == "dense":
                self._dense = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.round += 1
        if self.sparsifier is None:
            self._begin_ticket(trainer, network)
        else:
            self._begin_sparsification(trainer, network, self.sparsifier)

    def _begin_sparsification(self, trainer: pl.Trainer, network: nn.Module, sparsifier: Sparsifier) -> None:
        assert self.restart is not None
        self.start_training()
        self.masks, wanted = self._pruned_from()
        network.load_state_dict(self._scored(network))
        self.restart.point.restore_schedule(
            trainer.optimizers, schedules_of(trainer), momentum=self.scores_from == "rewound"
        )
        # A structure that the last round trained holds more than weights.
        self.hold(trainer, network, (self.enforced_masks if self.scores_from == "trained" else {}) | self.masks)
        self._gradients = {}
        steps = self.timeline.epochs_per_training * steps_per_epoch(trainer)
        self._sparsification = Sparsification(sparsifier, network, Aim(self.masks, wanted, self._scope, steps))

    def _begin_ticket(self, trainer: pl.Trainer, network: nn.Module) -> None:
        assert self.restart is not None
        if self._sparsification is None:
            state = self._scored(network)
            weights = {name: value.detach().cpu() for name, value in state.items()}
            self.masks = self._prune(trainer, network, state, weights)
        else:
            weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
            self.masks = self._sparsification.finish()
            self._sparsification = None
            self._sparsify_seconds = self.seconds()
        self.start_training()
        values = self.restart.values(network)
        check_agreement(f"masks in epoch {trainer.current_epoch}", self.masks)
        # Made by one process, as scores on batches may be rounded otherwise elsewhere.
        ticket = (
            self._tickets.make(self.round, self._subject(trainer, weights), values) if trainer.is_global_zero else None
        )
        masks = trainer.strategy.broadcast({} if ticket is None else ticket.masks)
        self.masks = {name: masks[name] for name in self.masks}
        self._check_collapse()
        if ticket is not None:
            self._tickets.begin(self.round, ticket)
        if self.mode == "weights":
            self.restart.point.restore_network(network)
        self.restart.restore(trainer.optimizers, schedules_of(trainer))
        self.hold(trainer, network, masks)
        self._gradients = {}

    def _make_restart(self, trainer: pl.Trainer) -> Restart:
        assert self._point is not None
        restart = Restart(self.mode, self._point, self.timeline.epochs_per_training, self._last_rates)
        if trainer.is_global_zero:
            restart.save(self.directory / "restart.pt")
        return restart

    def _scored(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Parameters and buffers of the network that this round's scores are of."""
        if self.scores_from == "dense":
            return self._dense
        if self.scores_from == "rewound":
            assert self._point is not None
            return self._point.network
        state: dict[str, Tensor] = network.state_dict()
        return state

    def _pruned_from(self) -> tuple[Masks, float]:
        """The masks that this round prunes further, and the density that it prunes them to."""
        wanted = self.densities[self.round - 1]
        masks = self.masks
        if self.scores_from != "trained":
            masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
        elif self.next_round_from != UNSTRUCTURED:  # a structure's density is its own: go on from there
            wanted = kept(masks) / size(masks) * (1 - self.rate)
        return masks, wanted

    def _prune(
        self, trainer: pl.Trainer, network: nn.Module, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> Masks:
        masks, wanted = self._pruned_from()
        context = Context(
            network, state, self._example, lambda count: first_batches(trainer, count), wanted, self._scope
        )
        scores: dict[str, Tensor] = {}
        if trainer.is_global_zero:  # the others' batches are others, and their rounding may be
            with isolate_rng():
                torch.manual_seed(self.round)  # the same after a resume
                scores = self.criterion(weights, masks, context)
        scores = trainer.strategy.broadcast(scores)
        if self.imp is not None:
            return prune_each(masks, scores, layer_counts(self.imp, masks, wanted))
        return prune(masks, scores, wanted, self._scope)

    def _check_collapse(self) -> None:
        if not (names := collapsed(self.masks)):
            return
        told = f"round {self.round}: no weight is left in {', '.join(names)} (layer collapse)"
        if self.on_collapse == "stop":
            raise ValueError(
                f"{told}; prune less (pruning.rate, pruning.rounds), or set pruning.scope=layer or pruning.exempt"
            )
        rank_zero_warn(told)

    def _subject(self, trainer: pl.Trainer, weights: Mapping[str, Tensor]) -> StructureInput:
        assert self._traced is not None
        batches = partial(plain_batches, trainer)
        return StructureInput(self._traced, self.masks, weights, self._summed_gradients(), batches)

    def _end_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.network_of(pl_module)
        best = self.finish_training(network, trainer.current_epoch)
        facts = {
            "round": self.round,
            "density": density(self.masks),
            "best_epoch": best["epoch"] - self.timeline.ticket_epoch(self.round),
            "metrics": dict(best["metrics"]),
            "train_seconds": self.seconds(),
        }
        if self.round > 0 and self.sparsifier is not None:
            facts["sparsify_seconds"] = self._sparsify_seconds
        self.history.append(facts)
        if not self.rounds:  # none follows that would make it
            self.restart = self._make_restart(trainer)
        if trainer.is_global_zero:
            self._save_round(trainer, {name: value.cpu() for name, value in best["state"].items()}, facts)
        self.best = {}

    def _save_round(self, trainer: pl.Trainer, trained: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        given = self._subject(trainer, trained)
        if self.round == 0:
            assert self._point is not None
            start = {name: value.cpu() for name, value in self._point.network.items()}
            ticket = self._tickets.make(0, given, start)
        else:
            ticket = self._tickets.begun(self.round, self.enforced_masks)
        training = {key: facts[key] for key in ("best_epoch", "metrics", "train_seconds")}
        self._tickets.end(self.round, ticket, given, training)
        self._tickets.write_history(self.history)

    @property
    def _tickets(self) -> RoundTickets:
        card = {**self.facts, "rewind": str(self.rewind), "mode": self.mode}
        return RoundTickets(self.directory, self.structures, self.next_round_from, card)

    # Parts

    def _full_masks(self, traced: TracedNetwork) -> Masks:
        masks = full_masks(prunable_layers(traced.layers, self.exempt))
        if self.densities and round(self.densities[-1] * size(masks)) < 1:
            raise ValueError(
                f"pruning.rounds={self.rounds} at pruning.rate={self.rate} would leave none of {size(masks)} weights"
                f" (density {self.densities[-1]:.3g})"
            )
        return masks

    def _sum_gradients(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._steps_in(trainer) < steps_per_epoch(trainer) - self.gradient_batches:
            return
        for name, parameter in self.network_of(pl_module).named_parameters():
            if parameter.grad is not None and name in self.masks:
                known = self._gradients.get(name)
                self._gradients[name] = parameter.grad + (0 if known is None else known.to(parameter.device))

    def _summed_gradients(self) -> dict[str, Tensor] | None:
        return {name: value.cpu() for name, value in self._gradients.items()} or None

    @property
    def _scope(self) -> Scope:
        return "global" if self.scope == "imp" else self.scope

    @staticmethod
    def _steps_in(trainer: pl.Trainer) -> int:
        """Optimizer steps done in the current epoch."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        return int(batches.processed) // trainer.accumulate_grad_batches

    # State

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "round": self.round,
            "masks": self.masks,
            "history": self.history,
            "dense": self._dense,
            "point": None if self._point is None else self._point.state_dict(),
            "restart": None if self.restart is None else self.restart.state_dict(),
            "gradients": self._gradients,
            "sparsification": None if self._sparsification is None else self._sparsification.state_dict(),
            "sparsify_seconds": self._sparsify_seconds,
            "last_rates": self._last_rates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.round = state_dict["round"]
        self.masks = state_dict["masks"]
        self.history = state_dict["history"]
        self._dense = state_dict["dense"]
        point, restart = state_dict["point"], state_dict["restart"]
        self._point = None if point is None else RewindPoint(**point)
        self.restart = None if restart is None else Restart.from_state(restart)
        self._gradients = state_dict["gradients"]
        self._sparsification_state = state_dict["sparsification"]
        self._sparsify_seconds = state_dict["sparsify_seconds"]
        self._last_rates = state_dict["last_rates"]
