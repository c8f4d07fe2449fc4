"""The report at the end of a run: written when something is new, and never the reason for a failure."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.run import command
from lt_lightning.experiment.run.job import Job
from lt_lightning.report.writing import report_at_end
from lt_lightning.results.records import Result


def _printed(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=500)
    report_at_end(folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_written_once_and_again_only_if_something_is_new(runs: Path, configs: list[DictConfig]) -> None:
    search, retraining, *_ = Job.of(configs[0]).tasks
    file = search.folder / "report" / "report.html"
    assert _printed(search.folder) == f"Report:  {file}\n"
    written = file.stat().st_mtime_ns
    _printed(search.folder)
    assert file.stat().st_mtime_ns == written
    later = (written + 10**9, written + 10**9)
    os.utime(retraining.folder / "result.json", ns=later)
    _printed(search.folder)
    assert file.stat().st_mtime_ns != written


def test_what_goes_wrong_is_one_line(runs: Path, configs: list[DictConfig]) -> None:
    folder = search_folder(configs[0])
    (folder / "report").write_text("a file in the way", encoding="utf-8")
    (line,) = _printed(folder).splitlines()
    assert line.startswith("Report:  not written: ")
    assert _printed(runs / "none") == ""


@pytest.mark.parametrize("report", [True, False])
def test_a_job_reports_of_what_is_there_and_fails_as_before(
    runs: Path, configs: list[DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: bool
) -> None:
    config = configs[1]
    config.report = report
    file = search_folder(config) / "report" / "report.html"

    def fail(*_: object) -> list[Result]:
        raise RuntimeError("a training failed")

    monkeypatch.setattr(command, "run_job", fail)
    with pytest.raises(RuntimeError, match="a training failed"):
        command.do(config, tmp_path / "job")
    assert file.is_file() == report
    file.unlink(missing_ok=True)
    monkeypatch.setattr(command, "run_job", lambda *_: [])
    assert command.do(config, tmp_path / "job") == []
    assert file.is_file() == report


def test_the_option_is_checked_and_determines_no_result(configs: list[DictConfig], tmp_path: Path) -> None:
    config = configs[0]
    before = Job.of(config).tasks
    config.report = False
    assert Job.of(config).tasks == before
    config.report = "maybe"
    with pytest.raises(ValueError, match=r"^report='maybe'"):
        command.do(config, tmp_path / "job")
