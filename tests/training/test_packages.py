"""The callbacks are those of either of Lightning's packages: of both where both are installed, of one where one is."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lt_lightning import LotteryTicketPruning, Refill, Ticket, TicketTraining
from lt_lightning.training.lightning_internals import NAMES
from lt_lightning.training.masked_training import StoppedEarlyError
from tests.cases import slow_but

ROOT = Path(__file__).resolve().parents[2]
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip

USER_CODE = """
import sys
import torch
from torch import nn

def user_module(pl, log="val_acc"):
    class Module(pl.LightningModule):  # `model` in place of `network`, a metric without a slash, no example
        def __init__(self, width: int = 6):
            super().__init__()
            self.model = nn.Sequential(
                nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(4 * width, 3)
            )
            self.loss = nn.CrossEntropyLoss()
        def forward(self, x):
            return self.model(x)
        def training_step(self, batch, index):
            loss = self.loss(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss
        def validation_step(self, batch, index):
            self.log(log, (self(batch[0]).argmax(1) == batch[1]).float().mean())
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)
    return Module

def user_data(pl):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            samples = [(torch.randn(1, 6, 6, generator=generator), i % 3) for i in range(6)]
            return torch.utils.data.DataLoader(samples, batch_size=3)
        val_dataloader = train_dataloader
    return Data
"""
ALONE = (
    USER_CODE
    + """
blocked, package, folder = sys.argv[1:]
sys.modules[blocked] = None  # what is not installed
from importlib import import_module
pl = import_module(package)
from lt_lightning import LotteryTicketPruning, Refill, Ticket, TicketTraining
from lt_lightning.pruning.rewinding import Restart
assert issubclass(LotteryTicketPruning, pl.Callback) and issubclass(TicketTraining, pl.Callback)
def trainer(*callbacks):
    return pl.Trainer(max_epochs=1, callbacks=list(callbacks), accelerator="cpu", logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
module, data = user_module(pl), user_data(pl)()
pruning = LotteryTicketPruning(rounds=1, directory=folder, structures={"refill": Refill()}, monitor="val_acc")
trainer(pruning).fit(module(), data)
ticket = Ticket.load(folder + "/round_01/refill/ticket")
training = TicketTraining(ticket, Restart.load(pruning.directory / "restart.pt"))
trainer(training).fit(module(), data)
assert training.trained is not None
assert not any(name.startswith(blocked + ".") for name in sys.modules)
try:
    trainer(LotteryTicketPruning(rounds=1, directory=folder), pl.callbacks.EarlyStopping("val_acc")).fit(module(), data)
except ValueError as error:
    assert "EarlyStopping" in str(error)
print("rounds", len(pruning.history))
"""
)
names: dict[str, Any] = {}
exec(USER_CODE, names)


ONE = [("lightning", NAMES[0]), ("pytorch_lightning", NAMES[1])]


@pytest.mark.parametrize(("blocked", "package"), slow_but(ONE[1:], ONE))
def test_one_package_is_enough(blocked: str, package: str, tmp_path: Path) -> None:
    if package == NAMES[1]:
        pytest.importorskip("lightning.pytorch")
    script = tmp_path / "user.py"
    script.write_text(ALONE)
    command = [sys.executable, str(script), blocked, package, str(tmp_path / "tickets")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["rounds 2"], done.stderr


@pytest.mark.parametrize("package", NAMES)
def test_with_both_the_callbacks_are_those_of_either(package: str) -> None:
    pl = pytest.importorskip(package)
    assert issubclass(LotteryTicketPruning, pl.Callback)
    assert issubclass(TicketTraining, pl.Callback)


@pytest.mark.parametrize("package", NAMES)
def test_early_stopping_is_refused_of_either(package: str, tmp_path: Path) -> None:
    pl = pytest.importorskip(package)
    pruning = LotteryTicketPruning(rounds=3, directory=tmp_path)
    trainer = pl.Trainer(max_epochs=1, callbacks=[pruning, pl.callbacks.EarlyStopping("val_acc")], **QUIET)
    with pytest.raises(ValueError, match="EarlyStopping"):
        trainer.fit(names["user_module"](pl)(), names["user_data"](pl)())
    assert pruning.history == []


@pytest.mark.parametrize("package", NAMES)
def test_the_lines_of_the_readme_run_as_printed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a module that knows nothing of the project's own: no `network`, no example, another metric."""
    pl = pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "README.md").read_text().split("```python\n")
    search, retraining = (each.partition("```")[0] for each in lines if "pl.Trainer(" in each)
    if package == NAMES[0]:
        search = search.replace("from lightning import pytorch as pl  # or: ", "")
    module = names["user_module"](pl)
    given = {"my_module": module(), "my_data": names["user_data"](pl)(), "my_network": module().model}
    given["my_example"] = torch.randn(2, 1, 6, 6)
    trainer = pl.Trainer
    monkeypatch.setattr(pl, "Trainer", lambda **options: trainer(**options, **QUIET))
    exec(search, given)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["round", "density", "best", "epoch", "seconds", "val_acc"]
    assert [row.split()[:2] for row in rows[1:4]] == [["0", "100.0%"], ["1", "79.9%"], ["2", "63.9%"]]
    exec(retraining, given)
    assert "Linear(in_features=4, " in capsys.readouterr().out  # of 24
    small, again = given["my_module"].model.eval(), given["network"].eval()
    torch.testing.assert_close(again(given["my_example"]), small(given["my_example"]))


@pytest.mark.parametrize("package", NAMES)
def test_lightning_cli_takes_the_callback_from_yaml(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pl = pytest.importorskip(package)
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit"])
    structure = {"class_path": "lt_lightning.Refill", "init_args": {"coupling": "inner"}}
    options = {"rounds": 1, "directory": "tickets", "monitor": "val_acc", "structures": {"inner": structure}}
    callback = {"class_path": "lt_lightning.LotteryTicketPruning", "init_args": options}
    Path("fit.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 1, "callbacks": [callback], **QUIET}}))
    cli = import_module(f"{package}.cli").LightningCLI
    made = cli(names["user_module"](pl), names["user_data"](pl), args=["fit", "--config", "fit.yaml"])
    (pruning,) = [each for each in made.trainer.callbacks if isinstance(each, LotteryTicketPruning)]
    assert pruning.options.structures == {"inner": Refill(coupling="inner")}
    assert [facts["round"] for facts in pruning.history] == [0, 1]


# What stops a fit


class Stop(import_module(NAMES[0]).Callback):  # type: ignore[misc]
    """Stops the fit in an epoch: after its first step, or at its end."""

    def __init__(self, epoch: int, within: bool) -> None:
        self.epoch, self.within = epoch, within

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop |= self.within and trainer.current_epoch == self.epoch

    def on_train_epoch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop |= trainer.current_epoch == self.epoch


@pytest.mark.parametrize(
    ("epoch", "within"), slow_but([(0, True), (1, False), (3, False)], product(range(4), (True, False)))
)
def test_a_shortened_search_never_passes_for_a_whole_one(epoch: int, within: bool, tmp_path: Path) -> None:
    """Two epochs a round, two rounds: after the last epoch alone nothing is missing."""
    pl = import_module(NAMES[0])
    pruning = LotteryTicketPruning(rounds=1, directory=tmp_path)
    trainer = pl.Trainer(max_epochs=2, callbacks=[pruning, Stop(epoch, within)], **QUIET)
    given = names["user_module"](pl)(), names["user_data"](pl)()
    if epoch == 3 and not within:
        trainer.fit(*given)
        assert len(pruning.history) == 2
        return
    with pytest.raises(StoppedEarlyError, match=f"epoch {epoch + (not within)} of 4"):
        trainer.fit(*given)
    assert len(pruning.history) == (epoch + (not within)) // 2


def test_a_shortened_training_of_a_ticket_is_none(tmp_path: Path) -> None:
    pl = import_module(NAMES[0])
    pruning = LotteryTicketPruning(rounds=1, directory=tmp_path)
    given = names["user_module"](pl), names["user_data"](pl)()
    pl.Trainer(max_epochs=1, callbacks=[pruning], **QUIET).fit(given[0](), given[1])
    training = TicketTraining(Ticket.load(tmp_path / "round_01/unstructured/ticket"))
    with pytest.raises(StoppedEarlyError, match="epoch 1 of 3"):
        pl.Trainer(max_epochs=3, callbacks=[training, Stop(0, False)], **QUIET).fit(given[0](), given[1])
    assert training.trained is None


# What is seen


class Watch(import_module(NAMES[0]).Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.bars: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: Any, *rest: Any) -> None:
        bar = trainer.progress_bar_metrics
        self.bars.append((bar["pruning/round"], round(bar["pruning/density"], 2)))


@pytest.mark.parametrize("verbose", [True, False])
def test_rounds_are_told_as_by_a_built_in_callback(
    verbose: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pl = import_module(NAMES[0])
    pruning = LotteryTicketPruning(rounds=1, rate=0.5, directory=tmp_path, verbose=verbose, monitor="val_acc")
    assert repr(pruning) == "LotteryTicketPruning(1 rounds to density 0.5)"
    watch = Watch()
    for package in NAMES:  # which other tests may have quietened
        caplog.set_level("INFO", logger=package)
    trainer = pl.Trainer(max_epochs=2, callbacks=[pruning, watch], **QUIET)
    trainer.fit(names["user_module"](pl)(), names["user_data"](pl)())
    assert watch.bars == [(0, 1), (0, 1), (1, 0.5), (1, 0.5)]
    lines = [line for line in caplog.messages if line.startswith("round ")]
    assert [line.partition(":")[0] for line in lines] == (["round 0 of 1", "round 1 of 1"] if verbose else [])
    assert "2 of 2 rounds done" in repr(pruning)
    ticket = Ticket.load(tmp_path / "round_01/unstructured/ticket")
    assert repr(ticket) == f"Ticket(unstructured, round 1, density {ticket.card['density']}, 1 layers pruned, trained)"


@pytest.mark.parametrize("sanity", [2, 0])
def test_a_monitor_that_nothing_logs_is_told_before_a_training_ends(sanity: int, tmp_path: Path) -> None:
    pl = import_module(NAMES[0])
    pruning = LotteryTicketPruning(rounds=1, directory=tmp_path, monitor="val/accuracy")
    trainer = pl.Trainer(max_epochs=4, callbacks=[pruning], num_sanity_val_steps=sanity, **QUIET)
    with pytest.raises(ValueError, match=r"monitor='val/accuracy': .* val_acc"):
        trainer.fit(names["user_module"](pl)(), names["user_data"](pl)())
    assert trainer.global_step == (0 if sanity else 2)


class Apart(import_module(NAMES[0]).LightningModule):  # type: ignore[misc]
    """Two submodules with layers, which no `forward` unites."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 3)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch[0]).mean((2, 3))), batch[1])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(torch.randn(1, 6, 6), i % 3) for i in range(6)], batch_size=3)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_of_several_submodules_one_must_be_named(tmp_path: Path) -> None:
    pl = import_module(NAMES[0])
    with pytest.raises(ValueError, match=r"network=None.*encoder, head"):
        pl.Trainer(max_epochs=1, callbacks=[LotteryTicketPruning(rounds=1, directory=tmp_path)], **QUIET).fit(Apart())
    pruning = LotteryTicketPruning(rounds=1, directory=tmp_path, network="encoder")
    pl.Trainer(max_epochs=1, callbacks=[pruning], **QUIET).fit(Apart())
    assert list(pruning.masks) == ["2.weight"]


def test_public_names_are_listed() -> None:
    package = import_module("lt_lightning")
    assert {"LotteryTicketPruning", "shrink", "__version__"} <= set(dir(package))
    assert package.__version__ == "0.1.0"
