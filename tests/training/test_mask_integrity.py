"""Mask integrity: a callback gone wrong is found out, and nothing that it spoilt is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lt_lightning.pruning.enforcement import (
    EnforcedMasks,
    check_finite,
    check_gradients,
    check_masks,
    check_zeros,
    collapsed,
    packed,
)
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training import masked_training
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.masked_training import MaskedTraining
from lt_lightning.training.retraining import TicketTraining
from tests import toys

STEPS, EPOCHS = 3, 2
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
OTHERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.001),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}
AVERAGES = {
    "sgd": ["momentum_buffer"],
    "nesterov": ["momentum_buffer"],
    "adam": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    "adamw": ["exp_avg", "exp_avg_sq"],
}
NAME = "3.weight"  # the one that is spoilt


class Toy(toys.Toy):
    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer] = OPTIMIZERS["sgd"]) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip
        super().__init__(network, optimizer, steps=STEPS, shuffled=False)
        self.example_input_array = torch.zeros(1, 1, 6, 6)


def trainer_of(callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    options = {"max_epochs": EPOCHS, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=callbacks, **options,
    )  # fmt: skip


def pruning_in(folder: Path, **options: Any) -> LotteryTicketPruning:
    return LotteryTicketPruning(**{"rounds": 2, "rate": 0.4, "directory": folder / "tickets", **options})


def ticket(folder: Path, number: int, name: str = "unstructured") -> Ticket:
    return Ticket.load(folder / "tickets" / f"round_{number:02d}" / name / "ticket")


# What goes wrong: each takes the callback and the trainer, and spoils three pruned places of one parameter


def places(callback: MaskedTraining) -> Tensor:
    """Three pruned places."""
    return (~callback.enforced_masks[NAME]).flatten().nonzero()[:3, 0]


def write(values: Tensor, where: Tensor) -> None:
    with torch.no_grad():
        values.view(-1)[where] = torch.tensor([0.25, -0.5, 0.125])


def spoil_weight(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
    write(network.get_parameter(NAME), places(callback))


def spoil_gradient(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
    gradient = network.get_parameter(NAME).grad
    assert gradient is not None
    write(gradient, places(callback))


def spoil_average(key: str) -> Callable[[MaskedTraining, nn.Module, Any], None]:
    def spoil(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
        write(optimizer.state[network.get_parameter(NAME)][key], places(callback))

    return spoil


def spoil_enforced_mask(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
    callback.enforced_masks = {**callback.enforced_masks, NAME: callback.enforced_masks[NAME].clone()}
    callback.enforced_masks[NAME].view(-1)[places(callback)] = True


def spoil_applied_mask(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
    assert callback._enforced is not None
    callback._enforced.factors[NAME].view(-1)[places(callback)] = 1


def spoil_rounds_mask(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
    assert isinstance(callback, LotteryTicketPruning)
    callback.masks[NAME] = callback.masks[NAME].clone()
    callback.masks[NAME].view(-1)[:] = True


class Rogue(pl.Callback):
    """Spoils something in the last step of an epoch, or at its end, behind the pruning's back."""

    def __init__(self, callback: MaskedTraining, spoil: Callable[..., None], epoch: int, at_end: bool = False) -> None:
        self.callback = callback
        self.spoil = spoil
        self.epoch = epoch
        self.at_end = at_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == STEPS - 1 and not self.at_end:
            self.spoil(self.callback, pl_module.network, trainer.optimizers[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch and self.at_end:
            self.spoil(self.callback, pl_module.network, trainer.optimizers[0])


LARGEST = ("3 of {pruned} ", "-0.5")
SPOILT: dict[str, tuple[str, Callable[..., None], tuple[str, ...]]] = {
    **{f"{name} weight": (name, spoil_weight, ("weight of", NAME, *LARGEST)) for name in OPTIMIZERS},
    **{
        f"{name} {key}": (name, spoil_average(key), (f"{key} of", NAME, *LARGEST))
        for name, keys in AVERAGES.items()
        for key in keys
    },
    "enforced mask": ("sgd", spoil_enforced_mask, ("enforced", NAME, "3 of 216")),
    "applied mask": ("sgd", spoil_applied_mask, ("applied", NAME, "3 of 216")),
    "round's mask": ("sgd", spoil_rounds_mask, ("round's", NAME, "{pruned} of 216")),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_spoilt_during_a_fit_stops_it(case: str, tmp_path: Path) -> None:
    name, spoil, parts = SPOILT[case]
    pruning = pruning_in(tmp_path)
    rogue = Rogue(pruning, spoil, epoch=EPOCHS)  # the first epoch of round 1
    with pytest.raises(ValueError, match="mask integrity: ") as caught:
        trainer_of([pruning, rogue]).fit(Toy(OPTIMIZERS[name]))
    pruned = int((~ticket(tmp_path, 1).masks[NAME]).sum())
    assert [part for part in parts if part.format(pruned=pruned) not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    assert ticket(tmp_path, 0, "dense").trained is not None  # what was finished is there
    assert ticket(tmp_path, 1).trained is None  # what was spoilt is not
    assert not (tmp_path / "tickets" / "round_02").exists()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_comes_back_in_a_step(name: str, tmp_path: Path) -> None:
    """A callback that adds noise to gradients, after the pruning has masked them."""

    class Noise(pl.Callback):
        def on_before_optimizer_step(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            if trainer.current_epoch >= EPOCHS and trainer.is_last_batch:
                spoil_gradient(pruning, pl_module.get_submodule("network"), optimizer)

    pruning = pruning_in(tmp_path)
    with pytest.raises(ValueError, match=rf"gradient of {NAME}\b.*\b3 of .*-0\.5"):
        trainer_of([pruning, Noise()]).fit(Toy(OPTIMIZERS[name]))
    assert ticket(tmp_path, 1).trained is None


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_average("momentum_buffer"), spoil_enforced_mask])
def test_no_checkpoint_of_what_was_spoilt(spoil: Callable[..., None], tmp_path: Path) -> None:
    """Spoilt after the epoch's own check, and before Lightning writes the epoch's checkpoint."""
    pruning = pruning_in(tmp_path)
    rogue = Rogue(pruning, spoil, epoch=EPOCHS, at_end=True)
    keep = ModelCheckpoint(tmp_path / "ck", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    with pytest.raises(ValueError, match=rf"^mask integrity: .*\b{NAME}\b"):
        trainer_of([pruning, rogue, keep], enable_checkpointing=True).fit(Toy())
    assert sorted(path.stem for path in (tmp_path / "ck").iterdir()) == ["epoch=0", "epoch=1"]


def test_no_checkpoint_within_an_epoch_of_gradients_that_came_back(tmp_path: Path) -> None:
    """Nobody else looks at them there: the epoch's own check comes after its last step."""

    class Spoils(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step == STEPS * EPOCHS + 2:
                spoil_gradient(pruning, pl_module.get_submodule("network"), None)

    pruning = pruning_in(tmp_path)
    keep = ModelCheckpoint(
        tmp_path / "ck", filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    with pytest.raises(ValueError, match=rf"^mask integrity: .*gradient of {NAME}\b.*\b3 of"):
        trainer_of([pruning, Spoils(), keep], enable_checkpointing=True).fit(Toy())
    assert len(list((tmp_path / "ck").iterdir())) == STEPS * EPOCHS + 1


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OTHERS])
def test_no_false_alarm(name: str, tmp_path: Path) -> None:
    """Nor by accumulated gradients: those of pruned weights are not zero between two steps."""
    keep = ModelCheckpoint(tmp_path / "ck", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    pruning = pruning_in(tmp_path)
    trainer = trainer_of([pruning, keep], enable_checkpointing=True, accumulate_grad_batches=2, gradient_clip_val=0.1)
    trainer.fit(Toy({**OPTIMIZERS, **OTHERS}[name]))
    assert len(pruning.history) == 3


def test_looked_at_once_an_epoch_and_once_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in every step: on a GPU each look waits for the device."""
    looks: list[str] = []
    monkeypatch.setattr(masked_training, "check_gradients", lambda held: looks.append("gradients"))
    monkeypatch.setattr(masked_training, "check_enforced", lambda held, optimizers, harmless: looks.append("weights"))
    keep = ModelCheckpoint(tmp_path / "ck", save_on_train_epoch_end=True)
    trainer_of([pruning_in(tmp_path), keep], enable_checkpointing=True).fit(Toy())
    assert looks == ["gradients", "weights", "weights", "gradients"] * 2 * EPOCHS  # two rounds hold masks


@pytest.mark.parametrize("execution", ["masked", "shrunk"])
def test_training_a_ticket_alone_is_looked_after_too(execution: Any, tmp_path: Path) -> None:
    trainer_of([pruning_in(tmp_path, structures={"refill": Refill(round_to=1)}, rounds=1)]).fit(Toy())
    found = ticket(tmp_path, 1, "unstructured" if execution == "shrunk" else "refill")
    training = TicketTraining(found, execution=execution)
    with pytest.raises(ValueError, match=rf"weight of {NAME}\b.*\b3 of"):
        trainer_of([training, Rogue(training, spoil_weight, epoch=1)]).fit(Toy())
    assert training.trained is None


@pytest.mark.parametrize("next_round_from", ["unstructured", "refill"])
def test_a_ticket_replaced_on_disk_while_its_round_is_trained(next_round_from: str, tmp_path: Path) -> None:
    """Two searches in one folder, for instance."""
    structures = {"refill": Refill(round_to=1)} if next_round_from == "refill" else {}
    pruning = pruning_in(tmp_path, structures=structures, next_round_from=next_round_from)

    def replace(callback: MaskedTraining, network: nn.Module, optimizer: Any) -> None:
        other = {name: ~mask for name, mask in callback.enforced_masks.items()}
        path = tmp_path / "tickets" / "round_01" / next_round_from / "ticket"
        Ticket(other, network.state_dict(), card={"mask_digest": masked_digest(other)}).save(path)

    with pytest.raises(ValueError, match=r"round_01.*\bround 1\b"):
        trainer_of([pruning, Rogue(pruning, replace, epoch=2 * EPOCHS - 1)]).fit(Toy())


def masked_digest(masks: dict[str, Tensor]) -> str:
    from lt_lightning.pruning.masks import digest

    return digest(masks)


def test_a_checkpoint_and_a_ticket_of_different_searches(tmp_path: Path) -> None:
    for folder, rate in ((tmp_path / "a", 0.4), (tmp_path / "b", 0.2)):
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer_of([pruning_in(folder, rate=rate), keep], enable_checkpointing=True).fit(Toy())
    with pytest.raises(ValueError, match=r"round_01.*\bround 1\b"):
        trainer_of([pruning_in(tmp_path / "b")]).fit(Toy(), ckpt_path=str(tmp_path / "a" / f"epoch={EPOCHS}.ckpt"))


# A training that diverges, and a layer that is lost


class Diverging(Toy):
    """In one epoch's last step a weight becomes infinite, or not a number."""

    def __init__(self, epoch: int, value: float) -> None:
        super().__init__()
        self.epoch = epoch
        self.value = value

    def on_validation_epoch_start(self) -> None:
        if self.current_epoch >= self.epoch:
            with torch.no_grad():
                self.network.get_parameter("11.bias")[0] = self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_is_no_longer_finite_is_no_ticket(value: float, tmp_path: Path) -> None:
    """In any LightningModule; the last good round is kept."""
    with pytest.raises(FloatingPointError, match=r"\b1 of 3\b.*\b11\.bias\b"):
        trainer_of([pruning_in(tmp_path, monitor=None)]).fit(Diverging(3 * EPOCHS - 1, value))
    assert ticket(tmp_path, 0, "dense").trained is not None
    assert ticket(tmp_path, 1).trained is not None
    assert ticket(tmp_path, 2).trained is None


def crushing(network: nn.Module) -> None:
    """All weights of one layer are smaller than any of the others."""
    with torch.no_grad():
        network.get_parameter("6.weight").mul_(1e-6)


@pytest.mark.parametrize("mode", ["warn", "stop"])
def test_layer_collapse_warns_or_stops(mode: Any, tmp_path: Path) -> None:
    module = Toy(lambda p: torch.optim.SGD(p, lr=1e-9))
    crushing(module.network)
    pruning = pruning_in(tmp_path, rate=0.6, rounds=1, on_collapse=mode)
    told = r"round 1: .*\b6\.weight\b"
    if mode == "warn":
        with pytest.warns(UserWarning, match=told):
            trainer_of([pruning]).fit(module)
        assert collapsed(ticket(tmp_path, 1).masks) == ["6.weight"]
    else:
        with pytest.raises(ValueError, match=told):
            trainer_of([pruning]).fit(module)
        assert not (tmp_path / "tickets" / "round_01").exists()
    assert ticket(tmp_path, 0, "dense").trained is not None


# The parts


def test_zeros_are_told_from_anything_else() -> None:
    mask = torch.tensor([True, False, False, True])
    check_zeros("x", {"w": torch.tensor([3.0, 0.0, -0.0, float("inf")])}, {"w": mask})  # a kept one may be anything
    check_zeros("x", {}, {"w": mask})
    tiny = torch.tensor([0.0, 1e-45, 0.0, 0.0])  # the smallest there is
    with pytest.raises(ValueError, match=r"x of w .*1 of 2"):
        check_zeros("x", {"w": tiny}, {"w": mask})
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        wrong = torch.tensor([1.0, 2.0, -4.0, 1.0], dtype=dtype)
        with pytest.raises(ValueError, match=r"2 of 2 .*-4"):
            check_zeros("x", {"w": wrong}, {"w": mask.float()})
    for value in (float("nan"), float("inf")):
        with pytest.raises((FloatingPointError, ValueError), match="x of w"):
            check_zeros("x", {"w": torch.tensor([1.0, value, 0.0, 1.0])}, {"w": mask})


def test_masks_that_came_and_went() -> None:
    mask = torch.tensor([[True, False]])
    reference = packed({"a": mask, "b": mask})
    check_masks({"a": mask.clone(), "b": mask}, reference, "enforced")
    with pytest.raises(ValueError, match="enforced mask of b "):
        check_masks({"a": mask}, reference, "enforced")
    with pytest.raises(ValueError, match="enforced mask of c "):
        check_masks({"a": mask, "b": mask, "c": mask}, reference, "enforced")


def test_a_skipped_step_of_a_gradient_scaler_is_no_violation() -> None:
    """Its gradients overflowed; zero times infinity is not a number."""
    layer = nn.Linear(2, 2, bias=False)
    held = EnforcedMasks(layer, {"weight": torch.tensor([[True, False], [True, True]])})
    held.zero_weights()
    layer.weight.grad = torch.full((2, 2), float("inf"))
    held.zero_gradients()
    check_gradients(held)


def test_integers_and_empty_tensors_are_finite() -> None:
    check_finite({"count": torch.tensor(3), "none": torch.empty(0), "w": torch.ones(2)})
