"""Hydra's callback at the ends of a multirun and of a single run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.results.job_record import FILE, JobRecord, describe_costs

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
        # Slow to import, and Hydra makes this callback for single runs, too.
        from lt_lightning.experiment.sweep.outcome_over_jobs import compare, print_notes, show
        from lt_lightning.results.status import print_status, tasks_under
        from lt_lightning.results.verdict import Rule

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
                print_notes(jobs, console)
        else:
            problem = show(jobs, tasks, folder, console, Rule(**config.verdict))
            compare(records, console)
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
        for path in (folder / FILE, folder / "multirun.yaml", *(folder / ".hydra" / name for name in HYDRA_FILES)):
            path.unlink(missing_ok=True)
        for path in folder.glob("*.log"):
            if path.stat().st_size == 0:
                path.unlink()
        for each in (folder / ".hydra", folder, folder.parent):
            with suppress(OSError):  # the folder contains something else
                each.rmdir()
