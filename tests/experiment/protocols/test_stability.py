"""Stability of tiny trainings, measured whole: what is the same must come out the same, and is found again."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.protocols.stability import folder_of, measure_stability
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.storage.files import write_json
from lt_lightning.tickets.ticket import Ticket
from tests.runs import SMALL, run_of

REPOSITORY = Path(__file__).resolve().parents[3]
OPTIONS = (*SMALL, "structure=[]", "stability.points=5", "stability.batch_norm_batches=2")


@pytest.fixture
def configured(composed: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    return lambda *overrides: composed(*OPTIONS, *overrides, name="stability")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[pl.Trainer]:
    started: list[pl.Trainer] = []
    fit = pl.Trainer.fit

    def counted(self: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        started.append(self)
        fit(self, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "fit", counted)
    return started


def test_dense_network_and_ticket(
    configured: Any, fits: list[pl.Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = run_of(configured())[1]
    ticket = tmp_path / "runs" / search.place
    fits.clear()
    config = configured(f"stability.networks=[dense,{ticket}]")
    record = measure_stability(config)
    assert [line["network"] for line in record["lines"]] == ["dense", str(ticket)]
    assert len(fits) == 5  # to the point, and from there two of each network
    assert all(len(line["errors"]) == 5 for line in record["lines"])

    folder = folder_of(config)
    point = Restart.load(folder / "points" / "1ep.pt")
    theirs = Restart.load(tmp_path / "runs" / search.search / "restart.pt")  # the search came by the same point
    assert all(torch.equal(value, theirs.point.network[name]) for name, value in point.point.network.items())
    assert (point.epochs, point.point.schedules) == (theirs.epochs, theirs.point.schedules)

    masks = Ticket.load(ticket / "ticket").masks
    (sparse,) = folder.glob("ticket-*/1ep")
    ends = [torch.load(sparse / f"seed_{seed}.pt", weights_only=True) for seed in (1, 2)]
    for name, mask in masks.items():
        assert not ends[0][name][~mask].any()
        assert not torch.equal(ends[0][name], ends[1][name])

    fits.clear()
    with pytest.raises(ValueError, match=rf"^stability\.networks={ticket}: .*seed=0.*seed=1"):
        measure_stability(configured(f"stability.networks=[{ticket}]", "seed=1"))
    assert measure_stability(config) == record
    assert fits == []  # found again
    write_json(folder / "data.json", {"digest": "of other images", "stamps": []})
    with pytest.raises(ValueError, match=rf"paths\.data='data'.*{folder}"):
        measure_stability(config)
    assert fits == []
    (written,) = folder.glob("stability-*.json")
    assert json.loads(written.read_text()) == record
    assert "<svg " in written.with_suffix(".svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "error at the ends" in printed
    named = [line for line in printed.splitlines() if line.startswith(str(folder))]
    assert named
    assert all(Path(line).is_file() for line in named)


def test_equal_orders_have_no_barrier_and_the_ends_errors_are_the_networks(configured: Any) -> None:
    config = configured("stability.seeds=[3,3]", "stability.batch_norm_batches=1")
    (line,) = measure_stability(config)["lines"]
    assert line["barrier"] == 0
    assert len(set(line["errors"])) == 1

    experiment = Experiment.from_config(config)
    experiment.data.setup()
    network = experiment.classifier().network
    network.load_state_dict(torch.load(folder_of(config) / "dense" / "1ep" / "seed_3.pt", weights_only=True))
    images, _ = next(iter(experiment.data.train_dataloader()))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # of one batch the statistics are its own
    with torch.no_grad():
        network.train()(images)
        wrong = sum(int((network.eval()(i).argmax(1) != n).sum()) for i, n in experiment.data.test_dataloader())
    assert line["errors"][0] == wrong / 360


def test_bisection_over_steps(configured: Any, fits: list[pl.Trainer], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("stability.search=3it", "data.batch_size=32", "data.limit=0.18", "stability.points=3")  # 7 steps an epoch
    record = measure_stability(configured(*asked, "stability.threshold=0.999"))
    assert record["options"]["rewind"] == ["0it", "3it", "6it", "9it", "12it"]
    assert record["smallest_stable"] == {"dense": "0it"}  # anything is stable by such a threshold
    assert [line["rewind"] for line in record["lines"]] == ["0it", "3it", "6it"]
    assert len(fits) == 1 + 2 * 3
    assert "dense: stable from 0it on" in capsys.readouterr().out
    fits.clear()
    again = measure_stability(configured(*asked, "stability.threshold=1e-9"))
    never = {line["rewind"] for line in again["lines"] if line["barrier"] >= 1e-9}
    smallest = again["smallest_stable"]["dense"]
    assert smallest not in never
    assert len(fits) <= 2 * 3  # the points are there


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stability.seeds=[1]", "stability.seeds=[1]"),
        ("stability.points=2", "stability.points=2"),
        ("stability.threshold=2", "stability.threshold=2.0"),
        ("stability.search=2ep", "stability.search=2ep"),
        ("stability.networks=[]", "stability.networks=[]"),
        ("stability.networks=[nowhere]", "nowhere"),
        ("pruning.rewind=2ep", "pruning.rewind=2ep"),
        ("plan=true", "plan=True"),
        ("trainer.devices=2", "trainer.devices=2"),
    ],
)
def test_bad_options_stop_before_training(override: str, named: str, configured: Any, fits: list[pl.Trainer]) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        measure_stability(configured(override))
    assert named in str(caught.value)
    assert fits == []


def test_script_ends_a_wrong_override_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stability.py", f"paths.root={tmp_path}", "stability.seed=1"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(REPOSITORY / "scripts" / "stability.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "stability.seed" in line
