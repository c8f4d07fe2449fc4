"""A protocol that the package does not know, from its tasks over its tickets to what it says of the results."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from lt_lightning.experiment import protocols
from lt_lightning.experiment.config.tasks import retraining_task, rounds_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.experiment.run.command import do, objective
from lt_lightning.experiment.run.job import Job
from lt_lightning.report.contents import collect
from lt_lightning.results.job_record import JobRecord, Task, TicketKind
from lt_lightning.results.records import results_of
from lt_lightning.storage.layout import TICKET
from lt_lightning.tickets.ticket import Ticket
from tests.runs import SMALL

Compose = Callable[..., DictConfig]
SEARCH = (*SMALL, "pruning.rounds=2", "structure=[]")


class Negated(Protocol):
    """Unstructured tickets from the negative of their values; round 2's is asked for when round 1's is finished."""

    name = "negated"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def tasks(self, config: DictConfig, tasks: Sequence[Task]) -> list[Task]:
        self.calls.append("tasks")
        assert [task.kind for task in tasks] == [None]
        kind = TicketKind("unstructured", "negated")
        made = [
            retraining_task(config, tasks[0], number, kind, self.name, of="negated")
            for number in range(1, 1 + rounds_of(config))
        ]
        return [replace(task, whole_schedule=True) for task in made]

    def asked(self, config: DictConfig, tasks: Sequence[Task], at_most: bool = False) -> list[Task]:
        search, first, second = tasks
        return [search, first, second] if at_most or results_of(first) else [search, first]

    def check(self, experiment: Experiment) -> None:
        self.calls.append("check")
        if experiment.config.seed == 13:
            raise ValueError("seed=13: brings bad luck")

    def ticket(self, experiment: Experiment, task: Task) -> Ticket:
        self.calls.append(f"ticket {task.round}")
        assert task.source is not None
        ticket = Ticket.load(task.source / TICKET)
        rewind = {name: -value if value.is_floating_point() else value for name, value in ticket.rewind.items()}
        return replace(ticket, rewind=rewind, trained=None).with_facts(control="negated", starts_from="initial")

    def notes(self, config: DictConfig, tasks: Sequence[Task]) -> list[str]:
        return [f"negated: {sum(results_of(task) is not None for task in tasks[1:])} of {len(tasks) - 1}"]


@pytest.fixture
def negated(monkeypatch: pytest.MonkeyPatch) -> Negated:
    protocol = Negated()
    monkeypatch.setattr(protocols, "PROTOCOLS", (*protocols.PROTOCOLS, protocol))
    return protocol


def test_a_protocol_of_ones_own_needs_one_class_and_nothing_else(
    negated: Negated, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    record = root / "jobs" / "now"
    results = do(composed(*SEARCH), record)
    assert negated.calls == ["tasks", "check", "ticket 1", "ticket 2"]
    assert [(each.round, each.kind) for each in results] == [
        (0, TicketKind("dense")), (1, TicketKind("unstructured")), (2, TicketKind("unstructured")),
        (1, TicketKind("unstructured", "negated")), (2, TicketKind("unstructured", "negated")),
    ]  # fmt: skip
    assert "negated: 2 of 2" in capsys.readouterr().out.splitlines()
    assert JobRecord.load(record).notes == ("negated: 2 of 2",)
    assert objective(results) == results[2].val_accuracy  # a control is not chosen by
    for own, other in zip(results[1:3], results[3:], strict=True):
        ticket, origin = (Ticket.load(root / each.place / TICKET) for each in (other, own))
        assert all(torch.equal(ticket.masks[name], mask) for name, mask in origin.masks.items())
        weight = next(iter(origin.masks))
        assert torch.equal(ticket.rewind[weight], -origin.rewind[weight])
        with (root / other.place / "metrics.csv").open() as file:  # trained for both epochs, from the start
            assert sum(row["val/accuracy"] != "" for row in csv.DictReader(file)) == 2
    with (root / "summary.csv").open() as file:
        assert [row["round"] for row in csv.DictReader(file) if row["control"] == "negated"] == ["1", "2"]
    assert "negated" in (root / results[0].search / "report" / "report.html").read_text(encoding="utf-8")

    negated.calls.clear()
    assert do(composed(*SEARCH), record) == results
    assert negated.calls == ["tasks"]  # the list is made once, and nothing is built

    moved = tmp_path / "moved"
    shutil.move(root, moved)
    capsys.readouterr()
    do(composed(*SEARCH, f"paths.root={moved}", "status=all"), tmp_path / "status")
    assert capsys.readouterr().out.splitlines()[-1] == "3 done, 0 running, 0 failed, 0 missing"
    for path in (moved, moved / "jobs", moved / results[0].search):
        found = collect(path)
        assert found.missing == ()
        assert sorted(each.place for search in found.searches for each in search.results) == sorted(
            each.place for each in results
        )
    assert do(composed(*SEARCH, f"paths.root={moved}"), moved / "jobs" / "again") == results


def test_what_is_asked_for_follows_from_what_is_finished(negated: Negated, composed: Compose) -> None:
    job = Job.of(composed(*SEARCH))
    assert job.tasks[1].folder != job.tasks[2].folder
    assert [task.round for task in job.asked()] == [0, 1]
    assert [task.round for task in job.asked(at_most=True)] == [0, 1, 2]
    assert job.record().asked == (0, 1)
    assert job.notes() == ["negated: 0 of 2"]
    assert negated.calls == ["tasks"]


def test_what_a_protocol_refuses_stops_the_job_before_any_training(
    negated: Negated, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="seed=13"):
        do(composed(*SEARCH, "seed=13", "report=false"), tmp_path / "job")
    assert negated.calls == ["tasks", "check"]
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_protocol_without_tasks_makes_no_tickets(composed: Compose) -> None:
    config = composed(*SEARCH)
    job = Job.of(config)
    assert Protocol().wanted(config)
    assert Protocol().prepared(config) is config
    assert Protocol().needed(config) == []
    assert Protocol().tasks(config, job.tasks) == []
    assert Protocol().notes(config, job.tasks) == []
    assert Protocol().asked(config, job.tasks) == list(job.tasks)
    with pytest.raises(NotImplementedError, match="Protocol"):
        Protocol().ticket(None, job.tasks[0])  # type: ignore[arg-type]
