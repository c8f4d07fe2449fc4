"""Several processes on one study, failures, and what is told of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lt_lightning.experiment.protocols.stages import tasks_under
from lt_lightning.experiment.run.experiment import Experiment
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.experiment.run import retraining_task as cells
from lt_lightning.experiment.run import search
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.run import run
from lt_lightning.experiment.run.scheduler import Work
from lt_lightning.results.failures import Failure
from lt_lightning.results.locks import Lock
from lt_lightning.results.records import Result, find_results
from lt_lightning.results.status import print_status

Compose = Callable[..., DictConfig]
Start = Callable[..., Any]  # see `conftest.py`
SMALL = (
    "model.width=8",
    "data.limit=0.3",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "pruning.rounds=2",
    "measure=null",
    "report=false",
    "structure=[refill,regroup]",
    "structure.refill.round_to=2",
    "structure.regroup.group_size=4",
)
CELLS = {(n, s) for n in (1, 2) for s in ("refill", "regroup")}
WHOLE = {(0, "dense"), (1, "unstructured"), (2, "unstructured")} | CELLS


def trainings(printed: str) -> list[str]:
    """What a process says it has trained."""
    return [line.split("] ")[1].split(", validation")[0] for line in printed.splitlines() if ", validation" in line]


def kinds(root: Path) -> dict[str, str]:
    """State by task."""
    with Path(os.devnull).open("w") as nowhere:
        states = print_status(tasks_under(root), root, Console(file=nowhere))
    return {state.task.label: state.kind for state in states}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_share_the_work_and_both_end_with_all_of_it(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    processes = [start(tmp_path / f"{n}.txt", f"paths.root={root}", *SMALL, f"threads={n + 1}") for n in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    printed = [process.printed() for process in processes]
    done = [trainings(text) for text in printed]
    labels = {"dense network (round 0)", "search, round 1 of 2", "search, round 2 of 2"}
    assert sorted(done[0] + done[1]) == sorted(labels | {f"{s}, round {n} of 2" for n, s in CELLS})
    for text in printed:
        table = [tuple(line.split()[:2]) for line in text.splitlines() if line.startswith(" ") and "%" in line]
        assert {(int(n), s) for n, s in table} == WHOLE
    assert {(r.round, r.structure) for r in find_results(root)} == WHOLE
    assert not list(root.rglob(".*.partial")) + list(root.rglob(".lock"))


def test_a_waiting_process_takes_over_from_one_that_is_killed(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = (f"paths.root={root}", *SMALL, "trainer.max_epochs=40")
    first = start(tmp_path / "first.txt", *command)
    wait_for(lambda: "running" in kinds(root).values())
    first.send_signal(signal.SIGSTOP)  # so that it does not finish before the second has started
    second = start(tmp_path / "second.txt", *command)
    wait_for(lambda: "in the hands of" in second.printed())
    assert f"in the hands of process {first.pid} on" in second.printed()
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    wait_for(lambda: "running" in kinds(root).values())
    second.send_signal(signal.SIGKILL)  # enough is seen; forty epochs would take too long
    assert second.wait() == -signal.SIGKILL
    assert find_results(root) == []
    assert kinds(root)["search of 2 rounds"] == "missing"


def failing(structure: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the retraining of one structure fail."""

    def run_retraining(experiment: Experiment, number: int, name: str, *rest: Any) -> Result:
        if name == structure:
            raise error
        return cells.run_retraining(experiment, number, name, *rest)

    monkeypatch.setattr("lt_lightning.experiment.run.scheduler.run_retraining", run_retraining)


def test_a_failed_retraining_stops_no_other_and_is_tried_again(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*SMALL)
    root = tmp_path / "runs"
    with monkeypatch.context() as patch:
        failing("refill", RuntimeError("out of luck\nand more"), patch)
        with pytest.raises(ExceptionGroup, match="2 of 5 tasks failed") as caught:
            run(config)
    assert [str(error) for error in caught.value.exceptions] == ["out of luck\nand more"] * 2
    printed = capsys.readouterr().out
    assert "refill, round 1 of 2 FAILED: RuntimeError: out of luck" in printed
    assert "regroup" in printed.partition("──")[2]  # in the table that follows
    assert kinds(root) == {
        "search of 2 rounds": "done",
        **{f"regroup, round {n} of 2": "done" for n in (1, 2)},
        **{f"refill, round {n} of 2": "failed" for n in (1, 2)},
    }
    failure = Failure.load(next(task.folder for task in tasks_of(config) if task.structure == "refill"))
    assert failure is not None
    assert failure.error == "RuntimeError: out of luck"
    assert "run_retraining" in failure.traceback
    assert {(r.round, r.structure) for r in run(config)} == WHOLE
    assert set(kinds(root).values()) == {"done"}
    assert not list(root.rglob("error.json"))


def test_rounds_that_a_failed_search_finished_are_still_retrained(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_search(experiment: Experiment, job: JobProgress) -> list[Result]:
        results = search.run_search(experiment, job)
        rounds = experiment.search_folder / "rounds.json"
        rounds.write_text(json.dumps(json.loads(rounds.read_text())[:2]))
        (experiment.search_folder / "round_02" / "unstructured" / "result.json").unlink()
        assert results
        raise FloatingPointError("the loss is nan in round 2")

    monkeypatch.setattr("lt_lightning.experiment.run.scheduler.run_search", run_search)
    with pytest.raises(FloatingPointError, match="round 2"):
        run(composed(*SMALL))
    there = {(r.round, r.structure) for r in find_results(tmp_path / "runs")}
    assert there & CELLS == {(1, "refill"), (1, "regroup")}
    assert kinds(tmp_path / "runs") == {
        "search of 2 rounds": "failed",
        **{f"{name}, round 1 of 2": "done" for name in ("refill", "regroup")},
        **{f"{name}, round 2 of 2": "missing" for name in ("refill", "regroup")},
    }


def test_a_torn_result_is_made_again(composed: Compose, tmp_path: Path) -> None:
    config = composed(*SMALL, "retrain_rounds=[1]")
    first = run(config)
    for task in tasks_of(config)[1:]:
        (task.folder / "result.json").write_bytes((task.folder / "result.json").read_bytes()[:40])
        (task.folder / ".result.json.abc.partial").write_bytes(b"{")
    with pytest.warns(UserWarning, match="counts as missing"):
        again = run(config)
    assert [(r.place, r.accuracy) for r in again] == [(r.place, r.accuracy) for r in first]
    assert not list((tmp_path / "runs").rglob(".*.partial"))


def test_what_another_process_failed_at_is_not_tried_again_at_once(composed: Compose) -> None:
    config = composed(*SMALL)
    first, *_ = tasks_of(config)
    waiting = Work(Experiment.from_config(config), tasks_of(config), JobProgress(0, Console()))
    lock = Lock(first.folder)
    assert lock.take()
    Failure.of(FloatingPointError("the loss is nan")).save(first.folder)
    lock.release()
    waiting.run()
    assert {task: str(error) for task, error in waiting.failed.items()} == {
        first: "the loss is nan (in another process)"
    }


def test_the_plan_counts_what_is_missing_and_measures_a_step(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*SMALL)
    experiment = Experiment.from_config(config)
    slow = type(experiment.classifier()).training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        time.sleep(0.2)
        return slow(self, *arguments)

    monkeypatch.setattr(type(experiment.classifier()), "training_step", training_step)
    monkeypatch.setattr("lt_lightning.experiment.run.costs._measured", {})  # by other tests
    costs = costs_of(experiment, tasks_of(config))
    assert [(cost.trainings, cost.epochs) for cost in costs] == [(3, 4)] + [(1, 1)] * 4
    experiment.data.setup("fit")
    steps = len(experiment.data.train_dataloader())
    assert 0.2 * steps < costs[0].seconds < 0.2 * steps * 3
    monkeypatch.undo()
    run(composed(*SMALL[:-1], "structure=[refill]"))
    costs = costs_of(experiment, tasks_of(config))
    assert [(cost.trainings, cost.epochs) for cost in costs] == [(1, 1)] * 2
    assert {Path(cost.folder).name.partition("-")[0] for cost in costs} == {"regroup"}
