"""A whole job in two processes: the result of one, agreement, one folder, and what is refused."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.run import scheduler
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.results.status import state_of
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.agreement import DisagreementError
from tests.runs import run_of

Compose = Callable[..., DictConfig]
# No step may be so large that it magnifies rounding: what is compared are two ways to add the same numbers.
GENTLE = ("classifier.learning_rate=0.05", "data.batch_size=16", "data.limit=0.2", "pruning.rate=0.3")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_learn_what_one_does(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same batches, normalised together; every test image counts once. Process 0 alone writes."""
    monkeypatch.setattr(scheduler, "lead", import_module("tasks").lead_watched)
    alone = run_of(small("alone", *GENTLE, "trainer=default", "trainer.accelerator=cpu"))
    environment = dict(os.environ)
    both = run_of(small("both", *GENTLE, "trainer=ddp_sim", "data.eval_batch_size=77"))
    assert dict(os.environ) == environment
    assert [(a.place, a.structure) for a in alone] == [(b.place, b.structure) for b in both]  # found by each other
    assert alone[0].accuracy > 0.3
    for a, b in zip(alone, both, strict=True):
        assert a.accuracy == pytest.approx(b.accuracy, abs=1.01 / 360)  # at most one image, near the border
        assert b.accuracy * 360 == pytest.approx(round(b.accuracy * 360), abs=1e-3)
        first, second = (Ticket.load(tmp_path / name / a.place / "ticket") for name in ("alone", "both"))
        assert first.masks.keys() == second.masks.keys()
        wrong = sum(int((first.masks[key] ^ second.masks[key]).sum()) for key in first.masks)
        assert wrong <= 2  # two weights of equal size but for rounding may change places
    curves = [rows(tmp_path / name / alone[0].search) for name in ("alone", "both")]
    assert len(curves[0]) == len(curves[1]) == 3
    for first_row, second_row in zip(*curves, strict=True):
        assert first_row["step"] == second_row["step"]
        for key in ("train/loss", "val/loss", "lr"):
            assert float(first_row[key]) == pytest.approx(float(second_row[key]), rel=2e-4), key
        for key in ("pruning/round", "pruning/density"):
            assert first_row[key] == second_row[key]


def test_processes_that_prune_differently_are_stopped(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "lead", import_module("tasks").lead_corrupted)
    with pytest.raises(DisagreementError, match=r"masks in epoch 2 .*\b0 and 1\b.*weight"):
        run_of(small("runs", "trainer=ddp_sim"))
    assert not list(tmp_path.rglob("result.json"))


def test_the_tasks_are_those_of_the_process_that_started_the_others(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the configuration asks for more."""

    def launch(lead: Callable[[Any], object], message: dict[str, Any], size: int) -> object:
        assert size == 2
        return lead(json.loads(json.dumps(message)))

    monkeypatch.setattr(scheduler, "launch", launch)
    job = Job.of(small("runs", "trainer=ddp_sim", "trainer.max_epochs=1", "pruning.rewind=0ep"))
    run_job(replace(job, tasks=job.tasks[:1]), Console(quiet=True))
    assert [state_of(task).kind for task in job.tasks] == ["done", "missing"]


@pytest.mark.slow
def test_failed_task_of_one_process_does_not_stop_the_others(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Process 1 fails alone, while process 0 waits for it. A second attempt finds the rest, and then all is there."""
    whole = scheduler.lead
    monkeypatch.setattr(scheduler, "lead", import_module("tasks").lead_diverging)
    config = small(
        "runs", "trainer=ddp_sim", "structure=[refill,regroup_channels]", "structure.regroup_channels.group_size=4"
    )
    search, refill, regroup = Job.of(config).tasks
    with pytest.raises(FloatingPointError, match="told by process 1"):
        run_of(config)
    assert [state_of(task).kind for task in (search, refill, regroup)] == ["done", "failed", "done"]
    assert state_of(refill).detail == "train/loss=nan: told by process 1"
    assert "refill, round 1 of 1 FAILED: train/loss=nan: told by process 1" in capsys.readouterr().out
    finished = {task: (task.parts[-1] / "result.json").read_bytes() for task in (search, regroup)}
    monkeypatch.setattr(scheduler, "lead", whole)
    assert [result.structure for result in run_of(config)] == [
        "dense",
        "unstructured",
        "refill",
        "regroup_channels",
    ]
    assert {task: (task.parts[-1] / "result.json").read_bytes() for task in finished} == finished


@pytest.mark.parametrize(
    ("override", "message"),
    [("data.batch_size=63", r"data.batch_size=63: .*\b2\b"),
     ("pruning.rate=2", "pruning.rate=2"), ("trainer.num_nodes=2", "trainer.num_nodes=2: "),
     ("trainer.strategy=ddp_spawn", "trainer.strategy='ddp_spawn': ")],
)  # fmt: skip
def test_wrong_configuration_ends_in_its_own_error(
    override: str, message: str, small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "launch", None)  # before any process is started
    with pytest.raises(ValueError, match=message):
        run_of(small("runs", "trainer=ddp_sim", override))


def test_place_depends_on_what_is_normalised_together_and_not_on_the_number_of_processes(small: Compose) -> None:
    def place(*overrides: str) -> Path:
        return search_folder(small("runs", *overrides))

    one = place("trainer=default")
    assert place("trainer=ddp_sim") == place("trainer=ddp_sim", "trainer.devices=4") == place("trainer=ddp") == one
    separate = place("trainer=ddp_sim", "trainer.sync_batchnorm=false")
    assert separate != one
    assert place("trainer=ddp_sim", "trainer.sync_batchnorm=false", "trainer.devices=4") not in (one, separate)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_what_one_does(small: Compose) -> None:
    alone = run_of(small("alone", *GENTLE, "trainer=ddp", "trainer.devices=1"))
    both = run_of(small("both", *GENTLE, "trainer=ddp", "trainer.devices=2"))
    assert [a.accuracy for a in alone] == pytest.approx([b.accuracy for b in both], abs=0.03)
