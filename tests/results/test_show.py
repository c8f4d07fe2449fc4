"""What a user sees: progress, table, plot, metrics file."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from lt_lightning.experiment.logging.loggers import MetricsFile
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.results.aggregate import aggregate
from lt_lightning.results.records import Result, find_results, write_summary
from lt_lightning.results.tables import HEADINGS, results_table, row_cells
from tests.toys import DENSE

REFILL = replace(
    DENSE, round=1, structure="refill", target_density=0.8, density=0.79, accuracy=0.97, time_ratio_training=0.5,
    place="search-0/round_01/r",
)  # fmt: skip


def rendered(results: list[Result], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(results, "title", width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_table_tells_accuracy_and_difference_within_eighty_columns() -> None:
    text = rendered([REFILL, DENSE])
    dense, refill = (line for line in text.splitlines() if "%" in line)
    assert dense.split()[:2] == ["0", "dense"]
    assert refill.split() == ["1", "refill", "79.0%", "97.00%", "-1.00", "1.00", "1.00", "1.00", "0.50"]
    assert "…" not in text
    assert "One seed: no verdict" in text
    assert "no verdict" not in rendered([DENSE, replace(DENSE, seed=1)])
    unmeasured = replace(REFILL, time_ratio_inference=math.nan, time_ratio_training=math.nan)
    assert "nan" not in rendered([unmeasured])


def test_a_wide_terminal_gets_more_columns() -> None:
    known = replace(
        REFILL, val_accuracy=0.98, best_epoch=7, retained_magnitude=0.42, train_seconds=12.3, total_epochs=34
    )
    text = rendered([known, DENSE], width=140)
    line = next(line for line in text.splitlines() if "refill" in line)
    assert line.split()[-5:] == ["98.00%", "7", "42%", "12", "34"]
    assert max(map(len, text.splitlines())) <= 140


def test_epochs_stand_in_tables_over_seeds_where_they_are_known() -> None:
    (row,) = aggregate([("", replace(REFILL, seed=seed, place=f"{seed}", total_epochs=34)) for seed in range(2)])
    assert dict(zip(HEADINGS, row_cells(row), strict=True))["epochs"] == "34"
    (row,) = aggregate([("", REFILL)])
    assert dict(zip(HEADINGS, row_cells(row), strict=True))["epochs"] == ""


def test_summary_has_a_row_for_each_finished_ticket_and_survives_unfinished_folders(tmp_path: Path) -> None:
    for result in (DENSE, REFILL):
        result.save(tmp_path / result.place)
    (tmp_path / "search-0" / "round_02" / "refill").mkdir(parents=True)
    assert find_results(tmp_path) == [DENSE, REFILL]
    write_summary(tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["structure"], float(row["density"])) for row in rows] == [("dense", 1.0), ("refill", 0.79)]


@pytest.mark.parametrize(
    "content", ['{"data": ', "", "[]", "{}", json.dumps({**asdict(DENSE), "accuracy": "high"}), "\xff\xfe"]
)
def test_a_damaged_result_counts_as_missing_with_a_warning(content: str, tmp_path: Path) -> None:
    for result in (DENSE, REFILL):
        result.save(tmp_path / result.place)
    (tmp_path / REFILL.place / "result.json").write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"r.result\.json"):
        assert find_results(tmp_path) == [DENSE]


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    job = JobProgress(4, Console(file=file, width=100))
    with job:
        job.start("search, round 1 of 2", 2)
        assert job.time_left() == "time left unknown"
        job.advance()
        job.advance()
        job.finish("search, round 1 of 2")
    (line,) = file.getvalue().splitlines()
    assert line.startswith("[2/4 epochs, 0:00 left] search, round 1 of 2")


def test_progress_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    job = JobProgress(11, Console(file=io.StringIO()))
    clock[0] = 600.0
    job.advance()
    assert job.time_left() == "1:40:00 left"
    job.epochs -= 9
    assert job.time_left() == "10:00 left"


def test_metrics_of_one_step_share_a_row_and_new_names_get_a_column(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "deep" / "metrics.csv")
    logger.log_metrics({"val/loss": 0.5}, step=19)
    logger.log_metrics({"train/loss": 0.25}, step=19)
    logger.save()
    logger.log_metrics({"train/loss": 0.125, "round": 1}, step=39)
    logger.finalize("success")
    with (tmp_path / "deep" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "19", "val/loss": "0.5", "train/loss": "0.25", "round": ""},
        {"step": "39", "val/loss": "", "train/loss": "0.125", "round": "1.0"},
    ]
