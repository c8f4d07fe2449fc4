"""What one command asks for: to run a job, or to tell its plan or its status; alone or as one job of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import run_job
from lt_lightning.experiment.sweep import Multirun
from lt_lightning.results.failures import EXPECTED, Failure
from lt_lightning.results.job_record import Cost, JobRecord, describe_costs
from lt_lightning.results.records import Result

PATHS: Final = ("paths.root", "paths.data", "data.root", "pruning.imp", "transfer.from", "stability.networks")
NO_PATHS: Final = ("others", "dense")  # what stands in their place


def from_where_it_was_typed(config: DictConfig) -> None:
    """Let relative paths in a job's configuration begin where the command was typed, also with `hydra.job.chdir`."""
    typed_in = Path(HydraConfig.get().runtime.cwd)
    if Path.cwd() == typed_in:
        return

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(absolute, value))
        return value if value is None or value in NO_PATHS else str(typed_in / Path(value).expanduser())

    with open_dict(config):
        for key in PATHS:
            value = OmegaConf.select(config, key)
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            if plain != absolute(plain):
                OmegaConf.update(config, key, absolute(plain))


def do(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> list[Result]:
    """Do what one command asks for.

    Args:
        config: composed configuration.
        folder: folder of the job, for its record.
        overrides: overrides that make the job, as on the command line.

    Returns:
        The results, if it asked to run.

    Raises:
        ValueError: if an option has an impossible value.
        Exception: what `run_job` raises.
    """
    job, console = Job.of(config), Console()
    options, root = job.options, Path(job.options.paths.root)
    if not (options.plan or options.status):
        record = JobRecord(overrides=_by_key(overrides))
        _keep(job.record(record), folder)
        try:
            return run_job(job, console)
        finally:  # whatever is there
            _keep(job.record(record), folder)
            if options.report:
                from lt_lightning.report.writing import report_at_end  # slow to import

                report_at_end(job.tasks[0].folder, console)
    from lt_lightning.results.status import print_status, tasks_under  # for start-up time

    if options.plan:
        console.print(f"{job.title}: {describe_costs(_costs(job))}", markup=False, highlight=False, soft_wrap=True)
    elif options.status == "all":
        print_status(tasks_under(root), root, console)
    else:
        print_status([task for each in (*job.needed, job) for task in each.asked()], root, console)
        for note in job.notes():
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return []


def do_in_sweep(config: DictConfig, number: int, overrides: Sequence[str], folder: Path) -> float:
    """Do one job of a sweep; an error is printed and recorded for the sweep's end, and stops no other job.

    Args:
        config: configuration of the job.
        number: number of the job.
        overrides: overrides that make the job, as on the command line.
        folder: folder of the job, for its record.

    Returns:
        What a sweeper may maximise: the mean validation accuracy of the last round's tickets (the test set is not
        for choosing); NaN if there are none.
    """
    console, record, sweep = Console(), JobRecord(number, _by_key(overrides)), Multirun.above(folder)
    try:
        job = Job.of(config)
        record = job.record(record)
        record.save(folder)
        if job.options.plan:
            record = replace(record, costs=tuple(_costs(job)))
            record.save(folder)
            console.print(describe_costs(record.costs), highlight=False, soft_wrap=True)
        if job.options.plan or job.options.status:
            return math.nan
        record.note(folder)
        if sweep is not None:
            sweep.enter(job.config)
        trains = not job.is_finished
        try:
            value = objective(run_job(job, console))
        finally:
            record = job.record(record)
        _end(replace(record, trained=trains), folder, sweep)
        return value
    except Exception as error:
        failure = Failure.of(error)
        trace = "" if isinstance(error, EXPECTED) else f"\n{failure.traceback}"
        console.print(f"job {number} FAILED: {failure.error}{trace}", markup=False, highlight=False, soft_wrap=True)
        _end(replace(record, error=failure.error, trained=True), folder, sweep)
        from lt_lightning.training.processes import out_of_step  # for start-up time

        if out_of_step():
            raise SystemExit(1) from error
        return math.nan


def _keep(record: JobRecord, folder: Path) -> None:
    record.save(folder)
    record.note(folder)


def _end(record: JobRecord, folder: Path, sweep: Multirun | None) -> None:
    _keep(record, folder)
    if sweep is not None:
        sweep.count_end(bool(record.trained))


def objective(results: Sequence[Result]) -> float:
    """Return the mean validation accuracy of the last round's tickets; NaN without any."""
    last = max((result.round for result in results), default=0)
    values = [result.val_accuracy for result in results if result.round == last and not result.control]
    return sum(values) / len(values) if values else math.nan


def _costs(job: Job) -> list[Cost]:
    from lt_lightning.experiment.run.costs import costs_of  # slow to import, like all that needs Lightning

    return [cost for each in (*job.needed, job) for cost in costs_of(each)]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}
