"""The end of a Hydra multirun: results of its jobs over seeds, and failures with their reasons; or plan, or status."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.results.aggregate import Row, aggregate, settings_of
from lt_lightning.results.extremes import ExtremeRow, extremes, verdict_lines
from lt_lightning.results.job_record import FILE, JobRecord, Task, describe_costs
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import print_status, state_of, summary_of, tasks_under
from lt_lightning.results.ticket_tables import aggregate_table, print_comparison
from lt_lightning.results.verdict import Rule
from lt_lightning.storage.files import replacing

TABLE, EXTREMES = "sweep.csv", "extremes.csv"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class SweepEnd(Callback):
    """Hydra's callback that shows the outcome of a sweep's jobs, and fails if some of them are not finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record how many jobs there will be, unless nothing is to be run."""
        if not config.plan and not config.status:
            Multirun.begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, the plan or the status.

        Raises:
            SystemExit: with a line that says how many tasks or jobs are not finished, if any are.
        """
        folder = Path(config.hydra.sweep.dir)
        loaded = [(path.parent, JobRecord.load(path.parent)) for path in folder.rglob(FILE)]
        records = dict(sorted(loaded, key=lambda each: each[1].number))
        jobs, console = list(records.values()), Console()
        tasks = list(dict.fromkeys(task for job in jobs for task in job.asked_tasks))
        problem = ""
        if config.plan:
            console.print(
                f"\n{len(jobs)} jobs: {describe_costs(cost for job in jobs for cost in job.costs)}", soft_wrap=True
            )
        elif config.status:
            root = Path(config.paths.root)
            print_status(tasks_under(root) if config.status == "all" else tasks, root, console)
            if config.status != "all":
                _print_notes(jobs, console)
        else:
            problem = _show(jobs, tasks, folder, console, Rule(**config.verdict))
            _compare(records, console)
            if config.report:
                from lt_lightning.report.writing import report_at_end  # slow to import

                report_at_end(folder, console)
        errors = [f"job {job.number}: {job.error}" for job in jobs if job.error]
        if config.plan or config.status:
            remove_output([*records, folder])
            problem = errors[0] if errors else ""
        if problem:
            sys.exit(f"error: {problem}")

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove Hydra's own files of a single plan or status."""
        if config.plan or config.status:
            remove_output([Path(config.hydra.run.dir)])


def _show(jobs: Sequence[JobRecord], tasks: Sequence[Task], folder: Path, console: Console, rule: Rule) -> str:
    """Print the table of the sweep, the verdicts and the failures, and return what is wrong in one line."""
    settings = settings_of([job.overrides for job in jobs])
    results = [
        (setting, result)
        for setting, job in zip(settings, jobs, strict=True)
        for task in job.tasks
        for result in results_of(task) or ()
    ]
    rows = aggregate(results, rule)
    extreme_rows = extremes(rows, rule)
    write_rows(folder / TABLE, Row, rows)
    write_rows(folder / EXTREMES, ExtremeRow, extreme_rows)
    console.print()
    if rows:
        # A file or a pipe does not limit the width.
        (console if console.is_terminal else Console(width=200)).print(aggregate_table(rows, rule))
    for line in verdict_lines(extreme_rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print_notes(jobs, console)
    states = [state_of(task) for task in tasks]
    console.print(f"{len(jobs)} jobs: {summary_of(states)}. Table: {folder / TABLE}", highlight=False, soft_wrap=True)
    problems = [
        f"{state.kind}: {state.task.folder}: {state.detail}" for state in states if state.kind in ("failed", "running")
    ]
    for job in jobs:
        if job.error and not job.tasks:
            overrides = " ".join(f"{key}={value}" for key, value in job.overrides.items())
            problems.append(f"failed: job {job.number} ({overrides}): {job.error}")
    for line in problems:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    unfinished = sum(state.kind != "done" for state in states)
    failed = sum(bool(job.error) for job in jobs)
    if not unfinished and not failed:
        return ""
    return f"{failed} of {len(jobs)} jobs failed, {unfinished} of {len(tasks)} tasks are not finished"


def _print_notes(jobs: Sequence[JobRecord], console: Console) -> None:
    """Print what the protocols of the jobs have to say, each line once."""
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _compare(records: Mapping[Path, JobRecord], console: Console) -> None:
    """Print each setting's results beside the published figures that its preset names.

    Args:
        records: records of the jobs, by folder.
        console: console to write to.
    """
    settings = settings_of([job.overrides for job in records.values()])
    groups: dict[tuple[str, str, str], tuple[Path, list[Result]]] = {}
    for setting, (folder, job) in zip(settings, records.items(), strict=True):
        path = folder / ".hydra" / "config.yaml"
        for result in (result for task in job.tasks for result in results_of(task) or ()):
            groups.setdefault((result.data, result.model, setting), (path, []))[1].append(result)
    for names, (path, results) in sorted(groups.items()):
        if path.is_file():
            config: Any = OmegaConf.to_container(OmegaConf.load(path))
            print_comparison(config, results, ", ".join(filter(None, names)), console)


def write_rows(path: Path, kind: type[Row] | type[ExtremeRow], rows: Sequence[Row] | Sequence[ExtremeRow]) -> None:
    """Write rows as CSV, with a column for each attribute."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def remove_output(folders: Iterable[Path]) -> None:
    """Remove the files that Hydra and the record have written for jobs that ran nothing, and no other files."""
    for folder in folders:
        for path in (folder / FILE, folder / "multirun.yaml", *(folder / ".hydra" / name for name in HYDRA_FILES)):
            path.unlink(missing_ok=True)
        for path in folder.glob("*.log"):
            if path.stat().st_size == 0:
                path.unlink()
        for each in (folder / ".hydra", folder, folder.parent):
            with suppress(OSError):  # the folder contains something else
                each.rmdir()
