"""The record of a job: what is read is what was written, also where the root folder has been moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import Cost, JobRecord, Task, TicketKind, tasks_from_json, tasks_to_json
from lt_lightning.results.status import state_of, tasks_under
from tests.toys import DENSE

Compose = Callable[..., DictConfig]


def record_in(root: Path) -> JobRecord:
    """A record whose fields all differ from their defaults."""
    search = Task(root / "s", "search of 1 rounds", 0, None, (root / "s" / "round_00" / "dense", root / "s" / "r"))
    ticket = Task(
        root / "s" / "t", "refill", 1, TicketKind("refill", "reinit", "cifar10"), (root / "s" / "t",),
        root / "s" / "r", "controls", True,
    )  # fmt: skip
    costs = (Cost("a", 1, 2, 0.5), Cost("b", 3, 4, 0.25, at_most=True))
    return JobRecord(3, {"seed": "1"}, (search, ticket), (0,), ("a note",), "went wrong", costs, False)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    assert all(value != getattr(JobRecord(), name) for name, value in vars(record).items())
    for each in (record, replace(record, trained=None), JobRecord()):
        each.save(tmp_path / "jobs" / "now" / "3")
        assert JobRecord.load(tmp_path / "jobs" / "now" / "3") == each
    assert record.asked_tasks == [record.tasks[0]]
    assert tasks_from_json(json.loads(json.dumps(tasks_to_json(record.tasks)))) == record.tasks


def test_a_record_is_moved_with_its_root(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "deep" / "after"
    record_in(before).save(before / "jobs" / "now")
    assert str(tmp_path) not in (before / "jobs" / "now" / "job.json").read_text()
    after.parent.mkdir()
    shutil.move(before, after)
    assert JobRecord.load(after / "jobs" / "now") == record_in(after)


def test_the_status_of_a_moved_root_is_that_of_before(composed: Compose, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    options = ("structure=[refill]", "controls=[reinit]", "pruning.rounds=2", "retrain_rounds=[2]")
    tasks = Job.of(composed(*options, f"paths.root={before}")).tasks
    Job.of(composed(*options, f"paths.root={before}")).record().save(before / "jobs" / "now" / "0")
    for task in tasks[:2]:
        for part in task.parts:
            DENSE.save(part)
    shutil.move(before, after)
    moved = tasks_under(after)
    assert moved == list(Job.of(composed(*options, f"paths.root={after}")).tasks)
    assert [state_of(task).kind for task in moved] == ["done", "done", "missing", "missing"]


@pytest.mark.parametrize("root", ["runs", "other/../runs"])
def test_a_relative_root_has_the_tasks_of_its_jobs(
    root: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    job = Job.of(composed(f"paths.root={root}", "structure=[refill]", "pruning.rounds=1"))
    job.record().save(tmp_path / "runs" / "jobs" / "now")  # Hydra names a job's folder from the top
    assert [task.folder.resolve() for task in tasks_under(Path(root))] == [task.folder.resolve() for task in job.tasks]


@pytest.mark.parametrize(
    "damage", [{"tasks": [{}]}, {"tasks": None}, {"asked": 1}, {"costs": [{"folder": "a"}]}, {"more": 1}]
)
def test_a_damaged_record_is_named_and_left_out_of_the_status(damage: dict[str, object], tmp_path: Path) -> None:
    for name in ("damaged", "whole"):
        record_in(tmp_path).save(tmp_path / "jobs" / name)
    file = tmp_path / "jobs" / "damaged" / "job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    with pytest.raises(ValueError, match=str(file)):
        JobRecord.load(file.parent)
    with pytest.warns(UserWarning, match=str(file)):
        assert tasks_under(tmp_path) == record_in(tmp_path).asked_tasks


def test_no_record_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JobRecord.load(tmp_path)
