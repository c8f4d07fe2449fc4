"""The end of a Hydra multirun: its jobs' results over seeds, what failed and why; or its plan, or its status."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.experiment.protocols.bisection import EXPLAINED, asked, bracket_lines
from lt_lightning.experiment.protocols.stages import tasks_under
from lt_lightning.experiment.run.plan import Cost, told
from lt_lightning.experiment.sweep.multirun import JOB as FILE
from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.files import read_json, replacing, write_json
from lt_lightning.results.aggregate import Row, aggregate, aggregate_table, settings_of
from lt_lightning.results.extremes import ExtremeRow, extremes, verdict_lines
from lt_lightning.results.paths import Task
from lt_lightning.results.published_figures import print_comparison
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import print_status, state_of, summary_of
from lt_lightning.results.verdict import Rule

TABLE, EXTREMES = "sweep.csv", "extremes.csv"
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


@dataclass(frozen=True)
class Job:
    """The record of one job of a sweep, in the job's own folder.

    Attributes:
        number: of the job.
        overrides: that make it, by key.
        tasks: that it consists of.
        error: what went wrong, in one line; empty if nothing did.
        costs: what it would cost, if it was planned.
        bisect: whether it bisects, and so asks for some of its tasks only.
        trained: whether it had something to train; None until it has ended.
        screened: epochs of its screening, whose tasks are the first; 0 if it has none.
    """

    number: int
    overrides: dict[str, str]
    tasks: tuple[Task, ...] = ()
    error: str = ""
    costs: tuple[Cost, ...] = ()
    bisect: bool = False
    trained: bool | None = None
    screened: int = 0

    def stage_of(self, task: Task) -> str:
        """What tells tasks of a screening apart from others: `screening of 20 epochs`."""
        first = self.screened and task.folder.is_relative_to(self.tasks[0].folder)
        return f"screening of {self.screened} epochs" if first else ""

    @property
    def asked(self) -> list[Task]:
        """The tasks that it asks for, as far as is known by now."""
        return asked(self.tasks, self.bisect)

    def save(self, folder: Path) -> None:
        """Writes the record."""
        values = asdict(self)
        for task in values["tasks"]:
            task.update(folder=str(task["folder"]), parts=[str(part) for part in task["parts"]])
            task["source"] = task["source"] and str(task["source"])
        write_json(folder / FILE, values)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Reads the record.

        Raises:
            ValueError: if it is damaged.
        """
        values: dict[str, Any] = read_json(folder / FILE)
        for task in values["tasks"]:
            task.update(folder=Path(task["folder"]), parts=tuple(Path(part) for part in task["parts"]))
            task["source"] = task["source"] and Path(task["source"])
        values["tasks"] = tuple(Task(**task) for task in values["tasks"])
        values["costs"] = tuple(Cost(**cost) for cost in values["costs"])
        return cls(**values)


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
        jobs = sorted((Job.load(record) for record in records), key=lambda job: job.number)
        console = Console()
        tasks = list(dict.fromkeys(task for job in jobs for task in job.asked))
        problem = ""
        if config.plan:
            console.print(f"\n{len(jobs)} jobs: {told(cost for job in jobs for cost in job.costs)}", soft_wrap=True)
        elif config.status:
            root = Path(config.paths.root)
            print_status(tasks_under(root) if config.status == "all" else tasks, root, console)
            if config.status != "all":
                _print_brackets(jobs, console)
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


def _show(jobs: Sequence[Job], tasks: Sequence[Task], folder: Path, console: Console, rule: Rule) -> str:
    """Prints the table of the sweep, the verdicts and what failed, and returns what is wrong in one line."""
    settings = settings_of([job.overrides for job in jobs])
    results = [
        (", ".join(filter(None, (setting, job.stage_of(task)))), result)
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
    _print_brackets(jobs, console)
    if any(job.screened for job in jobs):
        console.print(
            "Rows of a screening compare tickets and dense networks of its short trainings; only confirmed tickets are "
            "compared with the fully trained dense network.", soft_wrap=True,
        )  # fmt: skip
    if any(job.bisect or job.screened for job in jobs) and any(row.seeds > 1 for row in found):
        console.print("Their rounds were chosen by what came out, so verdicts may err more often than intervals say.")
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


def _print_brackets(jobs: Sequence[Job], console: Console) -> None:
    """Prints what each job that bisects has found, if there are any."""
    lines = dict.fromkeys(line for job in jobs if job.bisect for line in bracket_lines(job.tasks))
    for line in (EXPLAINED, *lines) if lines else ():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _compare(records: Sequence[Path], console: Console) -> None:
    """Prints each setting's results beside the published figures that its preset names."""
    found = [(Job.load(folder), folder / ".hydra" / "config.yaml") for folder in records]
    groups: dict[tuple[str, str, str], tuple[Path, list[Result]]] = {}
    for setting, (job, path) in zip(settings_of([job.overrides for job, _ in found]), found, strict=True):
        settled = [task for task in job.tasks if not job.stage_of(task)]
        for result in (result for task in settled for result in results_of(task) or ()):
            groups.setdefault((result.data, result.model, setting), (path, []))[1].append(result)
    for names, (path, results) in sorted(groups.items()):
        if path.is_file():
            config = OmegaConf.load(path)
            assert isinstance(config, DictConfig)
            print_comparison(config, results, ", ".join(filter(None, names)), console)


def _named(job: Job) -> str:
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
