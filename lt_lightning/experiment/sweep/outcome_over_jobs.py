"""What the jobs of a sweep came to: results over seeds, verdicts, published figures, and what failed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from lt_lightning.results.aggregate import ExtremeRow, Row, aggregate, extremes, settings_of, verdict_lines
from lt_lightning.results.job_record import JobRecord, Task
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import state_of, summary_of
from lt_lightning.results.tables import aggregate_table, print_comparison
from lt_lightning.results.verdict import Rule
from lt_lightning.storage.files import replacing

TABLE, EXTREMES = "sweep.csv", "extremes.csv"


def show_sweep(jobs: Sequence[JobRecord], tasks: Sequence[Task], folder: Path, console: Console, rule: Rule) -> str:
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
    print_notes(jobs, console)
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


def print_notes(jobs: Sequence[JobRecord], console: Console) -> None:
    """Print what the protocols of the jobs have to say, each line once."""
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def show_published(records: Mapping[Path, JobRecord], console: Console) -> None:
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
