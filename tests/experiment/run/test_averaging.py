"""Several trainings of one ticket and their mean, against the mean and the statistics by hand."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run import averaging, run_task
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.tickets.ticket import Ticket
from tests.runs import REFILL, SMALL, Compose, composing, run_of

OPTIONS = (*SMALL, *REFILL, "checkpoint.seconds=0", "trainer.deterministic=true")
COPIES = ("retraining.copies=2", "retraining.barrier=0.99")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the search, which is one for all tests."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def composed(root: Path) -> Iterator[Compose]:
    with composing(root) as composed:
        yield composed


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Ticket]]:
    """Copies, before they are averaged."""
    seen: list[Sequence[Ticket]] = []

    def spy(experiment: Experiment, copies: Sequence[Ticket]) -> tuple[Ticket, str]:
        seen.append(copies)
        return averaging.averaged(experiment, copies)

    monkeypatch.setattr(run_task, "averaged", spy)
    return seen


def ticket_of(config: DictConfig) -> Ticket:
    return Ticket.load(Path(config.paths.root) / run_of(config)[-1].place / "ticket")


def values(ticket: Ticket) -> dict[str, Tensor]:
    assert ticket.trained is not None
    return {name: value * ticket.masks.get(name, torch.tensor(1)) for name, value in ticket.trained.items()}


def same(first: Ticket, second: Ticket) -> bool:
    return all(torch.equal(value, values(second)[name]) for name, value in values(first).items())


def test_the_mean_of_copies_has_statistics_of_its_own_and_the_masks(
    composed: Compose, root: Path, seen: list[Sequence[Ticket]]
) -> None:
    plain = ticket_of(composed(*OPTIONS))
    assert seen == []
    config = composed(*OPTIONS, *COPIES)
    mean = ticket_of(config)
    (copies,) = seen
    assert same(copies[0], plain)  # the first copy has the job's own order
    assert not same(copies[1], plain)
    assert {name: mean.card[name] for name in ("epochs", "total_epochs", "copies", "averaged")} == {
        "epochs": 2, "total_epochs": 5, "copies": 2, "averaged": True,
    }  # fmt: skip
    assert 0 <= mean.card["barrier"] < 0.99
    assert run_of(config)[-1].total_epochs == 5
    assert not list(root.rglob("copy_*"))

    network = Experiment.from_config(config).classifier().network
    parameters = [name for name, _ in network.named_parameters()]
    for name in parameters:
        expected = torch.stack([values(copy)[name] for copy in copies]).double().mean(0).float()
        assert torch.equal(values(mean)[name], expected)
    for name, mask in plain.masks.items():
        assert int(mean.trained[name][~mask].count_nonzero()) == 0  # type: ignore[index]
    _check_statistics(mean.apply(network, "trained"), mean, Experiment.from_config(config))


def _check_statistics(network: nn.Module, ticket: Ticket, experiment: Experiment) -> None:
    """Compare each BatchNorm's statistics with the means of those of its inputs, batch by batch."""
    inputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    network.train()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def note(_: nn.Module, given: Any, name: str = name) -> None:
                inputs.setdefault(name, []).append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))

            module.register_forward_pre_hook(note)
    experiment.data.setup()
    loader = experiment.data.train_dataloader()
    loader.sampler.set_epoch(0)
    with torch.no_grad():
        for images, _ in loader:
            network(images)
    assert inputs
    for name, found in inputs.items():
        for index, kind in enumerate(("mean", "var")):
            expected = torch.stack([each[index] for each in found]).mean(0)
            assert torch.allclose(values(ticket)[f"{name}.running_{kind}"], expected, rtol=1e-4, atol=1e-5), name


def test_copies_that_a_barrier_parts_are_not_averaged(
    composed: Compose, seen: list[Sequence[Ticket]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(averaging, "barrier", lambda _: 0.5)
    kept = ticket_of(composed(*OPTIONS, "retraining.copies=2"))
    (copies,) = seen
    best = max(copies, key=lambda copy: copy.card["metrics"]["val/accuracy"])
    assert same(kept, best)
    assert (kept.card["averaged"], kept.card["epochs"], kept.card["total_epochs"]) == (False, 2, 5)
    assert "50.00%" in capsys.readouterr().out


class Crash(pl.Callback):
    """Raises in a training's second step, once it is counted down."""

    left = 2

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            Crash.left -= 1
            if not Crash.left:
                raise ConnectionAbortedError("crashed")


def test_copies_go_on_where_they_were_killed(
    composed: Compose, seen: list[Sequence[Ticket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*OPTIONS, *COPIES)
    root, place = Path(config.paths.root), run_of(config)[-1].place
    whole = Ticket.load(root / place / "ticket")
    shutil.rmtree(root / place)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "own_callbacks", lambda _: [Crash()])
        with pytest.raises(ConnectionAbortedError):
            run_of(config)
    first, second = (Ticket.load(root / place / f"copy_{number}" / "ticket") for number in range(2))
    assert (first.trained is None, second.trained is None) == (False, True)
    assert list((root / place / "copy_1" / "checkpoints").iterdir())
    assert same(ticket_of(config), whole)
    with (root / place / "metrics.csv").open() as file:
        assert sum(row["val/accuracy"] != "" for row in csv.DictReader(file)) == 1  # of the first copy


def test_copies_cost_their_trainings_and_are_of_one_device(composed: Compose) -> None:
    search, refill = costs_of(Job.of(composed(*SMALL, *REFILL, "retraining.copies=3")))
    assert (search.epochs, refill.trainings, refill.epochs) == (3, 3, 3)
    with pytest.raises(ValueError, match=r"^retraining\.copies=2: "):
        Experiment.from_config(composed(*SMALL, *REFILL, *COPIES, "trainer=ddp_sim"))
