"""A job as the command line asks for it: run, planned, or its status; alone or as one of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.tasks import tasks_of
from lt_lightning.experiment.protocols.bisection import asked_of, bisects, bracket_lines
from lt_lightning.experiment.protocols.screening import screens
from lt_lightning.experiment.protocols.stages import all_tasks_of, stages_of, tasks_under
from lt_lightning.experiment.run.plan import Cost, told
from lt_lightning.experiment.run.run import run, title_of
from lt_lightning.experiment.sweep.multirun import Multirun
from lt_lightning.experiment.sweep.sweep_end import Job
from lt_lightning.report.writing import report_at_end
from lt_lightning.results.failures import EXPECTED, Failure
from lt_lightning.results.paths import is_confirmed
from lt_lightning.results.records import Result, results_of
from lt_lightning.results.status import print_status

Request = Literal["run", "plan", "status"]


def do(config: DictConfig) -> list[Result]:
    """Does what one command asks for.

    Returns:
        the results, if it asked to run.

    Raises:
        ValueError: if `plan`, `status` or `report` has an impossible value.
        Exception: see `run`.
    """
    request = request_of(config)
    if request == "run":
        return _run_and_report(config)
    console = Console()
    if request == "plan":
        console.print(f"{title_of(config)}: {told(_costs(config))}", markup=False, highlight=False, soft_wrap=True)
    else:
        root = Path(config.paths.root)
        asked = [task for stage in stages_of(config) for task in asked_of(stage.config)]
        print_status(tasks_under(root) if config.status == "all" else asked, root, console)
        if config.status != "all" and bisects(config):
            for line in bracket_lines(all_tasks_of(config)):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    return []


def _run_and_report(config: DictConfig) -> list[Result]:
    folders = [tasks_of(stage.config)[0].folder for stage in stages_of(config) if stage.own]
    try:
        results = run(config)
    except Exception:  # of what is there nevertheless
        _report(config, folders)
        raise
    _report(config, folders)
    return results


def _report(config: DictConfig, folders: Sequence[Path]) -> None:
    if config.report:
        for folder in folders:
            report_at_end(folder, Console())


def do_in_sweep(config: DictConfig, number: int, overrides: Sequence[str], folder: Path) -> float:
    """Does one job of a sweep; what goes wrong is told and recorded for the sweep's end, and stops no other job.

    Args:
        config: of the job.
        number: of the job.
        overrides: that make it, as on the command line.
        folder: of the job, for its record.

    Returns:
        What a sweeper may maximise: the mean validation accuracy of the last round's tickets (the test set is not
        for choosing); NaN if there are none.
    """
    console = Console()
    job = Job(number, _by_key(overrides))
    try:
        request = request_of(config)
        job = replace(job, tasks=tuple(all_tasks_of(config)), bisect=bisects(config), screened=screens(config) or 0)
        job.save(folder)
        if request == "plan":
            job = replace(job, costs=tuple(_costs(config)))
            job.save(folder)
            console.print(told(job.costs), highlight=False, soft_wrap=True)
        if request != "run":
            return math.nan
        if (sweep := Multirun.above(folder)) is not None:
            sweep.enter(config)
        trains = any(results_of(task) is None for task in job.asked)
        try:
            value = objective(run(config))
        finally:
            job = replace(job, tasks=tuple(all_tasks_of(config)))  # a screening tells what is confirmed
        replace(job, trained=trains).save(folder)
        return value
    except Exception as error:
        failure = Failure.of(error)
        trace = "" if isinstance(error, EXPECTED) else f"\n{failure.traceback}"
        console.print(f"job {number} FAILED: {failure.error}{trace}", markup=False, highlight=False, soft_wrap=True)
        replace(job, error=failure.error, trained=True).save(folder)
        return math.nan


def objective(results: Sequence[Result]) -> float:
    """Mean validation accuracy of the last round's tickets; NaN without any.

    Of a job that screens it is that of the screening: which rounds are confirmed differs from job to job.
    """
    results = [result for result in results if not is_confirmed(result.structure)]
    last = max((result.round for result in results), default=0)
    values = [result.val_accuracy for result in results if result.round == last and not result.control]
    return sum(values) / len(values) if values else math.nan


def request_of(config: DictConfig) -> Request:
    """What the command asks for.

    Raises:
        ValueError: if `plan`, `status` or `report` has an impossible value.
    """
    if config.plan not in (True, False):
        raise ValueError(f"plan={config.plan!r} is neither true nor false")
    if config.status not in (True, False, "all"):
        raise ValueError(f"status={config.status!r} is neither true, false nor all")
    if config.report not in (True, False):
        raise ValueError(f"report={config.report!r} is neither true nor false")
    if config.plan and config.status:
        raise ValueError(f"plan=true and status={config.status!r} are two requests: ask for one")
    return "plan" if config.plan else "status" if config.status else "run"


def _costs(config: DictConfig) -> list[Cost]:
    from lt_lightning.experiment.run.costs import costs_of  # slow to import, as all that needs Lightning
    from lt_lightning.experiment.run.experiment import Experiment
    from lt_lightning.training.lightning_internals import quieten

    quieten()
    return [
        cost
        for stage in stages_of(config, at_most=True)
        for cost in costs_of(Experiment.from_config(stage.config), tasks_of(stage.config), stage.open)
    ]


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    parted = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parted}
