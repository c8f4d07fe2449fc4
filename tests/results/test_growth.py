"""What a task and a job do besides their work does not grow with what is under the root already."""

from __future__ import annotations

import csv
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lt_lightning.experiment.sweep import Multirun
from lt_lightning.report.contents import collect
from lt_lightning.results.job_record import JobRecord, Task
from lt_lightning.results.records import SUMMARY, Result, finish, has_summary, write_summary
from tests.toys import DENSE


def result(search: int) -> Result:
    return replace(DENSE, seed=search, search=f"search-{search}", place=f"search-{search}/round_00/dense")


def places(root: Path) -> list[str]:
    with (root / SUMMARY).open(newline="") as file:
        return [row["place"] for row in csv.DictReader(file)]


def end_job(root: Path, number: int) -> None:
    """What the last task of a job of a sweep, and the job, do at their end."""
    finish(root, [result(number)])
    search, job = root / f"search-{number}", root / "jobs" / str(number)
    record = JobRecord(number, {}, (Task(search, "search", 0, None, (search / "round_00" / "dense",)),), (0,))
    record.save(job)
    record.note(job)
    assert has_summary(root)
    sweep = Multirun(root / "jobs", "name", None, 0.0)
    sweep.count_end(True)
    assert sweep.ended() == (number + 1, number + 1)
    (search / "config.yaml").write_text("seed: 0")
    contents = collect(search)  # for the report at the end of the job
    assert len(contents.results) == 1
    assert contents.missing == ()


def looked_at(call: Callable[[], None]) -> int:
    """The number of files that a call opens, and of entries of the folders that it lists."""
    count, counting = 0, True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, counting
        if counting and event in ("open", "os.scandir", "os.listdir"):
            counting = False
            count += 1 if event == "open" else sum(1 for _ in Path(arguments[0] or ".").iterdir())
            counting = True

    sys.addaudithook(hook)
    try:
        call()
    finally:
        counting = False
    return count


def test_the_end_of_a_job_looks_at_as_much_however_much_is_there(tmp_path: Path) -> None:
    end_job(tmp_path, 0)
    counts = []
    for number in range(1, 31):
        table = (tmp_path / SUMMARY).stat()
        counts.append(looked_at(lambda number=number: end_job(tmp_path, number)))  # type: ignore[misc]
        assert (tmp_path / SUMMARY).stat().st_ino == table.st_ino  # added to, not written anew
    assert counts[1] == counts[-1] < 60  # the first imports something
    assert sorted(places(tmp_path)) == sorted(result(number).place for number in range(31))


def test_the_table_is_made_anew_where_it_is_gone_torn_or_of_other_columns(tmp_path: Path) -> None:
    for number in range(3):
        finish(tmp_path, [result(number)])
    wanted = [result(number).place for number in range(3)]
    assert places(tmp_path) == wanted
    table = tmp_path / SUMMARY
    whole = table.read_bytes()
    table.write_bytes(whole + whole.splitlines()[1][:30])  # as a process leaves it that is killed while it writes
    finish(tmp_path, [result(3)])
    wanted.append(result(3).place)
    assert places(tmp_path) == wanted
    for content in (b"", b"data,model\r\ndigits,resnet8\r\n"):
        table.write_bytes(content)
        assert not has_summary(tmp_path)
        finish(tmp_path, [result(len(wanted))])
        wanted.append(result(len(wanted)).place)
        assert places(tmp_path) == wanted
    table.unlink()
    assert not has_summary(tmp_path)
    write_summary(tmp_path)
    assert places(tmp_path) == wanted


def finish_many(root: str, first: int) -> None:
    for number in range(first, first + 20):
        finish(Path(root), [result(number)])
        if number % 7 == 0:
            write_summary(Path(root))


def test_rows_of_several_processes_are_whole_and_none_is_lost(tmp_path: Path) -> None:
    """While some of them write the table anew."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=finish_many, args=(str(tmp_path), 20 * index)) for index in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(places(tmp_path)) == sorted(result(number).place for number in range(80))


@pytest.mark.parametrize(
    "killed_at", ["lt_lightning.storage.files.os.fsync", "lt_lightning.results.records.Result.save"]
)
def test_a_result_is_in_the_table_before_it_counts(
    killed_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves a row too many, and none too few."""
    finish(tmp_path, [result(0)])
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path, [result(1)])
    assert Result.load(tmp_path / result(1).place) is None
    finish(tmp_path, [result(1)])
    assert places(tmp_path)[-1] == result(1).place
    write_summary(tmp_path)
    assert places(tmp_path) == [result(0).place, result(1).place]
