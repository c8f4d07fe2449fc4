"""A Hydra multirun: its table over seeds, what failed, its plan, and that nothing else is left behind."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.run.command import do, do_in_sweep, objective
from lt_lightning.experiment.sweep import remove_output
from lt_lightning.results.aggregate import aggregate, settings_of
from lt_lightning.results.job_record import JobRecord
from lt_lightning.results.records import Result
from lt_lightning.results.tables import aggregate_table
from tests.runs import SMALL
from tests.toys import DENSE

SWEEP = ("seed=0,1", "classifier.learning_rate=0.1,1e30")
REFILL = replace(DENSE, round=1, structure="refill", density=0.5, accuracy=0.97, val_accuracy=0.9, place="search-0/r")


def of_seed(result: Result, seed: int, accuracy: float, dense_accuracy: float) -> Result:
    place = result.place.replace("search-0", f"search-{seed}")
    return replace(result, seed=seed, accuracy=accuracy, dense_accuracy=dense_accuracy, place=place)


def test_rows_hold_mean_and_deviation_over_seeds() -> None:
    values = [(0.90, 0.92), (0.94, 0.93), (0.95, 0.94)]
    found = [("rate=0.2", of_seed(REFILL, seed, *pair)) for seed, pair in enumerate(values)]
    found += [("rate=0.2", found[0][1]), ("rate=0.5", of_seed(REFILL, 0, 0.5, 0.9)), ("rate=0.2", DENSE)]
    dense, refill, other = aggregate(found)
    assert (dense.structure, dense.seeds, dense.accuracy_sd) == ("dense", 1, None)
    assert (refill.setting, refill.seeds) == ("rate=0.2", 3)  # the repeated one counts once
    assert refill.accuracy == pytest.approx(2.79 / 3)
    assert refill.accuracy_sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert refill.difference == pytest.approx(0.0)
    assert refill.difference_sd == pytest.approx(math.sqrt((0.02**2 + 0.01**2 + 0.01**2) / 2))
    assert (other.setting, other.seeds) == ("rate=0.5", 1)
    assert other.difference == pytest.approx(-0.4)


def test_table_shows_them_within_ninety_columns() -> None:
    found = [("pruning.rate=0.2", of_seed(REFILL, seed, 0.9 + seed / 100, 0.92)) for seed in range(2)]
    console = Console(file=io.StringIO(), width=90)
    console.print(aggregate_table(aggregate([*found, ("pruning.rate=0.2", DENSE)])))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    line = next(line for line in text.splitlines() if "refill" in line)
    told = "rate=0.2 1 refill 50.0% 90.50 -1.50 ±6.35 -4.66 ✗ 1.00 1.00 1.00 2"  # 12.706 * 0.7071 / sqrt(2)
    assert line.split() == told.split()
    assert text.split("\n")[0].split() == ["digits,", "resnet8"]


def test_settings_are_what_differs_besides_seed_and_columns() -> None:
    jobs = [
        {"seed": "0", "model": "a", "pruning.rate": "0.2", "threads": "1"},
        {"seed": "1", "model": "b", "pruning.rate": "0.5", "threads": "1", "classifier.nesterov": "true"},
    ]
    assert settings_of(jobs) == ["pruning.rate=0.2", "pruning.rate=0.5, classifier.nesterov=true"]
    assert settings_of([{"seed": "0"}, {"seed": "1"}]) == ["", ""]


def test_objective_is_validation_accuracy_of_the_last_round() -> None:
    assert objective([DENSE, REFILL, replace(REFILL, val_accuracy=0.8)]) == pytest.approx(0.85)
    assert math.isnan(objective([]))


def test_a_job_that_cannot_begin_is_told_and_recorded(
    composed: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = do_in_sweep(composed("pruning.rate=1.5"), 7, ["pruning.rate=1.5", "+extra=1"], tmp_path)
    assert math.isnan(value)
    assert "job 7 FAILED: pruning.rate=1.5:" in capsys.readouterr().out
    job = JobRecord.load(tmp_path)
    assert job.error.startswith("pruning.rate=1.5:")
    assert (job.number, job.overrides) == (7, {"pruning.rate": "1.5", "extra": "1"})
    assert (job.tasks, job.trained) == ((), True)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("plan=maybe", "plan='maybe'"), ("status=some", "status='some'"), ("status=all plan=true", "status='all'")],
)
def test_impossible_requests_are_named(
    wrong: str, told: str, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        do(composed(*wrong.split()), tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_what_a_plan_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "now"
    (folder / ".hydra").mkdir(parents=True)
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        (folder / ".hydra" / name).write_text("a: 1")
    (folder / "run.log").touch()
    (tmp_path / "jobs" / "mine.txt").write_text("kept")
    remove_output([folder])
    assert [path.name for path in tmp_path.rglob("*")] == ["jobs", "mine.txt"]
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "job.json").touch()
    (folder / "run.log").write_text("told")
    remove_output([folder])
    assert (folder / "deep" / "job.json").exists()
    assert (folder / "run.log").exists()


def test_sweep_ends_with_its_table_and_tells_what_failed(
    start: Callable[..., Any], script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = tmp_path / "runs"
    arguments = ["-m", f"paths.root={root}", *SMALL, "structure=[refill]", *SWEEP]
    process = start(tmp_path / "printed.txt", *arguments)
    assert process.wait() == 1
    told = process.printed().splitlines()
    assert told[-1] == "error: 2 of 4 jobs failed, 4 of 8 tasks are not finished"
    assert "4 jobs: 4 done, 0 running, 2 failed, 2 missing" in process.printed()
    failed = [line for line in told if line.startswith("failed: ")]
    assert len(failed) == 2
    assert all("digits-resnet8-s" in line and "loss" in line for line in failed)
    assert "Traceback" not in process.printed()

    (sweep,) = (root / "jobs").iterdir()
    assert {path.name for path in sweep.iterdir()} == {
        "0", "1", "2", "3", "multirun.yaml", "sweep.json", "sweep.csv", "extremes.csv", "report", "jobs_ended",
        "jobs_trained",
    }  # fmt: skip
    assert f"Report:  {sweep / 'report' / 'report.html'}" in told
    assert "4 searches, 6 finished tickets; seed" in (sweep / "report" / "report.html").read_text(encoding="utf-8")
    assert "Extreme ticket sparsity, by the mean (the paper's) and as shown (margin 0.5 points" in process.printed()
    with (sweep / "extremes.csv").open() as file:
        assert [(row["structure"], row["seeds"]) for row in csv.DictReader(file)] == [
            ("refill", "2"), ("unstructured", "2"),
        ]  # fmt: skip
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (root / "summary.csv").open() as file:
        results = list(csv.DictReader(file))
    assert [(row["round"], row["structure"], row["seeds"]) for row in rows] == [
        ("0", "dense", "2"), ("1", "refill", "2"), ("1", "unstructured", "2"),
    ]  # fmt: skip
    assert {row["setting"] for row in rows} == {"classifier.learning_rate=0.1"}
    for row in rows:
        both = [float(result["accuracy"]) for result in results if result["structure"] == row["structure"]]
        assert float(row["accuracy"]) == pytest.approx(sum(both) / 2)
        assert float(row["accuracy_sd"]) == pytest.approx(abs(both[0] - both[1]) / math.sqrt(2))

    before = set(tmp_path.rglob("*"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
    for more, wanted in (
        (["status=true"], ["4 done, 0 running, 2 failed, 2 missing", "loss"]),
        (
            ["classifier.learning_rate=0.1", "seed=0,1,2", "plan=true"],
            ["3 jobs: 3 trainings of 4 epochs in all"],  # of seed 2 alone
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments, *more])
        script.run()
        printed = capsys.readouterr().out
        assert [part for part in wanted if part not in printed] == []
        assert set(tmp_path.rglob("*")) == before
