"""A sweep as its jobs see it, and the callback that Hydra calls when it begins and ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from lt_lightning.experiment.config.fingerprint import hash_of
from lt_lightning.results.aggregate import ExtremeRow, Row, aggregate, extremes, settings_of, verdict_lines
from lt_lightning.results.job_record import FILE as JOB
from lt_lightning.results.job_record import JobRecord, Task, describe_costs
from lt_lightning.results.records import Result, has_summary, results_of, write_summary
from lt_lightning.results.status import state_of, summary_of
from lt_lightning.results.tables import aggregate_table, print_comparison
from lt_lightning.results.verdict import Rule
from lt_lightning.storage.files import read_json, write_csv, write_json

FILE = "sweep.json"
KEY = "sweep"  # key of the sweep's folder in a job's configuration
# Files to which every job adds one byte at its end, so that counting the jobs needs none of their records.
ENDED, TRAINED = "jobs_ended", "jobs_trained"


@dataclass(frozen=True)
class Multirun:
    """A sweep that has begun.

    Attributes:
        folder: folder of the sweep.
        name: name that all sweeps with the same overrides have, such as `cifar10_vgg16-1a2b3c4d`.
        jobs: number of its jobs; None if it is unknown.
        start: time when this attempt began, in seconds of the system's clock.
    """

    folder: Path
    name: str
    jobs: int | None
    start: float

    @classmethod
    def begin(cls, config: DictConfig) -> Multirun:
        """Record a sweep in its folder.

        Args:
            config: configuration that Hydra gives to `on_multirun_start`, with its own node `hydra`.
        """
        sweeper, task = config.hydra.sweeper, list(config.hydra.overrides.task)
        choices = config.hydra.runtime.choices  # `labels`, which name the choices, cannot be resolved yet
        title = choices.get("experiment") or f"{choices.data}-{choices.model}"
        overrides = sorted(override for override in task if not override.startswith("paths."))
        name = f"{title}-{hash_of({'sweep': overrides})}"
        sweep = cls(Path(config.hydra.sweep.dir), name, count_jobs(sweeper, task), time.time())
        sweep.save()
        return sweep

    def save(self) -> None:
        """Write the record of the sweep into its folder."""
        write_json(self.folder / FILE, {"name": self.name, "jobs": self.jobs, "start": self.start})

    @classmethod
    def above(cls, path: Path) -> Multirun | None:
        """Return the sweep whose folder contains a path; None if there is none."""
        for parent in path.parents:
            if (parent / FILE).is_file():
                return cls(folder=parent, **read_json(parent / FILE))
        return None

    @classmethod
    def of(cls, config: DictConfig) -> Multirun | None:
        """Return the sweep that a job's configuration names; None for a single job."""
        return None if (folder := config.get(KEY)) is None else cls.above(Path(folder) / JOB)

    def enter(self, config: DictConfig) -> None:
        """Name the sweep in a job's configuration, which goes wherever the job goes: into processes, and to disk."""
        with open_dict(config):
            config[KEY] = str(self.folder)

    def count_end(self, trained: bool) -> None:
        """Count a job that has ended.

        Args:
            trained: whether it had something to train.
        """
        for name in (ENDED, *[TRAINED] * trained):
            with (self.folder / name).open("ab") as file:
                file.write(b".")

    def ended(self) -> tuple[int, int]:
        """Return how many jobs have ended, and how many of them had something to train."""
        files = (self.folder / ENDED, self.folder / TRAINED)
        ended, trained = (file.stat().st_size if file.is_file() else 0 for file in files)
        return ended, trained

    def seconds_left(self, share: float, ended: tuple[int, int]) -> float:
        """Return the seconds that the sweep still takes, if the jobs to come train as much as the others; NaN: unknown.

        Args:
            share: share of the current job that is done.
            ended: what `ended` has returned.
        """
        done = ended[1] + share
        if self.jobs is None or done <= 0:
            return math.nan
        return (time.time() - self.start) / done * max(0.0, self.jobs - ended[0] - share)


def count_jobs(sweeper: Any, overrides: list[str]) -> int | None:
    """Return the number of jobs that Hydra's own sweeper or Optuna's makes of these overrides; None if it is unknown.

    >>> count_jobs({"params": {"seed": "0,1", "model": "a,b"}}, ["seed=range(0,5)", "data=digits"])
    10
    """
    if "n_trials" in sweeper:
        return int(sweeper["n_trials"])
    named = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    counts: dict[str, int] = {}
    try:
        for override in OverridesParser.create().parse_overrides([*named, *overrides]):
            values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [None]
            counts[override.get_key_element()] = len(values)
    except (HydraException, ValueError, TypeError):  # a glob, which needs the groups themselves
        return None
    return math.prod(counts.values())


# The callback that Hydra calls when a multirun begins and ends, and when a single run ends.

HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class SweepEnd(Callback):
    """A Hydra callback that shows the outcome of a sweep's jobs, and fails if some of them are not finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record how many jobs there will be, unless nothing is to be run."""
        if not config.plan and not config.status:
            Multirun.begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, the plan or the status.

        Raises:
            SystemExit: with one line, if a job failed or a task is not finished.
        """
        # Slow to import, and Hydra makes this callback for single runs, too.
        from lt_lightning.results.status import print_status, tasks_under
        from lt_lightning.results.verdict import Rule

        folder = Path(config.hydra.sweep.dir)
        loaded = [(path.parent, JobRecord.load(path.parent)) for path in folder.rglob(JOB)]
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
                print_notes(jobs, console)
        else:
            problem = show_sweep(jobs, tasks, folder, console, Rule(**config.verdict))
            show_published(records, console)
            if has_summary(root := Path(config.paths.root)):
                write_summary(root)
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


def remove_output(folders: Iterable[Path]) -> None:
    """Remove the files that Hydra and the record have written for jobs that ran nothing, and no other files."""
    for folder in folders:
        for path in (folder / JOB, folder / "multirun.yaml", *(folder / ".hydra" / name for name in HYDRA_FILES)):
            path.unlink(missing_ok=True)
        for path in folder.glob("*.log"):
            if path.stat().st_size == 0:
                path.unlink()
        for each in (folder / ".hydra", folder, folder.parent):
            with suppress(OSError):  # the folder contains something else
                each.rmdir()


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
    write_csv(path, [field.name for field in fields(kind)], map(astuple, rows))
