"""Searches and retrainings of networks with frozen, tied and computed weights, and with weights of no layer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lt_lightning.execution import execute as executor
from lt_lightning.execution.shrink_channels import Shrunk
from lt_lightning.network_graph.compare import DifferentError
from lt_lightning.pruning.criteria import SNIP, Criterion, GraSP, SynFlow
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.structures.base import Structure
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training import retraining
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.retraining import TicketTraining
from tests import toys

WIDTH = 32


class Net(nn.Module):
    def __init__(self, change: Callable[[Net], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.b, self.c = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        change(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.stem(x).relu()).relu()).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def freeze(net: Net) -> None:
    net.b.weight.requires_grad_(False)


def freeze_biases(net: Net) -> None:
    for layer in (net.b, net.c):
        assert layer.bias is not None
        layer.bias.requires_grad_(False)


def tie(net: Net) -> None:
    net.c.weight = net.b.weight


def norm(net: Net) -> None:
    net.b = parametrizations.weight_norm(net.b)


def old_norm(net: Net) -> None:
    net.b = torch.nn.utils.weight_norm(net.b)


def pruned_elsewhere(net: Net) -> None:
    prune.l1_unstructured(net.b, "weight", 0.3)  # type: ignore[no-untyped-call]


KINDS: dict[Callable[[Net], None], list[str]] = {  # and the layers that are pruned
    freeze: ["c"],
    freeze_biases: ["b", "c"],
    tie: ["b"],
    norm: ["c"],
    old_norm: ["c"],
    pruned_elsewhere: ["c"],
}


STRUCTURES: dict[str, Structure] = {
    "regroup": Regroup(clustering="random"),
    "channels": Regroup("input_channel", clustering="random"),
    "refill": Refill(score="saliency", round_to=1),
}


class Toy(toys.Toy):
    """Trains what is to be trained."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, steps=2)
        self.example_input_array = torch.zeros(1, 1, 6, 6)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], 0.05, momentum=0.9)


def fit(callback: pl.Callback, module: Toy, folder: Path) -> None:
    pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1,
        enable_checkpointing=False, default_root_dir=folder, callbacks=[callback],
    ).fit(module)  # fmt: skip


def search(
    folder: Path, change: Callable[[Net], object], structures: dict[str, Structure] | None = None, **options: object
) -> LotteryTicketPruning:
    given = {"rounds": 1, "rate": 0.6, "structures": structures or {}, "rewind": "0ep", **options}
    callback = LotteryTicketPruning(directory=folder / "tickets", **given)  # type: ignore[arg-type]
    fit(callback, Toy(Net(change)), folder)
    return callback


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("names", [("regroup", "channels"), ("refill",)], ids=str)
def test_a_search_and_the_retraining_of_its_tickets(
    tmp_path: Path, change: Callable[[Net], None], names: tuple[str, ...]
) -> None:
    callback = search(tmp_path, change, {name: STRUCTURES[name] for name in names}, gradient_batches=1)
    assert list(callback.masks) == [f"{name}.weight" for name in KINDS[change]]
    for name in names:
        ticket = Ticket.load(callback.directory / "round_01" / name / "ticket")
        assert ticket.card["prunable"] == KINDS[change]
        module = Toy(Net(change))
        trains = {key for key, each in module.network.named_parameters() if each.requires_grad}
        training = TicketTraining(ticket, Restart.load(callback.directory / "restart.pt"))
        fit(training, module, tmp_path)
        still = {key for key, each in module.network.named_parameters() if each.requires_grad}
        assert {key.replace("packed", "weight") for key in still} == trains
        assert training.trained is not None
        assert training.trained.trained is not None
        trained = training.trained.trained
        assert all(bool((trained[key][~mask] == 0).all()) for key, mask in ticket.masks.items())
        if change is freeze and name != "refill":
            assert torch.equal(trained["b.weight"], ticket.rewind["b.weight"])
        if change is tie:
            assert torch.equal(trained["b.weight"], trained["c.weight"])


@pytest.mark.parametrize("criterion", [SNIP(batches=1), GraSP(batches=1), SynFlow(steps=3)], ids=str)
@pytest.mark.parametrize("change", [freeze, tie], ids=lambda change: change.__name__)
def test_scores_at_initialisation(tmp_path: Path, change: Callable[[Net], None], criterion: Criterion) -> None:
    """A frozen layer keeps all of its weights, a tied weight is scored by both of its layers' gradients."""
    callback = search(tmp_path, change, criterion=criterion, scores_from="rewound", rate=0.5)
    assert {name: float(mask.float().mean()) for name, mask in callback.masks.items()} == {
        f"{name}.weight": 0.5 for name in KINDS[change]
    }


def test_what_is_left_out_is_told_when_the_fit_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(net: Net) -> None:
        freeze(net)
        norm(net)
        net.c.weight.requires_grad_(False)

    with (
        caplog.at_level(logging.INFO, "pytorch_lightning.utilities.rank_zero"),
        pytest.raises(ValueError, match=r"exempt=.* c \(frozen\)"),
    ):
        search(tmp_path, change)
    told = [record.message for record in caplog.records if "of the weights" in record.message]
    assert [line.partition(": ")[2].rpartition(" ")[0] for line in told] == ["b (computed weight)", "c"]


def test_a_network_that_computes_something_else_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = search(tmp_path, freeze_biases, {"regroup": Regroup(clustering="random")})
    ticket = Ticket.load(callback.directory / "round_01" / "regroup" / "ticket")

    def wrong(*args: object, **options: object) -> Shrunk:
        shrunk = executor.execute(*args, **options)  # type: ignore[arg-type]
        assert shrunk is not None
        with torch.no_grad():
            shrunk.network.get_parameter("c.packed").mul_(2)
        return shrunk

    monkeypatch.setattr(retraining, "execute", wrong)
    module = Toy(Net(freeze_biases))
    with pytest.raises(DifferentError, match=r"first in c: .*execution='masked'"):
        fit(TicketTraining(ticket, Restart.load(callback.directory / "restart.pt")), module, tmp_path)
    assert module.rates == []  # of no step
