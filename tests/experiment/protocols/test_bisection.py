"""Bisection over rounds against oracles of accuracy, and from end to end on digits."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, open_dict
from rich.console import Console

from lt_lightning.experiment.protocols.bisection import CAVEAT, EXPLANATION, Bracket, bracket_of
from lt_lightning.experiment.run.command import do
from lt_lightning.experiment.run.costs import costs_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.sweep import SweepEnd
from lt_lightning.results.job_record import JobRecord, Task, TicketKind, describe_costs
from lt_lightning.results.records import Result, find_results, results_of
from lt_lightning.results.status import print_status, tasks_under
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
OPTIONS = (*SMALL, *REFILL, "pruning.rounds=3", "report=false")
DENSE = Result(
    data="digits", model="resnet8", seed=0, round=0, structure="dense", target_density=1.0, density=1.0, accuracy=0.9,
    dense_accuracy=0.9, params_ratio=1.0, flops_ratio=1.0, train_seconds=1.0, val_accuracy=0.9, best_epoch=0,
    retained_magnitude=1.0, time_ratio_inference=1.0, time_ratio_training=1.0, search="s", place="s/round_00/dense",
)  # fmt: skip


def bisected(rounds: Sequence[int], passes: Callable[[int], bool], known: Sequence[int] = ()) -> tuple[Bracket, int]:
    """What is found in the end, and in how many tests."""
    outcomes = {number: passes(number) for number in known}
    count = 0
    while (number := (found := Bracket(tuple(rounds), outcomes)).next) is not None:
        assert number not in outcomes
        left = found.left
        outcomes = {**outcomes, number: passes(number)}
        count += 1
        assert Bracket(tuple(rounds), outcomes).left <= left - 1
    return found, count


# The rule


@pytest.mark.parametrize("count", [*range(1, 17), 40])
def test_a_steady_fall_is_found_exactly_in_log2_tests(count: int) -> None:
    """Every place of the fall: all rounds pass, none does, or any number of them."""
    rounds = range(1, count + 1)
    for last in range(count + 1):
        found, tests = bisected(rounds, lambda number, last=last: number <= last)  # type: ignore[misc]
        assert found.passes == (last or None)
        assert found.fails == (last + 1 if last < count else None)
        assert tests <= math.ceil(math.log2(count + 1))
        assert found.contrary == found.open == ()


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
def test_whatever_the_outcomes_the_bracket_says_what_was_seen(outcomes: list[bool], data: st.DataObject) -> None:
    rounds = sorted(data.draw(st.sets(st.integers(1, 99), min_size=len(outcomes), max_size=len(outcomes))))
    truth = dict(zip(rounds, outcomes, strict=True))
    found, tests = bisected(rounds, truth.__getitem__)
    assert tests == len(found.outcomes) <= math.ceil(math.log2(len(rounds) + 1))
    assert found.outcomes.items() <= truth.items()
    before = rounds.index(found.passes) if found.passes is not None else -1
    assert found.passes is None or truth[found.passes]
    if found.fails is None:
        assert before == len(rounds) - 1
    else:
        assert not truth[found.fails]
        assert rounds.index(found.fails) == before + 1


def test_what_was_tested_before_is_used_and_contradictions_are_told() -> None:
    truth = {1: True, 2: False, 3: True, 4: True, 5: False, 6: False}
    everything, tests = bisected(range(1, 7), truth.__getitem__, known=list(truth))
    assert (tests, everything.passes, everything.fails, everything.contrary) == (0, 4, 5, (2,))
    assert str(everything) == (
        "passes at round 4, fails at round 5, but also fails at round 2; tested 1, 2, 3, 4, 5, 6 of rounds 1 to 6"
    )
    found, tests = bisected(range(1, 7), truth.__getitem__, known=[3, 6])
    assert (tests, found.passes, found.fails) == (2, 4, 5)


def test_brackets_are_told_for_what_they_are() -> None:
    assert str(Bracket((1, 2, 4), {})) == "tested none of rounds 1, 2, 4; next is round 2, at most 2 are to be tested"
    none = Bracket((1, 2, 3), {1: False, 2: False})
    assert str(none) == "passes at no tested round, fails at round 1; tested 1, 2 of rounds 1 to 3"
    assert str(Bracket((1, 2), {1: True, 2: True})) == "passes at round 2; tested 1, 2 of rounds 1, 2"


# Tasks


def tickets(tasks: Sequence[Task], structure: str) -> list[Task]:
    """The retrainings of a structure's tickets, without controls."""
    return [task for task in tasks if task.kind == TicketKind(structure)]


def rounds_and_names(tasks: Sequence[Task]) -> list[tuple[int, str]]:
    return [(task.round, task.kind.structure if task.kind else "") for task in tasks]


def finish(task: Task, difference: float = 0.0) -> None:
    """Leaves what the task would have."""
    kind = task.kind or TicketKind("dense")
    for part in task.parts:
        result = replace(DENSE, round=task.round, structure=kind.structure, accuracy=0.9 + difference)
        replace(result, control=kind.control, place=str(part)).save(part)


def work_off(job: Job, last: Mapping[str, int]) -> list[tuple[int, str]]:
    """Finishes what is asked for until nothing is, tickets of later rounds than `last` by a point below dense."""
    done = []
    while open_ := [task for task in job.asked() if results_of(task) is None]:
        task = open_[0]
        finish(task, -0.01 if task.kind and task.round > last[task.kind.structure] else 0.0)
        if task.kind and not task.kind.control:
            done.append((task.round, task.kind.structure))
    return done


def test_each_structure_is_bisected_on_its_own(composed: Compose) -> None:
    job = Job.of(composed("search=bisect", "structure=[refill,regroup]", "pruning.rounds=6"))
    assert job.tasks == Job.of(composed("structure=[refill,regroup]", "pruning.rounds=6")).tasks
    assert rounds_and_names(job.asked()) == [(0, ""), (4, "refill"), (4, "regroup")]
    assert [name for _, name in rounds_and_names(job.asked(at_most=True))] == ["", *["refill", "regroup"] * 3]
    done = work_off(job, {"refill": 2, "regroup": 6})
    assert [number for number, name in done if name == "refill"] == [4, 2, 3]
    assert [number for number, name in done if name == "regroup"] == [4, 6]
    explanation, caveat, *lines = job.notes()
    assert (explanation, caveat) == (EXPLANATION, CAVEAT)
    assert [line.rpartition(" of ")[0].split(", ", 1)[1] for line in lines] == [
        "refill: passes at round 2, fails at round 3; tested 2, 3, 4",
        "regroup: passes at round 6; tested 4, 6",
    ]


def test_a_job_that_is_not_bisected_asks_for_all_and_says_nothing(composed: Compose) -> None:
    job = Job.of(composed("structure=[refill]", "pruning.rounds=6"))
    assert job.asked() == job.asked(at_most=True) == list(job.tasks)
    assert len(job.tasks) == 7
    work_off(job, {"refill": 2})
    assert job.notes() == []
    assert job.is_finished


def test_chosen_rounds_are_those_that_are_bisected_and_controls_follow_their_tickets(composed: Compose) -> None:
    job = Job.of(composed(
        "search=bisect", "structure=[refill]", "retrain_rounds=[1,3,5]", "controls=[reinit]", "pruning.rounds=6"
    ))  # fmt: skip
    done = work_off(job, {"refill": 1, "unstructured": 6})
    assert done == [(3, "refill"), (1, "refill")]
    controls = rounds_and_names([task for task in job.asked() if task.kind and task.kind.control])
    assert sorted(controls) == [
        (1, "refill"),
        (1, "unstructured"),
        (3, "refill"),
        (3, "unstructured"),
        (5, "unstructured"),
    ]


def test_a_difference_by_rounding_alone_is_none(composed: Compose) -> None:
    job = Job.of(composed("search=bisect", "structure=[refill]", "pruning.rounds=1"))
    (task,) = tickets(job.tasks, "refill")
    finish(task, -1e-8)
    assert bracket_of([task]).passes == 1
    finish(task, -1e-4)
    assert bracket_of([task]).fails == 1


@pytest.mark.parametrize(("value", "named"), [("some", "'some'"), ("true", "true"), ("null", "null")])
def test_another_search_is_refused(value: str, named: str, composed: Compose) -> None:
    with pytest.raises(ValueError, match=f"^search={named}: "):
        Job.of(composed(f"search={value}"))


# A sweep over seeds


def test_a_sweep_counts_rounds_that_all_seeds_tested_and_tells_each_seeds_bracket(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for seed, last in enumerate((3, 5, 5)):
        config = composed("search=bisect", "structure=[refill]", "pruning.rounds=6", f"seed={seed}")
        job = Job.of(config)
        work_off(job, {"refill": last})
        for task in job.asked():  # each seed with places of its own, the sparser the later
            for part in task.parts:
                result = Result.load(part)
                assert result is not None
                executed = 0.8**result.round
                replace(result, seed=seed, place=str(part), executed=executed, density=executed).save(part)
        job.record(JobRecord(seed, {"seed": str(seed)})).save(sweep / str(seed))
    with open_dict(config):
        config.hydra = {"sweep": {"dir": str(sweep)}}
    SweepEnd().on_multirun_end(config)  # nothing is missing of what was asked for
    printed = capsys.readouterr().out
    brackets = [line.partition(", ")[2] for line in printed.splitlines() if ", refill: passes" in line]
    assert brackets == [
        "refill: passes at round 3, fails at round 4; tested 2, 3, 4 of rounds 1 to 6",
        *["refill: passes at round 5, fails at round 6; tested 4, 5, 6 of rounds 1 to 6"] * 2,
    ]
    (verdict,) = [line for line in printed.splitlines() if line.startswith("  refill")]
    assert "not counted: round 2, 3, 5, 6" in verdict  # round 4 alone was tested by all three; it fails by the mean
    assert "by the mean none" in verdict
    assert "may err more often" in printed
    assert "0 missing" in printed


# From end to end


def plan_of(job: Job) -> str:
    return describe_costs(costs_of(job))


def test_bisection_trains_what_it_needs_and_shares_it_with_a_whole_search(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lt_lightning.experiment.run.costs.seconds_per_epoch", lambda experiment: 1.0)
    config = composed(*OPTIONS, "search=bisect")
    job = Job.of(config)
    assert plan_of(job).startswith("at most 6 trainings of 7 epochs")  # 4 rounds in 5 epochs, and 2 tickets
    results = run_of(config)
    tested = {result.round: result for result in results if result.structure == "refill"}
    assert 1 <= len(tested) <= 2
    assert {result.round for result in results if result.structure == "unstructured"} == set(range(1, 4))
    found = bracket_of(tickets(job.tasks, "refill"))
    assert found.next is None
    assert found.outcomes == {number: each.accuracy >= each.dense_accuracy - 1e-6 for number, each in tested.items()}
    assert f", refill: {found}" in capsys.readouterr().out
    assert plan_of(job) == "nothing to train: everything is there"
    do(composed(*OPTIONS, "search=bisect", "status=true"), tmp_path / "runs" / "jobs" / "status")
    assert f"{1 + len(tested)} done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out
    job.record().save(tmp_path / "runs" / "jobs" / "run")
    with Path(os.devnull).open("w") as nowhere:
        states = print_status(tasks_under(tmp_path / "runs"), tmp_path, Console(file=nowhere))
    assert [state.kind for state in states] == ["done"] * (1 + len(tested))  # nothing is missing of what was asked for

    whole = run_of(composed(*OPTIONS))
    assert {result.round for result in whole if result.structure == "refill"} == set(range(1, 4))
    assert [result for result in whole if result.structure == "refill" and result.round in tested] == [*tested.values()]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("ticket.*")}
    assert len([result for result in run_of(config) if result.structure == "refill"]) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("ticket.*")} == before


def test_status_tells_what_is_still_to_be_tested(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("search=bisect", "structure=[refill]", "pruning.rounds=6")
    search, *retrainings = Job.of(composed(*options)).tasks
    finish(search)
    finish(retrainings[3])
    do(composed(*options, "status=true"), tmp_path)
    printed = capsys.readouterr().out
    assert "2 done, 0 running, 0 failed, 1 missing" in printed
    assert (
        "refill: passes at round 4; tested 4 of rounds 1 to 6; next is round 6, at most 2 are to be tested" in printed
    )


@pytest.mark.slow
def test_a_killed_bisection_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *OPTIONS, "search=bisect"]
    whole = subprocess.run([*command, f"paths.root={tmp_path / 'a'}"], capture_output=True, text=True, timeout=240)
    process = subprocess.Popen([*command, f"paths.root={tmp_path / 'b'}"], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list((tmp_path / "b").glob("*/round_*/refill-*/result.json")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run([*command, f"paths.root={tmp_path / 'b'}"], capture_output=True, text=True, timeout=240)
    brackets = [
        next(line for line in io.StringIO(done.stdout) if ", refill: " in line).partition(", ")[2]
        for done in (whole, again)
    ]
    assert brackets[0] == brackets[1]
    killed, other = (
        [(result.round, result.structure, result.accuracy) for result in find_results(tmp_path / name)]
        for name in ("a", "b")
    )
    assert killed == other
