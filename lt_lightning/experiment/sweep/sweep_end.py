"""The end of a Hydra multirun: its jobs' results over seeds, what failed and why; or its plan, or its status."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.files import replacing
from lt_lightning.results.aggregate import Row, aggregate, aggregate_table, settings_of
from lt_lightning.results.extremes import ExtremeRow, extremes, verdict_lines
from lt_lightning.results.job_record import FILE, JobRecord, Task, describe_costs
from lt_lightning.results.published_figures import print_comparison
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import print_status, state_of, summary_of, tasks_under
from lt_lightning.results.verdict import Rule

TABLE, EXTREMES = "sweep.csv", "extremes.csv"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class SweepEnd(Callback):
    """Hydra's callback that shows what the jobs of a sweep came to, and ends with an exit code that tells it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Records how many jobs there will be, unless nothing is to be run."""
        if not config.plan and not config.status:
            Multirun.begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table, the plan or the status.

        Raises:
            SystemExit: with a line that says how many tasks or jobs are not finished, if any are.
        """
        folder = Path(config.hydra.sweep.dir)
        records = [path.parent for path in folder.rglob(FILE)]
        jobs = sorted((JobRecord.load(record) for record in records), key=lambda job: job.number)
        console = Console()
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
                from lt_lightning.report.writing import report_at_end  # which reads this module's records

                report_at_end(folder, console)
        errors = [f"job {job.number}: {job.error}" for job in jobs if job.error]
        if config.plan or config.status:
            remove_output([*records, folder])
            problem = errors[0] if errors else ""
        if problem:
            sys.exit(f"error: {problem}")

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Of a single plan or status Hydra's own files are not kept."""
        if config.plan or config.status:
            remove_output([Path(config.hydra.run.dir)])


def _show(jobs: Sequence[JobRecord], tasks: Sequence[Task], folder: Path, console: Console, rule: Rule) -> str:
    """Prints the table of the sweep, the verdicts and what failed, and returns what is wrong in one line."""
    settings = settings_of([job.overrides for job in jobs])
    results = [
        (setting, result)
        for setting, job in zip(settings, jobs, strict=True)
        for task in job.tasks
        for result in results_of(task) or ()
    ]
    rows = aggregate(results, rule)
    found = extremes(rows, rule)
    write_rows(folder / TABLE, Row, rows)
    write_rows(folder / EXTREMES, ExtremeRow, found)
    console.print()
    if rows:
        # A file or pipe has no width to keep to.
        (console if console.is_terminal else Console(width=200)).print(aggregate_table(rows, rule))
    for line in verdict_lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print_notes(jobs, console)
    states = [state_of(task) for task in tasks]
    console.print(f"{len(jobs)} jobs: {summary_of(states)}. Table: {folder / TABLE}", highlight=False, soft_wrap=True)
    wrong = [
        f"{state.kind}: {state.task.folder}: {state.told}" for state in states if state.kind in ("failed", "running")
    ]
    wrong += [f"failed: job {job.number} ({_named(job)}): {job.error}" for job in jobs if job.error and not job.tasks]
    for line in wrong:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    unfinished = sum(state.kind != "done" for state in states)
    broken = sum(bool(job.error) for job in jobs)
    if not unfinished and not broken:
        return ""
    return f"{broken} of {len(jobs)} jobs failed, {unfinished} of {len(tasks)} tasks are not finished"


def _print_notes(jobs: Sequence[JobRecord], console: Console) -> None:
    """Print what the protocols of the jobs have to say, each line once."""
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _compare(records: Sequence[Path], console: Console) -> None:
    """Prints each setting's results beside the published figures that its preset names."""
    found = [(JobRecord.load(folder), folder / ".hydra" / "config.yaml") for folder in records]
    groups: dict[tuple[str, str, str], tuple[Path, list[Result]]] = {}
    for setting, (job, path) in zip(settings_of([job.overrides for job, _ in found]), found, strict=True):
        for result in (result for task in job.tasks for result in results_of(task) or ()):
            groups.setdefault((result.data, result.model, setting), (path, []))[1].append(result)
    for names, (path, results) in sorted(groups.items()):
        if path.is_file():
            config = OmegaConf.load(path)
            assert isinstance(config, DictConfig)
            print_comparison(config, results, ", ".join(filter(None, names)), console)


def _named(job: JobRecord) -> str:
    return " ".join(f"{key}={value}" for key, value in job.overrides.items())


def write_rows(path: Path, kind: type[Row] | type[ExtremeRow], rows: Sequence[Row] | Sequence[ExtremeRow]) -> None:
    """Writes rows as CSV, a column for each attribute."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def remove_output(folders: Iterable[Path]) -> None:
    """Removes what Hydra and the record wrote for jobs that ran nothing, and nothing else."""
    for folder in folders:
        for path in (folder / FILE, folder / "multirun.yaml", *(folder / ".hydra" / name for name in HYDRA_FILES)):
            path.unlink(missing_ok=True)
        for path in folder.glob("*.log"):
            if path.stat().st_size == 0:
                path.unlink()
        for each in (folder / ".hydra", folder, folder.parent):
            with suppress(OSError):  # not empty: something else is there
                each.rmdir()
