"""The experiment: search, structure, retrain, test, and show what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from lt_lightning.experiment.config.fingerprint import check_data
from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import Task
from lt_lightning.results.locks import tidy
from lt_lightning.results.published_figures import figures_of
from lt_lightning.results.records import SUMMARY, Result, has_summary, write_summary
from lt_lightning.results.tables import print_comparison, results_table
from lt_lightning.storage.files import read_json
from lt_lightning.storage.layout import TICKET, UNSTRUCTURED, round_folder, trained_rounds


def run_job(job: Job, console: Console) -> list[Result]:
    """Run what a job asks for, as far as it is not there yet, and show what came out.

    Several processes may be given the same job: they share the work, and each returns when all of it is done.

    Returns:
        A result for the dense network, every round's unstructured ticket and every retrained one.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible.
        Exception: what a task raised, after all others are finished; an `ExceptionGroup` if several did.
    """
    check_published(job)
    if job.needed and not job.is_finished:
        from lt_lightning.experiment.run.setup import built  # slow to import, like all that needs Lightning

        built(job)  # what is wrong with the job is said before another search is trained for it
    for needed in job.needed:
        console.print(f"[bold]{needed.title}[/]: a search that this job needs first", soft_wrap=True)
        run_job(needed, console)
    check_collapse(job)
    for task in job.tasks:
        tidy(task.folder)  # also where a killed job has finished everything
    failed: Mapping[Task, Exception] = {}
    if job.is_finished:
        check_data(job.tasks[0].folder, job.config)
    else:
        # slow to import, like all that needs Lightning
        from lt_lightning.experiment.run.scheduler import run_in_processes, run_tasks
        from lt_lightning.experiment.run.setup import built, show_setup

        experiment = built(job)
        check_data(experiment.search_folder, job.config, experiment.data)
        show_setup(job, experiment, console)
        run = run_in_processes if experiment.needs_processes else run_tasks
        failed = run(experiment, job, console)
    time_missing(job, console)
    results = show_job(job, console)
    if failed:
        errors, count = list(failed.values()), len(job.asked())
        raise errors[0] if len(errors) == 1 else ExceptionGroup(f"{len(errors)} of {count} tasks failed", errors)
    return results


def time_missing(job: Job, console: Console) -> None:
    """Measure times that are asked for and that finished results lack, since they were trained with `measure=null`."""
    untimed = [result for result in job.results() if math.isnan(result.time_ratio_inference)]
    if not untimed or job.options.measure is None:
        return
    # slow to import, like all that needs Lightning
    from lt_lightning.experiment.run.measuring import time_results
    from lt_lightning.experiment.run.setup import built

    time_results(built(job), untimed, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


def check_published(job: Job) -> None:
    """Refuse published figures that cannot be set beside results.

    Raises:
        ValueError: naming the figures.
    """
    plain: Any = OmegaConf.to_container(job.config)
    figures_of(plain["published"] or {})


def check_collapse(job: Job) -> None:
    """Refuse `pruning.on_collapse=stop` where the search has gone on, under `warn`, with a layer without weights.

    Raises:
        ValueError: naming the search, the round and the layers.
    """
    if job.config.pruning.get("on_collapse") != "stop":
        return
    search = job.tasks[0].folder
    for number in trained_rounds(search):
        card = round_folder(search, number) / UNSTRUCTURED / f"{TICKET}.json"
        layers: dict[str, Any] = read_json(card).get("layers", {}) if card.is_file() else {}
        if empty := [name for name, report in layers.items() if report["kept"] == 0]:
            raise ValueError(
                f"pruning.on_collapse='stop': {search} has gone on under warn, and in its round {number} no weight is "
                f"left in {', '.join(empty)}; prune less, or choose another paths.root"
            )


def show_job(job: Job, console: Console) -> list[Result]:
    """Print the table of the results, what protocols have to say, and where everything is; return the results."""
    root, search = Path(job.config.paths.root), job.tasks[0].folder
    if results := job.results():
        console.print(results_table(results, job.title, console.width))
        for note in job.notes():
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        plain: Any = OmegaConf.to_container(job.config)
        print_comparison(plain, results, job.title, console)
        if not has_summary(root):
            write_summary(root)
    written = {"Tickets": search, "Table": root / SUMMARY}
    if "wandb" in job.config.logger:
        written["W&B"] = root / "wandb"
    for what, where in written.items():
        if where.exists():
            console.print(f"{what + ':':9}{where}", markup=False, highlight=False, soft_wrap=True)
    return results
