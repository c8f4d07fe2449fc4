"""Tickets trained alone, against the round of the search that trained them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.retraining import TicketTraining
from tests import toys

STEPS = 4
EPOCHS = 3
REWIND = 1  # epochs


class Toy(toys.Toy):
    def __init__(self, first: int = 0, scores: list[float] | None = None) -> None:
        torch.manual_seed(first)  # what a ticket is applied to does not matter
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip
        super().__init__(network, schedule=cosine, steps=STEPS, first=first, scores=scores)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)


def trainer_of(folder: Path, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    options = {"max_epochs": EPOCHS, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=callbacks, **options,
    )  # fmt: skip


def search(folder: Path, scores: list[float] | None = None, **options: Any) -> tuple[Toy, Path]:
    pruning = LotteryTicketPruning(2, folder / "tickets", rewind=f"{REWIND}ep", monitor="val/score", **options)
    module = Toy(scores=scores)
    trainer_of(folder, [pruning]).fit(module)
    return module, pruning.directory


def first_epoch(number: int) -> int:
    """Of a round, in the search."""
    return EPOCHS + (number - 1) * (EPOCHS - REWIND)


def same(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("mode", ["weights", "learning_rate", "none"])
def test_a_ticket_trained_alone_is_the_searchs_own_round_bit_for_bit(tmp_path: Path, mode: Any, number: int) -> None:
    searched, folder = search(tmp_path, mode=mode)
    expected = Ticket.load(folder / f"round_{number:02d}" / "unstructured" / "ticket")
    training = TicketTraining(expected, Restart.load(folder / "restart.pt"), monitor="val/score")
    alone = Toy(first_epoch(number))
    trainer_of(tmp_path, [training]).fit(alone)
    assert training.trained is not None
    assert training.trained.trained is not None
    assert expected.trained is not None
    assert same(training.trained.trained, expected.trained)
    assert same(training.trained.masks, expected.masks)
    assert training.trained.card["metrics"] == expected.card["metrics"]
    assert training.trained.card["best_epoch"] == expected.card["best_epoch"]
    assert training.trained.card["epochs"] == expected.card["epochs"] == EPOCHS - REWIND
    total = EPOCHS + number * (EPOCHS - REWIND)
    assert training.trained.card["total_epochs"] == expected.card["total_epochs"] == total
    start = first_epoch(number) * STEPS
    assert alone.rates == searched.rates[start : start + (EPOCHS - REWIND) * STEPS]
    if mode != "none":
        assert alone.rates == searched.rates[REWIND * STEPS : EPOCHS * STEPS]
    else:
        assert alone.rates == [searched.rates[EPOCHS * STEPS - 1]] * len(alone.rates)


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_alone_go_back_and_all_epochs_are_trained(tmp_path: Path, number: int) -> None:
    searched, folder = search(tmp_path, mode="weights_only")
    expected = Ticket.load(folder / f"round_{number:02d}" / "unstructured" / "ticket")
    training = TicketTraining(expected, Restart.load(folder / "restart.pt"), monitor="val/score")
    alone = Toy(EPOCHS * number)
    trainer_of(tmp_path, [training]).fit(alone)
    assert training.trained is not None
    assert training.trained.trained is not None
    assert expected.trained is not None
    assert same(training.trained.trained, expected.trained)
    rates = searched.rates[EPOCHS * STEPS * number :][: EPOCHS * STEPS]
    assert alone.rates == rates == searched.rates[: EPOCHS * STEPS]


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    scores = [0.0, 0.0, 0.0, 0.9, 0.1, 0.5, 0.5]
    _, folder = search(tmp_path, scores)
    expected = Ticket.load(folder / "round_01" / "unstructured" / "ticket")
    training = TicketTraining(expected, Restart.load(folder / "restart.pt"), monitor="val/score")
    alone = Toy(first_epoch(1), scores)
    trainer_of(tmp_path, [training]).fit(alone)
    assert training.trained is not None
    assert training.trained.trained is not None
    assert training.trained.card["best_epoch"] == 0
    assert training.trained.card["metrics"]["val/score"] == pytest.approx(0.9)
    assert training.trained.card["train_seconds"] > 0
    assert expected.trained is not None
    assert same(training.trained.trained, expected.trained)
    assert not same(training.trained.trained, alone.network.state_dict())  # of the last epoch


def test_a_structured_ticket_keeps_its_channels_dead(tmp_path: Path) -> None:
    _, folder = search(tmp_path, structures={"refill": Refill(round_to=1)})
    ticket = Ticket.load(folder / "round_02" / "refill" / "ticket")
    assert set(ticket.masks) == {"3.weight", "4.weight", "4.bias", "8.weight"}
    training = TicketTraining(ticket, Restart.load(folder / "restart.pt"), execution="masked", monitor=None)
    trainer_of(tmp_path, [training]).fit(Toy(7))
    assert training.trained is not None
    state = training.trained.trained
    assert state is not None
    for name, mask in ticket.masks.items():
        assert int(state[name][~mask].count_nonzero()) == 0
        assert not torch.equal(state[name][mask], ticket.rewind[name][mask])
    assert training.trained.card["best_epoch"] == EPOCHS - REWIND - 1
    assert training.trained.card["total_epochs"] == EPOCHS + 3 * (EPOCHS - REWIND)
    training.trained.save(tmp_path / "trained")
    assert same(Ticket.load(tmp_path / "trained").trained or {}, state)


class Split(pl.LightningModule):
    """One whose layers are in two submodules and on itself, so that all of it is the network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.scale, self.last = nn.Parameter(torch.ones(8)), nn.Linear(8, 3)
        self.loss = nn.CrossEntropyLoss(torch.ones(3))

    def forward(self, images: Tensor) -> Any:
        return self.last(self.head(self.features(images)).flatten(1) * self.scale)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        return toys.batches(STEPS)


def test_a_module_that_is_pruned_as_a_whole_becomes_smaller_itself(tmp_path: Path) -> None:
    pruning = LotteryTicketPruning(1, tmp_path, rate=0.6, rewind="1ep", structures={"refill": Refill(round_to=1)})
    trainer_of(tmp_path, [pruning]).fit(Split())
    ticket, images = Ticket.load(tmp_path / "round_01" / "refill" / "ticket"), torch.randn(4, 1, 6, 6)
    modules = {"masked": Split(), "shrunk": Split()}
    loss = modules["shrunk"].loss
    for execution, module in modules.items():
        training = TicketTraining(ticket, Restart.load(tmp_path / "restart.pt"), execution=execution)  # type: ignore[arg-type]
        trainer_of(tmp_path, [training]).fit(module)
        trained = training.trained
        assert trained is not None
        assert trained.card["execution"] == execution
    assert trained is not None
    masked, small = (module.eval() for module in modules.values())
    torch.testing.assert_close(small(images), masked(images))
    torch.testing.assert_close(trained.shrink(Split(), images).network.eval()(images), small(images))
    assert len(small.scale) == small.last.in_features < 8
    assert small.loss is loss


def test_operations_that_keep_their_channels_are_named_on_the_card(tmp_path: Path) -> None:
    alone = Toy()
    example = torch.zeros(1, 1, 6, 6)
    alone.example_input_array = example
    alone.network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Softmax2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    state = {name: value.clone() for name, value in alone.network.state_dict().items()}
    masks = {"0.weight": torch.rand(8, 1, 3, 3) < 0.5}
    ticket = make_ticket(
        "refill", Refill(round_to=1), StructureInput(TracedNetwork(alone.network, example), masks, state), state
    )
    training = TicketTraining(ticket, monitor=None)
    trainer_of(tmp_path, [training]).fit(alone)
    assert training.trained is not None
    (why,) = training.trained.card["kept_whole"]
    assert "softmax over channels (3)" in why
    assert len(alone.network.get_submodule("0").weight) < 8  # type: ignore[arg-type]


def test_without_a_restart_the_whole_schedule_is_trained(tmp_path: Path) -> None:
    _, folder = search(tmp_path)
    ticket = Ticket.load(folder / "round_01" / "unstructured" / "ticket")
    training = TicketTraining(ticket, monitor="val/score")
    alone = Toy(3)
    trainer_of(tmp_path, [training]).fit(alone)
    assert len(alone.rates) == EPOCHS * STEPS
    assert alone.rates[0] == 0.1
    assert training.trained is not None


@pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    _, folder = search(tmp_path)
    ticket = Ticket.load(folder / "round_01" / "unstructured" / "ticket")

    def parts(name: str) -> tuple[TicketTraining, pl.Trainer]:
        training = TicketTraining(ticket, Restart.load(folder / "restart.pt"), monitor="val/score")
        checkpoint = ModelCheckpoint(
            tmp_path / name, filename="{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
        )
        return training, trainer_of(tmp_path, [training, checkpoint], enable_checkpointing=True)

    whole, trainer = parts("whole")
    module = Toy(9)
    trainer.fit(module)
    resumed, trainer = parts("resumed")
    again = Toy(9)
    trainer.fit(again, ckpt_path=tmp_path / "whole" / "epoch=0.ckpt", weights_only=True)
    assert same(again.state_dict(), module.state_dict())
    assert whole.trained is not None
    assert resumed.trained is not None
    assert same(resumed.trained.trained or {}, whole.trained.trained or {})
    assert resumed.trained.card["metrics"] == whole.trained.card["metrics"]


def test_a_ticket_for_another_network_is_refused_before_training(tmp_path: Path) -> None:
    ticket = Ticket({}, {"other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"Sequential: .*\b0\."):
        trainer_of(tmp_path, [TicketTraining(ticket, monitor=None)]).fit(Toy())


def test_a_monitor_without_validation_is_refused_before_training(tmp_path: Path) -> None:
    module = Toy()
    training = TicketTraining(Ticket({}, module.network.state_dict()), monitor="val/score")
    with pytest.raises(ValueError, match=r"^monitor='val/score': "):
        trainer_of(tmp_path, [training], limit_val_batches=0).fit(module)
    assert not module.rates
