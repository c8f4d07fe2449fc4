"""Iterative magnitude pruning with rewinding, all rounds inside one fit.

The paper's algorithm 1, and what carries it out:

    train the dense network; remember step k of it      Lightning; `_capture_point`
    for every round:                                    `_sync_round`, when its first epoch begins
        prune the weights that were trained last        `_prune`
        write the ticket: masks, and values of step k   `_write_ticket`
        rewind weights, optimizer and schedule          `_rewind`
        train from step k to the end                    Lightning; `MaskedTraining` enforces masks
        structure a copy of the mask                    `_end_round`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Context
from lt_lightning.pruning.enforcement import check_masks, collapsed, packed
from lt_lightning.pruning.examples import Example
from lt_lightning.pruning.layers import full_masks, left_out, prunable_layers
from lt_lightning.pruning.masks import Masks, density, kept, size
from lt_lightning.pruning.rewinding import (
    REWINDS_WEIGHTS,
    Restart,
    RewindPoint,
    copied_values,
    load_beside,
    state_beside,
    when_alive,
)
from lt_lightning.pruning.selection import prune, prune_each
from lt_lightning.pruning.sparsifiers import Aim, Sparsification, Sparsifier
from lt_lightning.storage.layout import (
    TICKET,
    UNSTRUCTURED,
    History,
    RoundFacts,
    round_folder,
    trained_rounds,
    write_rounds,
)
from lt_lightning.structures.base import StructureInput
from lt_lightning.tickets.making import RoundTickets, layer_counts
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.agreement import check_agreement
from lt_lightning.training.batches import example_input, first_batches, steps_per_epoch, structure_batches
from lt_lightning.training.compatibility import check_callbacks, check_validations, warn_of_checkpoints
from lt_lightning.training.lightning_internals import (
    extend_to,
    isolate_rng,
    load_data,
    pl,
    rank_zero_info,
    rank_zero_warn,
    schedules_of,
    steps_in_epoch,
)
from lt_lightning.training.masked_training import MaskedTraining
from lt_lightning.training.pruning_options import PruningOptions, arguments_of
from lt_lightning.training.timeline import Timeline, check_precision, check_rewind, check_trainer


class LotteryTicketPruning(MaskedTraining):
    """Find lottery tickets: train, prune, rewind, train again (paper, algorithm 1), for any LightningModule.

    `Trainer(max_epochs=E)` is the length of one training; the callback makes the fit as long as all rounds need.
    Round 0 trains the dense network. Each further round prunes the trained network, rewinds what is left and
    trains it from the rewind point to the end of the schedule. Optimizers and schedules need nothing special: they are
    set up once, for one training, and taken back by value.

    What `directory` gets: a folder for each ticket (`round_00/dense`, `round_01/unstructured`, and one for each
    structure) with `ticket.safetensors` and its card `ticket.json`; `rounds.json` (what every round reached);
    `restart.pt` (how to train a ticket alone); `round_01/gradients.pt` if gradients are summed.

    `scores_from` turns it into other methods. With `trained` every round prunes on from the masks before. With `dense`
    (one-shot pruning) and `rewound` (at `0ep`: pruning at initialisation) every round prunes the whole network
    to its density, and rounds differ in nothing else.

    What the LightningModule trains beside the network is rewound with it, and is in `restart.pt`, not in tickets.

    Only weights of convolution and linear layers are pruned. Those of other layers, computed ones (weight norm), and
    frozen ones (`requires_grad=False` when the fit begins) are not, and count in no density: they are told with their
    share. A weight that layers share is pruned once.

    With a `sparsifier` a round begins with a training of its own, of the same length and schedule, in the course of
    which the masks come to be. It starts from the weights that `scores_from` names.

    Args:
        rounds: number of pruning rounds after the dense one; 0 trains the dense network alone.
        directory: folder that tickets are written to.
        rate: share of the remaining weights that a round prunes, in (0, 1).
        density: one density or several in (0, 1) that are hit exactly, instead of `rounds`: with `trained` in as many
            rounds as reach it at `rate` (from the last one asked for), the last pruning less; else one round for each.
        scope: `global` compares all layers' scores, `layer` prunes every layer alike, `erk` gives layers the densities
            of Erdős-Rényi-Kernel (see `prune`), `imp` those of another search.
        imp: directory of that search, one by iterative magnitude pruning usually; a round takes the densities of its
            round of equal density.
        criterion: what scores weights; magnitude by default.
        sparsifier: what makes a round's masks in a training of their own, in place of a criterion.
        scores_from: which weights are scored: those that the last round `trained`, the `dense` network's at the end
            of its training, or those `rewound` to.
        rewind: step to rewind to: epochs (`8ep`) or optimizer steps (`500it`) of the dense training, or a share of
            its epochs (`5%`).
        mode: what goes back: `weights` (weights, BatchNorm statistics, optimizer and schedule), `weights_only` (weights
            and statistics; optimizer and schedule start anew, and each training has all epochs), `learning_rate`
            (the schedule alone) or `none` (nothing: fine-tuning at the last learning rate).
        refilled: what a weight that a structure refills restarts from where weights do not go back: its value when it
            was `last` alive, its value at the `rewind` point, or `zero`.
        exempt: roles (`stem`, `classifier`, `depthwise`, `linear`) or layer-name patterns that stay dense.
        structures: structures by name; each makes a ticket of its own from a copy of every round's mask.
        next_round_from: `unstructured`, or the name of the structure whose mask a round trains and the next round
            prunes (the paper's group-aware variant).
        gradient_batches: number of last steps of each round over which gradients are summed, for structures that need
            them.
        on_collapse: what to do when a layer has no weight left: `warn`, or `stop` before the round is trained.
        monitor: metric of the validation by which the best epoch of a round is chosen; None takes the last.
        monitor_mode: whether a higher (`max`) or a lower value (`min`) is better.
        network: path of the submodule to prune; see `MaskedTraining`.
        facts: JSON values that go on the card of every ticket (data, model, seed, ...).
        verbose: whether a line tells what every round has reached, and what of the network is not pruned.

    The progress bar and the loggers get `pruning/round` and `pruning/density` in every epoch. `history` has what every
    round has reached, and prints as a table.

    Example:
        >>> callback = LotteryTicketPruning(rounds=3, directory="tickets", rewind="1ep")
        >>> callback.rounds, str(callback.rewind)
        (3, '1ep')
    """

    operational: ClassVar = ("on_collapse", "verbose")  # arguments that do not change what is computed

    @arguments_of(PruningOptions)
    def __init__(self, options: PruningOptions) -> None:
        super().__init__(options.monitor, options.monitor_mode, options.network)
        self.options = options
        self.directory = Path(options.directory)
        self.densities = options.densities
        self.rounds = len(self.densities)
        self.rewind = options.step

    def _reset(self) -> None:
        super()._reset()
        # The fit
        self.timeline = Timeline()
        self._ends_training = False  # whether the current epoch is a training's last
        self._traced: TracedNetwork | None = None
        self._example: Example = torch.empty(0)
        # What the dense training leaves for all rounds
        self.restart: Restart | None = None
        self._point: RewindPoint | None = None
        self._start: RewindPoint | None = None  # what optimizers and schedules go back to with mode="weights_only"
        self._dense: dict[str, Tensor] = {}
        self._dense_beside: dict[str, Tensor] = {}
        self._last_rates: list[list[float]] = []
        # What weights were when they were last alive, where they do not go back
        self._alive: dict[str, Tensor] = {}
        # The round
        self.round = 0
        self.masks: Masks = {}
        self._gradients: dict[str, Tensor] = {}
        self._sparsification: Sparsification | None = None
        self._sparsification_state: dict[str, Any] | None = None
        self._sparsify_seconds = 0.0
        # The rounds that are finished
        self.history = History()

    def __repr__(self) -> str:
        done = f", {len(self.history)} of {self.rounds + 1} rounds done" if self.history else ""
        structures = "".join(f", {name}" for name in self.options.structures)
        last = self.densities[-1] if self.densities else 1.0
        return f"LotteryTicketPruning({self.rounds} rounds to density {last:.3g}{structures}{done})"

    # Hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_callbacks(trainer, self)
            check_trainer(trainer)
            warn_of_checkpoints(trainer, str(round_folder(self.directory, 1) / UNSTRUCTURED / TICKET))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the fit as long as all rounds; optimizers and schedules are set up by now, for one training."""
        assert trainer.max_epochs is not None
        load_data(trainer)
        self.rewind = self.rewind.within(trainer.max_epochs)
        rewind = self.rewind.split(steps_per_epoch(trainer))
        check_rewind(trainer, self.rewind, rewind)
        check_precision(trainer, self.options.sparsifier)
        trainings = 1 if self.options.sparsifier is None else 2
        self.timeline = Timeline(
            trainer.max_epochs, rewind, self.rounds, trainings, whole=self.options.mode == "weights_only"
        )
        if self.monitor is not None:
            check_validations(trainer, self.timeline, self.monitor)
        network = self.network_of(pl_module)
        self._example = example_input(trainer, pl_module, network)
        self._traced = TracedNetwork(network, self._example)
        for line in left_out(self._traced.network, self._traced.layers) if self.options.verbose else ():
            rank_zero_info(line)
        if not self.masks:
            self.masks = self._full_masks(self._traced)
        for structure in self.options.structures.values():
            structure.check(self._traced)
        arguments = {**self.options.determining, "rewind": str(self.rewind), "max_epochs": trainer.max_epochs}
        self.prepare_fit(trainer, pl_module, self.masks, arguments)
        extend_to(trainer, self.timeline.total_epochs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > 0:  # resumed
            network = self.network_of(pl_module)
            if self._sparsification_state is not None:
                assert self.options.sparsifier is not None
                self._sparsification = Sparsification.resumed(
                    self.options.sparsifier, network, self._sparsification_state
                )
                self._sparsification_state = None
            elif self.round > 0 and trainer.is_global_zero:
                self._tickets.begun(self.round, self.enforced_masks)
            self.enforce(trainer, network, self.enforced_masks)
            self.start_clock()
        else:
            self.start_training()
        if trainer.is_global_zero and trained_rounds(self.directory):
            write_rounds(self.directory, self.history)  # it must not list the round that is trained again
        # A resume from an epoch's last batch skips on_train_epoch_start.
        self._sync_round(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sync_round(trainer, pl_module)
        for name, value in {"round": float(self.round), "density": density(self.masks)}.items():
            pl_module.log(
                f"pruning/{name}", value, prog_bar=True, on_step=False, on_epoch=True, batch_size=1, sync_dist=True
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._sparsification is not None:
            self._sparsification.before_step()
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if not self._ends_training:
            return
        if self.round == 0:  # after the last step Lightning steps the schedule again, beyond its end
            self._last_rates = [[float(group["lr"]) for group in each.param_groups] for each in trainer.optimizers]
        if self.options.gradient_batches:
            self._sum_gradients(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        epochs, steps = self.timeline.rewind
        if self._point is None and steps and trainer.current_epoch == epochs and steps_in_epoch(trainer) == steps:
            self._capture_point(trainer, pl_module)
        if self._sparsification is not None and self._sparsification.after_step():
            self.masks = self._sparsification.masks
            self.enforce(trainer, self.network_of(pl_module), self.enforced_masks | self.masks)

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
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self.timeline.epochs:
            extend_to(trainer, self.timeline.epochs)

    # Algorithm 1

    def _sync_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the state up to the current epoch. It is called when any epoch begins.

        Pruning and rewinding stand at the start of a round, not at the end of the one before: a checkpoint written
        at the end of an epoch then holds the trained network.
        """
        if self._start is None and self.options.mode == "weights_only":
            self._start = self._captured(trainer, pl_module)
        if self._point is None and self.timeline.rewind == (trainer.current_epoch, 0):
            self._capture_point(trainer, pl_module)
        while self.round < min(self.timeline.round_of(trainer.current_epoch), self.rounds):
            self._begin_round(trainer, pl_module)
        if self._sparsification is not None and trainer.current_epoch >= self.timeline.ticket_epoch(self.round):
            self._end_sparsification(trainer, pl_module, self._sparsification)
        self.follow_epoch(trainer, self.timeline.training_epoch(trainer.current_epoch))
        self.keep_rates(self.restart if self.round > 0 and self._sparsification is None else None)
        self._ends_training = self.timeline.ends_training(trainer.current_epoch)

    def _capture_point(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        point = self._captured(trainer, pl_module)
        self._point = point if self._start is None else point.with_start(self._start)

    def _captured(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> RewindPoint:
        return RewindPoint.capture(self.network_of(pl_module), trainer.optimizers, schedules_of(trainer), pl_module)

    def _begin_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.network_of(pl_module)
        self.round += 1
        if self.options.sparsifier is not None:
            self._begin_sparsification(trainer, pl_module, self.options.sparsifier)
            return
        scored = self._scored(network)
        self.masks = self._prune(trainer, network, scored)
        self._begin_ticket(trainer, pl_module, scored)

    def _begin_ticket(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruned: Mapping[str, Tensor]) -> None:
        """Begin the training of the ticket that the round's masks make of the network.

        Args:
            trainer: the Trainer of the fit.
            pl_module: the LightningModule, its network as it was trained last.
            pruned: the values of the network that the masks were made from.
        """
        network = self.network_of(pl_module)
        self.start_training()
        check_agreement(f"masks in epoch {trainer.current_epoch}", self.masks)
        values = self._restart_values(network)
        enforced = self._write_ticket(trainer, pruned, values)
        self._rewind(trainer, pl_module, values)
        self.enforce(trainer, network, enforced)
        self._gradients = {}

    def _prune(self, trainer: pl.Trainer, network: nn.Module, scored: Mapping[str, Tensor]) -> Masks:
        """Return the masks without the weights of the lowest scores."""
        masks, wanted = self._pruned_from()
        scope = self.options.compared_in
        context = Context(network, scored, self._example, lambda n: first_batches(trainer, n), wanted, scope)
        scores: dict[str, Tensor] = {}
        if trainer.is_global_zero:  # other processes have other batches, and may round differently
            with isolate_rng():
                torch.manual_seed(self.round)  # the same after a resume
                scores = self.options.scoring(_on_cpu(scored), masks, context)
        scores = trainer.strategy.broadcast(scores)
        if self.options.imp is not None:
            return prune_each(masks, scores, layer_counts(Path(self.options.imp), masks, wanted))
        return prune(masks, scores, wanted, scope)

    def _restart_values(self, network: nn.Module) -> dict[str, Tensor]:
        assert self.restart is not None
        if self.options.mode in REWINDS_WEIGHTS:
            return self.restart.values({}, self.masks)
        alive = when_alive(network.state_dict(), self.enforced_masks, self._alive)
        self._alive = copied_values(alive)
        return self.restart.values(alive, self.masks)

    def _write_ticket(self, trainer: pl.Trainer, pruned: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Masks:
        """Write the ticket that the round trains and return its masks; a structure may mask biases, too."""
        ticket = None
        if trainer.is_global_zero:  # made by one process, as scores on batches may be rounded otherwise elsewhere
            given = self._structure_input(trainer, _on_cpu(pruned))
            ticket = self._tickets.make(self.round, given, values)
        enforced: Masks = trainer.strategy.broadcast({} if ticket is None else ticket.masks)
        self.masks = {name: enforced[name] for name in self.masks}
        self._check_collapse()
        if ticket is not None:
            self._tickets.begin(self.round, ticket)
        return enforced

    def _rewind(self, trainer: pl.Trainer, pl_module: pl.LightningModule, values: Mapping[str, Tensor]) -> None:
        assert self.restart is not None
        self.network_of(pl_module).load_state_dict(dict(values))
        if self.options.mode in REWINDS_WEIGHTS:
            self.restart.point.restore_beside(pl_module)
        self.restart.restore(trainer.optimizers, schedules_of(trainer))

    def _end_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what the round reached; write its trained ticket, and one for each structure."""
        best = self.finish_training(self.network_of(pl_module), trainer.current_epoch)
        best_epoch, metrics = best["epoch"] - self.timeline.ticket_epoch(self.round), dict(best["metrics"])
        seconds = self.seconds()
        facts = RoundFacts(
            round=self.round,
            density=density(self.masks),
            best_epoch=best_epoch,
            metrics=metrics,
            train_seconds=seconds,
        )
        if self.round > 0 and self.options.sparsifier is not None:
            facts["sparsify_seconds"] = self._sparsify_seconds
        self.history.append(facts)
        if self.options.verbose:
            rank_zero_info(self.history.last_line(self.rounds))
        if self.round == 0:
            self._keep_dense(trainer, pl_module)
        if trainer.is_global_zero:
            given = self._structure_input(trainer, _on_cpu(best["state"]))
            epochs = self.timeline.epochs_per_training if self.round else self.timeline.epochs
            self._tickets.end(self.round, self._trained_ticket(given), given, facts, epochs)
            write_rounds(self.directory, self.history)
        self.best = {}

    # Scores, and masks that a sparsifier makes

    def _scored(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Return the parameters and buffers whose scores this round prunes by."""
        if self.options.scores_from == "dense":
            return self._dense
        if self.options.scores_from == "rewound":
            assert self._point is not None
            return self._point.network
        state: dict[str, Tensor] = network.state_dict()
        return state

    def _scored_beside(self) -> Mapping[str, Tensor]:
        """Return what the module had beside these weights; nothing where it still has that."""
        if self.options.scores_from == "rewound":
            assert self._point is not None
            return self._point.beside
        return self._dense_beside

    def _pruned_from(self) -> tuple[Masks, float]:
        """Return the masks that this round prunes further, and the density that it prunes them to."""
        wanted = self.densities[self.round - 1]
        masks = self.masks
        if self.options.scores_from != "trained":
            masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
        elif self.options.next_round_from != UNSTRUCTURED:  # a structure's density is its own: go on from there
            wanted = kept(masks) / size(masks) * (1 - self.options.rate)
        return masks, wanted

    def _begin_sparsification(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sparsifier: Sparsifier) -> None:
        assert self.restart is not None
        self.start_training()
        self.masks, wanted = self._pruned_from()
        network = self.network_of(pl_module)
        network.load_state_dict(self._scored(network))
        load_beside(pl_module, self._scored_beside())
        rewound = self.options.scores_from == "rewound"
        self.restart.point.restore_schedule(trainer.optimizers, schedules_of(trainer), momentum=rewound)
        # A structure that the last round trained may mask more than weights.
        before = self.enforced_masks if self.options.scores_from == "trained" else {}
        self.enforce(trainer, network, before | self.masks)
        self._gradients = {}
        steps = self.timeline.epochs_per_training * steps_per_epoch(trainer)
        aim = Aim(self.masks, wanted, self.options.compared_in, steps)
        self._sparsification = Sparsification(sparsifier, network, aim)

    def _end_sparsification(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, sparsification: Sparsification
    ) -> None:
        self.masks = sparsification.finish()
        self._sparsification = None
        self._sparsify_seconds = self.seconds()
        self._begin_ticket(trainer, pl_module, self.network_of(pl_module).state_dict())

    def _check_collapse(self) -> None:
        if not (names := collapsed(self.masks)):
            return
        message = f"round {self.round}: no weight is left in {', '.join(names)} (layer collapse)"
        if self.options.on_collapse == "stop":
            raise ValueError(f"{message}; prune less (rate, rounds), or set scope='layer' or exempt")
        rank_zero_warn(message)

    # Tickets, and what they are made of

    def _full_masks(self, traced: TracedNetwork) -> Masks:
        masks = full_masks(prunable_layers(traced.layers, self.options.exempt))
        if self.densities and round(self.densities[-1] * size(masks)) < 1:
            raise ValueError(
                f"rounds={self.rounds} at rate={self.options.rate}: would leave none of {size(masks)} weights"
                f" (density {self.densities[-1]:.3g})"
            )
        return masks

    def _keep_dense(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what rounds need of the dense training."""
        self.restart = self._make_restart(trainer)
        network = self.network_of(pl_module)
        if self.options.mode not in REWINDS_WEIGHTS:
            self._alive = copied_values(network.state_dict())
        if self.options.scores_from == "dense":
            self._dense = copied_values(network.state_dict())
            self._dense_beside = copied_values(state_beside(network, pl_module))

    def _make_restart(self, trainer: pl.Trainer) -> Restart:
        assert self._point is not None
        epochs = self.timeline.epochs_per_training
        restart = Restart(self.options.mode, self._point, epochs, self._last_rates, self.options.refilled)
        if trainer.is_global_zero:
            restart.save(self.directory / "restart.pt")
        return restart

    def _sum_gradients(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if steps_in_epoch(trainer) < steps_per_epoch(trainer) - self.options.gradient_batches:
            return
        for name in self.masks:
            parameter = self.network_of(pl_module).get_parameter(name)
            if parameter.grad is not None:
                known = self._gradients.get(name)
                self._gradients[name] = parameter.grad + (0 if known is None else known.to(parameter.device))

    def _structure_input(self, trainer: pl.Trainer, weights: Mapping[str, Tensor]) -> StructureInput:
        assert self._traced is not None
        gradients = _on_cpu(self._gradients) or None
        return StructureInput(self._traced, self.masks, weights, gradients, structure_batches(trainer))

    def _trained_ticket(self, given: StructureInput) -> Ticket:
        """Return the ticket that the round has trained, still without its trained weights."""
        if self.round > 0:
            return self._tickets.begun(self.round, self.enforced_masks)
        assert self._point is not None
        return self._tickets.make(0, given, _on_cpu(self._point.network))

    def _epochs_before(self) -> int:
        """Return how many epochs the ancestors of the round's ticket were trained."""
        goes_on = self.options.sparsifier is None and self.options.mode not in REWINDS_WEIGHTS
        return self.timeline.epochs_before(self.round, "trained" if goes_on else self.options.scores_from)

    @property
    def _tickets(self) -> RoundTickets:
        card = {
            **self.options.facts, "rewind": str(self.rewind), "mode": self.options.mode,
            "total_epochs": self._epochs_before(),
        }  # fmt: skip
        return RoundTickets(self.directory, self.options.structures, self.options.next_round_from, card)

    # State

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "round": self.round,
            "masks": self.masks,
            "history": list(self.history),
            "dense": self._dense,
            "dense_beside": self._dense_beside,
            "point": None if self._point is None else self._point.state_dict(),
            "start": None if self._start is None else self._start.state_dict(),
            "restart": None if self.restart is None else self.restart.state_dict(),
            "gradients": self._gradients,
            "sparsification": None if self._sparsification is None else self._sparsification.state_dict(),
            "sparsify_seconds": self._sparsify_seconds,
            "last_rates": self._last_rates,
            "alive": self._alive,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.round = state_dict["round"]
        self.masks = state_dict["masks"]
        self.history = History(state_dict["history"])
        self._dense = state_dict["dense"]
        self._dense_beside = state_dict["dense_beside"]
        point, start, restart = (state_dict[key] for key in ("point", "start", "restart"))
        self._point = None if point is None else RewindPoint(**point)
        self._start = None if start is None else RewindPoint(**start)
        self.restart = None if restart is None else Restart.from_state(restart)
        self._gradients = state_dict["gradients"]
        self._sparsification_state = state_dict["sparsification"]
        self._sparsify_seconds = state_dict["sparsify_seconds"]
        self._last_rates = state_dict["last_rates"]
        self._alive = state_dict["alive"]


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in values.items()}
