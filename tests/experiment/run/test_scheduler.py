"""Several processes with one job, failures, and what is said of them."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run import run_task
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.experiment.run.scheduler import Scheduler
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import Task
from lt_lightning.results.locks import Lock
from lt_lightning.results.records import find_results
from lt_lightning.results.status import state_of, tasks_under
from tests.runs import BOTH, REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
Start = Callable[..., Any]  # see `conftest.py`
OPTIONS = (*SMALL, *BOTH, "report=false")
STRUCTURES = ("refill", "regroup")
WHOLE = {(0, "dense"), *((1, name) for name in ("unstructured", *STRUCTURES))}


def trainings(printed: str) -> list[str]:
    """What a process says it has trained."""
    ended = [line.split("] ")[1] for line in printed.splitlines() if ", validation" in line]
    return [re.split(", (?:density|validation)", line)[0] for line in ended]


def kinds(tasks: Iterable[Task]) -> dict[str, str]:
    """State by task."""
    return {task.label: state_of(task).kind for task in tasks}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_share_the_work_and_both_end_with_all_of_it(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    processes = [start(tmp_path / f"{n}.txt", f"paths.root={root}", *OPTIONS, f"threads={n + 1}") for n in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    printed = [process.printed() for process in processes]
    done = [trainings(text) for text in printed]
    labels = {"dense network (round 0)", *(f"{name}, round 1 of 1" for name in ("search", *STRUCTURES))}
    assert sorted(done[0] + done[1]) == sorted(labels)
    for text in printed:
        table = [tuple(line.split()[:2]) for line in text.splitlines() if line.startswith(" ") and "%" in line]
        assert {(int(n), s) for n, s in table} == WHOLE
    assert {(r.round, r.structure) for r in find_results(root)} == WHOLE
    assert not list(root.rglob(".*.partial")) + list(root.rglob(".lock"))


@pytest.mark.slow
def test_a_waiting_process_takes_over_from_one_that_is_killed(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = (f"paths.root={root}", *OPTIONS, "trainer.max_epochs=40")
    first = start(tmp_path / "first.txt", *command)
    wait_for(lambda: "running" in kinds(tasks_under(root)).values())
    first.send_signal(signal.SIGSTOP)  # so that it does not finish before the second has started
    second = start(tmp_path / "second.txt", *command)
    wait_for(lambda: "in the hands of" in second.printed())
    assert f"in the hands of process {first.pid} on" in second.printed()
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    wait_for(lambda: "running" in kinds(tasks_under(root)).values())
    second.send_signal(signal.SIGKILL)  # enough is seen; forty epochs would take too long
    assert second.wait() == -signal.SIGKILL
    assert find_results(root) == []
    assert kinds(tasks_under(root))["search of 1 rounds"] == "missing"


def failing(structure: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the retraining of one structure fail."""

    def run_retraining(experiment: Experiment, task: Task, *rest: Any) -> None:
        if str(task.kind) == structure:
            raise error
        run_task.run_retraining(experiment, task, *rest)

    monkeypatch.setattr("lt_lightning.experiment.run.scheduler.run_retraining", run_retraining)


def test_a_failed_retraining_stops_no_other_and_is_tried_again(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*OPTIONS, "pruning.rounds=2", "retrain_rounds=[1,2]")
    tasks = Job.of(config).tasks
    with monkeypatch.context() as patch:
        failing("refill", RuntimeError("out of luck\nand more"), patch)
        with pytest.raises(ExceptionGroup, match="2 of 5") as caught:
            run_of(config)
    assert [str(error) for error in caught.value.exceptions] == ["out of luck\nand more"] * 2
    printed = capsys.readouterr().out
    assert "refill, round 1 of 2 FAILED: RuntimeError: out of luck" in printed
    assert "regroup" in printed.partition("──")[2]  # in the table that follows
    assert kinds(tasks) == {
        "search of 2 rounds": "done",
        **{f"regroup, round {n} of 2": "done" for n in (1, 2)},
        **{f"refill, round {n} of 2": "failed" for n in (1, 2)},
    }
    failure = Failure.load(next(task.folder for task in tasks if str(task.kind) == "refill"))
    assert failure is not None
    assert failure.error == "RuntimeError: out of luck"
    assert "run_retraining" in failure.traceback
    assert {(r.round, r.structure) for r in run_of(config)} == WHOLE | {
        (2, name) for name in ("unstructured", *STRUCTURES)
    }
    assert set(kinds(tasks).values()) == {"done"}
    assert not list((tmp_path / "runs").rglob("error.json"))


def test_a_task_that_ends_without_a_result_has_failed(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be run again for ever."""
    monkeypatch.setattr("lt_lightning.experiment.run.scheduler.run_search", lambda *_: None)
    job = Job.of(composed(*OPTIONS))
    with pytest.raises(RuntimeError, match=re.escape(str(job.tasks[0].folder))):
        run_job(job, Console(quiet=True))
    assert state_of(job.tasks[0]).kind == "failed"


def test_rounds_that_a_failed_search_finished_are_still_retrained(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_search(experiment: Experiment, task: Task, progress: JobProgress) -> None:
        run_task.run_search(experiment, task, progress)
        rounds = experiment.search_folder / "rounds.json"
        rounds.write_text(json.dumps(json.loads(rounds.read_text())[:2]))
        (experiment.search_folder / "round_02" / "unstructured" / "result.json").unlink()
        raise FloatingPointError("the loss is nan in round 2")

    config = composed(*SMALL, *REFILL, "pruning.rounds=2")
    monkeypatch.setattr("lt_lightning.experiment.run.scheduler.run_search", run_search)
    with pytest.raises(FloatingPointError, match="round 2"):
        run_of(config)
    there = {(r.round, r.structure) for r in find_results(tmp_path / "runs")}
    assert {(n, name) for n, name in there if name == "refill"} == {(1, "refill")}
    assert kinds(Job.of(config).tasks) == {
        "search of 2 rounds": "failed",
        "refill, round 1 of 2": "done",
        "refill, round 2 of 2": "missing",
    }


def test_a_torn_result_is_made_again(composed: Compose, tmp_path: Path) -> None:
    config = composed(*OPTIONS)
    first = run_of(config)
    for task in Job.of(config).tasks[1:]:
        (task.folder / "result.json").write_bytes((task.folder / "result.json").read_bytes()[:40])
        (task.folder / ".result.json.abc.partial").write_bytes(b"{")
    with pytest.warns(UserWarning, match=r"result\.json"):
        again = run_of(config)
    assert [(r.place, r.accuracy) for r in again] == [(r.place, r.accuracy) for r in first]
    assert not list((tmp_path / "runs").rglob(".*.partial"))


def test_what_another_process_failed_at_is_not_tried_again_at_once(composed: Compose) -> None:
    config = composed(*OPTIONS)
    job = Job.of(config)
    first = job.tasks[0]
    waiting = Scheduler(Experiment.from_config(config), job, JobProgress(0, Console(quiet=True)))
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
    config = composed(*OPTIONS)
    experiment = Experiment.from_config(config)
    slow = type(experiment.classifier()).training_step

    def training_step(self: Any, *arguments: Any) -> Any:
        time.sleep(0.2)
        return slow(self, *arguments)

    monkeypatch.setattr(type(experiment.classifier()), "training_step", training_step)
    monkeypatch.setattr("lt_lightning.experiment.run.costs._measured", {})  # by other tests
    costs = costs_of(Job.of(config))
    assert [(cost.trainings, cost.epochs) for cost in costs] == [(2, 3)] + [(1, 1)] * 2
    experiment.data.setup("fit")
    steps = len(experiment.data.train_dataloader())
    assert 0.2 * steps < costs[0].seconds < 0.2 * steps * 3
    monkeypatch.undo()
    run_of(composed(*SMALL, *REFILL))
    costs = costs_of(Job.of(config))
    assert [(cost.trainings, cost.epochs) for cost in costs] == [(1, 1)]
    assert {Path(cost.folder).name.partition("-")[0] for cost in costs} == {"regroup"}
