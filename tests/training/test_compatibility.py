"""Other people's callbacks, schedules, validations, optimizers and networks beside the callback."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lt_lightning.pruning.rewinding import Restart
from lt_lightning.pruning.sparsifiers import ADMM
from lt_lightning.structures.base import Structure
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.compatibility import REFUSED, check_callbacks
from lt_lightning.training.retraining import TicketTraining
from tests import toys
from tests.cases import slow_but

STEPS = 4
DOCS = Path(__file__).parents[2] / "docs"
State = dict[str, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class Toy(toys.Toy):
    def __init__(self, network: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network or net(), **{"steps": STEPS, "shuffled": False, **options})
        self.batch_size = 8  # which the BatchSizeFinder looks for
        self.example_input_array = torch.zeros(1, 1, 6, 6)


def trainer_of(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    options = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "max_epochs": 2, **options,
    }  # fmt: skip
    return pl.Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **options)


def pruning_in(folder: Path, **options: Any) -> LotteryTicketPruning:
    return LotteryTicketPruning(
        **{"rounds": 1, "rate": 0.4, "directory": folder / "tickets", "monitor": "val/accuracy", **options}
    )


def ticket_in(folder: Path, number: int = 1, name: str = "unstructured") -> Ticket:
    return Ticket.load(folder / "tickets" / f"round_{number:02d}" / name / "ticket")


def trained_in(folder: Path, number: int = 1, name: str = "unstructured") -> State:
    trained = ticket_in(folder, number, name).trained
    assert trained is not None
    return dict(trained)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Epochs(pl.Callback):
    """Counts the epochs that are trained."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.count += 1


def refused(message: str, pruning: LotteryTicketPruning, module: Any = None, **options: Any) -> None:
    """See that a search is refused before its first epoch, in one line."""
    epochs = Epochs()
    with pytest.raises(ValueError, match=message) as told:
        trainer_of(pruning, epochs, **options).fit(module or Toy())
    assert epochs.count == 0
    assert "\n" not in str(told.value)


# The callbacks of Lightning


class Finetuning(lightning.BaseFinetuning):
    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Freeze nothing."""


class Predictions(lightning.BasePredictionWriter):
    pass


class Bar(lightning.ProgressBar):
    def disable(self) -> None:
        """There is nothing to disable."""


MAKERS: dict[str, Callable[[Path], pl.Callback]] = {
    "BackboneFinetuning": lambda _: lightning.BackboneFinetuning(),
    "BaseFinetuning": lambda _: Finetuning(),
    "BasePredictionWriter": lambda _: Predictions(),
    "BatchSizeFinder": lambda _: lightning.BatchSizeFinder(),
    "Callback": lambda _: pl.Callback(),
    "Checkpoint": lambda _: lightning.Checkpoint(),
    "DeviceStatsMonitor": lambda _: lightning.DeviceStatsMonitor(cpu_stats=False),
    "EarlyStopping": lambda _: lightning.EarlyStopping("val/loss"),
    "EMAWeightAveraging": lambda _: lightning.EMAWeightAveraging(),
    "GradientAccumulationScheduler": lambda _: lightning.GradientAccumulationScheduler({0: 1, 1: 2}),
    "LambdaCallback": lambda _: lightning.LambdaCallback(on_train_epoch_start=lambda *_: None),
    "LearningRateFinder": lambda _: lightning.LearningRateFinder(),
    "LearningRateMonitor": lambda _: lightning.LearningRateMonitor(),
    "ModelCheckpoint": lambda folder: lightning.ModelCheckpoint(folder),
    "ModelPruning": lambda _: lightning.ModelPruning("l1_unstructured", amount=0.5),
    "ModelSummary": lambda _: lightning.ModelSummary(),
    "OnExceptionCheckpoint": lambda folder: lightning.OnExceptionCheckpoint(folder),
    "ProgressBar": lambda _: Bar(),
    "RichModelSummary": lambda _: lightning.RichModelSummary(),
    "RichProgressBar": lambda _: lightning.RichProgressBar(),
    "SpikeDetection": lambda _: lightning.SpikeDetection(warmup=1000),
    "StochasticWeightAveraging": lambda _: lightning.StochasticWeightAveraging(swa_lrs=0.05),
    "ThroughputMonitor": lambda _: lightning.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0])),
    "Timer": lambda _: lightning.Timer(datetime.timedelta(hours=1)),
    "TQDMProgressBar": lambda _: lightning.TQDMProgressBar(),
    "WeightAveraging": lambda _: lightning.WeightAveraging(),
}


def table() -> dict[str, list[str]]:
    """Read the documentation: verdict and note by callback."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ?(.*?) ?\|$", (DOCS / "callbacks.md").read_text(), re.MULTILINE)
    return {name: [verdict, note] for name, verdict, note in rows}


def test_the_table_has_every_callback_of_lightning() -> None:
    assert sorted(table()) == sorted(MAKERS) == sorted(lightning.__all__)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> State:
    """The trained ticket of a search without other callbacks."""
    folder = tmp_path_factory.mktemp("alone")
    trainer_of(pruning_in(folder)).fit(Toy())
    return trained_in(folder)


@pytest.mark.parametrize("name", MAKERS)
def test_a_callback_works_or_is_refused_as_the_table_says(name: str, tmp_path: Path, alone: State) -> None:
    if name.startswith("Rich"):
        pytest.importorskip("rich")
    verdict, note = table()[name]
    options = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), True)
    options |= {"enable_checkpointing": "Checkpoint" in name, "enable_progress_bar": "ProgressBar" in name}
    options |= {"enable_model_summary": "Summary" in name}
    pruning, epochs = pruning_in(tmp_path), Epochs()
    made = MAKERS[name](tmp_path / "own")
    trainer = trainer_of(pruning, made, epochs, logger=CSVLogger(tmp_path), log_every_n_steps=1, **options)
    if verdict == "works":
        trainer.fit(Toy())
        assert len(pruning.history) == 2
        assert same(trained_in(tmp_path), alone)
        return
    assert verdict == "refused"
    assert note in REFUSED.values()
    with pytest.raises(ValueError, match=rf"^{type(made).__name__}: .*{re.escape(note)}$"):
        trainer.fit(Toy())
    assert epochs.count == 0


def test_what_is_refused_is_refused_of_the_other_package_too() -> None:
    """`lightning.pytorch` has classes of its own."""
    other = pytest.importorskip("lightning.pytorch.callbacks")
    for name, reason in REFUSED.items():
        callback: object = object.__new__(type("Own", (getattr(other, name),), {}))
        with pytest.raises(ValueError, match=rf"^Own: .*{re.escape(reason)}$"):
            check_callbacks(SimpleNamespace(callbacks=[callback]), object())  # type: ignore[arg-type]


def test_a_ticket_alone_may_stop_early(tmp_path: Path) -> None:
    trainer_of(pruning_in(tmp_path)).fit(Toy())
    training, epochs = TicketTraining(ticket_in(tmp_path)), Epochs()
    trainer_of(training, epochs, lightning.EarlyStopping("val/score", patience=1), max_epochs=9).fit(Toy(scores=[0.5]))
    assert epochs.count == 2
    assert training.trained is not None
    with pytest.raises(ValueError, match=r"^EMAWeightAveraging: "):
        trainer_of(TicketTraining(ticket_in(tmp_path)), lightning.EMAWeightAveraging()).fit(Toy())


def test_the_dense_best_checkpoint_is_told_once(tmp_path: Path) -> None:
    keep = lightning.ModelCheckpoint(tmp_path / "own", monitor="val/score", mode="max")
    with pytest.warns(UserWarning, match=r"monitor='val/score', save_top_k=1.*round_01") as told:
        trainer_of(pruning_in(tmp_path), keep, enable_checkpointing=True).fit(Toy())
    assert len([each for each in told if "save_top_k" in str(each.message)]) == 1


# What is done every few epochs


class Scheduled(Toy):
    """Its schedule steps every so many epochs."""

    def __init__(self, frequency: int, plateau: bool = False) -> None:
        super().__init__(scores=[0.5])
        self.frequency = frequency
        self.plateau = plateau
        self.validated: list[int] = []

    def on_validation_epoch_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule: Any = ReduceLROnPlateau(optimizer, "max", 0.1, patience=0) if self.plateau else StepLR(optimizer, 1)
        config = {"scheduler": schedule, "frequency": self.frequency, "monitor": "val/score"}
        return {"optimizer": optimizer, "lr_scheduler": config}


@pytest.mark.parametrize(
    ("frequency", "plateau", "rewind", "epochs"),
    slow_but(
        [(2, False, 1, 4), (2, True, 3, 6)],
        [(2, False, 1, 4), (3, False, 0, 4), (3, False, 2, 4), (1, True, 1, 4), (2, True, 3, 6)],
    ),
)
def test_every_round_has_the_rates_of_the_dense_training(
    frequency: int, plateau: bool, rewind: int, epochs: int, tmp_path: Path
) -> None:
    module = Scheduled(frequency, plateau)
    trainer_of(pruning_in(tmp_path, rounds=2, rewind=rewind), max_epochs=epochs).fit(module)
    plain = Scheduled(frequency, plateau)
    trainer_of(max_epochs=epochs).fit(plain)
    rates = module.rates[::STEPS]
    dense, rounds = rates[:epochs], rates[epochs:]
    assert dense == plain.rates[::STEPS]
    assert len(set(dense)) > 1
    assert rounds == dense[rewind:] * 2
    training = TicketTraining(ticket_in(tmp_path, 2), Restart.load(tmp_path / "tickets" / "restart.pt"))
    alone = Scheduled(frequency, plateau)
    trainer_of(training, max_epochs=epochs).fit(alone)
    assert alone.rates[::STEPS] == dense[rewind:]


@pytest.mark.parametrize(("every", "rewind"), [(2, 0), (2, 1), (3, 1)])
def test_every_round_is_validated_in_the_epochs_of_the_dense_training(every: int, rewind: int, tmp_path: Path) -> None:
    """Where Lightning counts the fit's."""
    module = Scheduled(1)
    trainer = trainer_of(
        pruning_in(tmp_path, rounds=2, rewind=rewind, monitor="val/score"), max_epochs=3, check_val_every_n_epoch=every
    )
    trainer.fit(module)
    fit = [0, 1, 2] + [*range(rewind, 3)] * 2
    assert module.validated == [epoch for epoch, its in enumerate(fit) if (its + 1) % every == 0]
    assert trainer.check_val_every_n_epoch == every


@pytest.mark.parametrize(
    ("options", "trainer", "message"),
    [
        ({}, {"check_val_every_n_epoch": 3}, r"check_val_every_n_epoch=3\b.*monitor='val/accuracy'"),
        ({"rewind": "2ep"}, {"max_epochs": 3, "check_val_every_n_epoch": 2}, r"check_val_every_n_epoch=2\b.* 2 to 2\b"),
        ({}, {"check_val_every_n_epoch": None, "val_check_interval": 3}, r"val_check_interval=3\b.*\b8\b"),
        ({}, {"check_val_every_n_epoch": None, "val_check_interval": 16}, r"val_check_interval=16\b.*\b8\b"),
        ({}, {"val_check_interval": "00:00:00:01"}, r"val_check_interval=1\b.*clock"),
        ({}, {"limit_val_batches": 0}, "monitor='val/accuracy'"),
        ({}, {"limit_train_batches": 0}, "limit_train_batches=0"),
    ],
)
def test_a_round_without_validation_is_known_before(
    options: dict[str, Any], trainer: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(message, pruning_in(tmp_path, **options), **trainer)


@pytest.mark.parametrize("interval", [2, 8])
def test_validations_between_epochs_that_divide_a_round(interval: int, tmp_path: Path) -> None:
    pruning = pruning_in(tmp_path)
    trainer_of(pruning, check_val_every_n_epoch=None, val_check_interval=interval).fit(Toy())
    assert len(pruning.history) == 2


def test_a_schedule_between_two_steps_of_an_epoch(tmp_path: Path) -> None:
    class Steps(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            config = {"scheduler": StepLR(optimizer, 1), "interval": "step", "frequency": 2}
            return {"optimizer": optimizer, "lr_scheduler": config}

    refused(r"^rewind=3it: .*frequency=2\b", pruning_in(tmp_path, rewind="3it"), Steps())


# Optimizers


def test_optimizers_that_move_pruned_weights_are_refused_before(tmp_path: Path) -> None:
    module = Toy(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2))
    refused(r"^LBFGS: .*\b3\.weight\b", pruning_in(tmp_path), module)


def test_adamax_is_no_false_alarm(tmp_path: Path) -> None:
    pruning = pruning_in(tmp_path)
    trainer_of(pruning).fit(Toy(optimizer=torch.optim.Adamax))
    assert len(pruning.history) == 2
    training = TicketTraining(ticket_in(tmp_path), Restart.load(tmp_path / "tickets" / "restart.pt"))
    trainer_of(training).fit(Toy(optimizer=torch.optim.Adamax))
    assert training.trained is not None


# What is trained beside the network


class Projecting(Toy):
    """A temperature and a projection with statistics, in two optimizers' worth of groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.temperature = nn.Parameter(torch.ones(()))
        self.projection = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.starts: dict[int, State] = {}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.projection(super().forward(images)) * self.temperature
        return logits

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.starts[self.current_epoch] = {name: v.detach().clone() for name, v in self.state_dict().items()}

    def configure_optimizers(self) -> Any:
        beside = [self.temperature, *self.projection.parameters()]
        groups: list[dict[str, Any]] = [{"params": beside, "lr": 0.05}, {"params": list(self.network.parameters())}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def beside(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("network.")}


def test_what_is_beside_the_network_is_rewound(tmp_path: Path) -> None:
    module = Projecting()
    trainer_of(pruning_in(tmp_path, rounds=2, rewind="1ep")).fit(module)
    for epoch in (2, 3):  # one for each round
        assert same(beside(module.starts[epoch]), beside(module.starts[1]))
    assert not same(beside(module.state_dict()), beside(module.starts[1]))


@pytest.mark.parametrize("scores_from", ["dense", "rewound"])
def test_what_is_beside_the_network_goes_with_the_weights_that_are_made_sparse(
    scores_from: Any, tmp_path: Path
) -> None:
    module = Projecting()
    pruning = pruning_in(tmp_path, density=[0.6, 0.4], sparsifier=ADMM(), scores_from=scores_from)
    trainer_of(pruning).fit(module)
    starts = [beside(module.starts[epoch]) for epoch in (0, 2, 4, 6, 8)]  # dense, then sparse and ticket by round
    assert same(starts[2], starts[0])
    assert same(starts[4], starts[0])
    assert same(starts[3], starts[1])
    assert same(starts[1], starts[0]) == (scores_from == "rewound")
    # A sparse training and the ticket's, of two epochs each, and the dense one where it is scored.
    total = 6 if scores_from == "dense" else 4
    assert [ticket_in(tmp_path, number).card["total_epochs"] for number in (1, 2)] == [total] * 2


@pytest.mark.parametrize("structure", [Refill(round_to=1), Regroup()])
@pytest.mark.parametrize("execution", ["masked", "shrunk"])
def test_a_ticket_is_trained_alone_with_what_is_beside_it(structure: Structure, execution: Any, tmp_path: Path) -> None:
    structures = {"own": structure}
    trainer_of(pruning_in(tmp_path, structures=structures, next_round_from="own", rewind="1ep")).fit(Projecting())
    training = TicketTraining(
        ticket_in(tmp_path, name="own"), Restart.load(tmp_path / "tickets" / "restart.pt"), execution
    )
    trainer_of(training).fit(Projecting())
    assert training.trained is not None
    assert training.trained.trained is not None
    for name, value in trained_in(tmp_path, name="own").items():
        torch.testing.assert_close(training.trained.trained[name], value)


def test_what_a_ticket_does_not_hold_is_told(tmp_path: Path) -> None:
    trainer_of(pruning_in(tmp_path, mode="learning_rate")).fit(Projecting())
    training = TicketTraining(ticket_in(tmp_path), Restart.load(tmp_path / "tickets" / "restart.pt"))
    with pytest.warns(UserWarning, match="mode='learning_rate'"):
        trainer_of(training).fit(Projecting())


# Resuming, and fitting again


@pytest.mark.parametrize(
    ("options", "trainer", "message"),
    [
        ({"rate": 0.3}, {}, r"^rate=0\.3: .*rate=0\.4\b"),
        ({"rounds": 2}, {}, r"^rounds=2: .*rounds=1\b"),
        ({"rewind": "1ep"}, {}, r"^rewind='1ep': .*rewind='0ep'"),
        ({"monitor": "val/score"}, {}, r"^monitor='val/score': .*monitor='val/accuracy'"),
        ({}, {"max_epochs": 3}, r"^max_epochs=3: .*max_epochs=2\b"),
    ],
)
def test_a_resumed_fit_with_other_arguments_is_refused(
    options: dict[str, Any], trainer: dict[str, Any], message: str, tmp_path: Path, stopped: Path
) -> None:
    refused_options = {**options, "directory": stopped / "tickets"}
    epochs = Epochs()
    with pytest.raises(ValueError, match=message):
        trainer_of(pruning_in(tmp_path, **refused_options), epochs, **trainer).fit(
            Toy(), ckpt_path=stopped / "own" / "epoch=2.ckpt", weights_only=True
        )
    assert epochs.count == 0


def test_a_resumed_fit_with_other_structures_goes_on(tmp_path: Path, stopped: Path) -> None:
    pruning = pruning_in(tmp_path, directory=stopped / "tickets", structures={"refill": Refill(round_to=1)})
    trainer_of(pruning).fit(Toy(), ckpt_path=stopped / "own" / "epoch=2.ckpt", weights_only=True)
    assert len(pruning.history) == 2


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with a checkpoint of every epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    keep = lightning.ModelCheckpoint(folder / "own", filename="{epoch}", save_top_k=-1)
    trainer_of(pruning_in(folder), keep, enable_checkpointing=True).fit(Toy())
    return folder


def test_a_second_fit_of_the_trainer_is_refused_and_of_the_callback_is_a_new_one(tmp_path: Path) -> None:
    pruning = pruning_in(tmp_path)
    trainer = trainer_of(pruning)
    trainer.fit(Toy())
    with pytest.raises(ValueError, match=r"max_epochs=2\b.*\b4 epochs\b"):
        trainer.fit(Toy())
    trainer_of(pruning).fit(Toy())
    assert len(pruning.history) == 2


# Networks


def compiled_beside(network: nn.Module) -> nn.Module:
    made: nn.Module = torch.compile(network, backend="eager")  # type: ignore[assignment]
    return made


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("compiled", [compiled_beside, pytest.param(compiled_in_place, marks=pytest.mark.slow)])
def test_a_compiled_network_is_pruned_as_it_is(compiled: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    structures = {"refill": Refill(round_to=1)}
    states = []
    for name, network in (("plain", net()), ("compiled", compiled(net()))):
        pruning = pruning_in(tmp_path / name, structures=structures, next_round_from="refill")
        trainer_of(pruning, max_epochs=1).fit(Toy(network))
        states.append(trained_in(tmp_path / name, name="refill"))
    module = Toy(compiled(net()))
    training = TicketTraining(
        ticket_in(tmp_path / "compiled", name="refill"), Restart.load(tmp_path / "compiled" / "tickets" / "restart.pt")
    )
    trainer_of(training, max_epochs=1).fit(module)
    assert training.trained is not None
    states.append(dict(training.trained.trained or {}))
    for state in states[1:]:
        assert state.keys() == net().state_dict().keys()
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value)
    assert training.network_of(module).get_parameter("3.weight").numel() < net().get_parameter("3.weight").numel()


class Quiet(Toy):
    """Lightning cannot compile `self.log`."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])


@pytest.mark.slow
def test_a_compiled_lightning_module(tmp_path: Path, alone: State) -> None:
    pruning = pruning_in(tmp_path, structures={"refill": Refill(round_to=1)})
    trainer_of(pruning).fit(torch.compile(Quiet(), backend="eager"))  # type: ignore[arg-type]
    state = trained_in(tmp_path)
    for name, value in alone.items():
        torch.testing.assert_close(state[name], value)
    training = TicketTraining(ticket_in(tmp_path, name="refill"), Restart.load(tmp_path / "tickets" / "restart.pt"))
    trainer_of(training).fit(torch.compile(Quiet(), backend="eager"))  # type: ignore[arg-type]
    assert training.trained is not None


class Remembering(nn.ReLU):
    """It has a state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        """Forget it."""


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    network = net()
    network.add_module("4", Remembering())
    refused(r"^network\.4\._extra_state: .*\bdict\b", pruning_in(tmp_path), Toy(network))
