"""The experiment: search, structure, retrain, test, and show what came out."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.tasks import retrained_rounds, rounds_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.results.locks import tidy
from lt_lightning.results.published_figures import figures_of, print_comparison
from lt_lightning.results.records import FILE, SUMMARY, Result, results_of, write_summary
from lt_lightning.results.table import results_table


def run(job: Job, console: Console) -> list[Result]:
    """Run what a job asks for, as far as it is not there yet, and show what came out.

    Several processes may be given the same job: they share the work, and each returns when all of it is done.

    Returns:
        A result for the dense network, every round's unstructured ticket and every retrained one.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible.
        Exception: what a task raised, after all others are finished; an `ExceptionGroup` if several did.
    """
    figures_of(job.config)  # refuses wrong figures before anything is trained
    for needed in job.needed:
        console.print(f"[bold]{needed.title}[/]: search that this job takes something of", soft_wrap=True)
        run(needed, console)
    failed = [] if job.is_finished else _train(job, console)
    _show(job, console)
    if failed:
        raise (
            failed[0]
            if len(failed) == 1
            else ExceptionGroup(f"{len(failed)} of {len(job.asked())} tasks failed", failed)
        )
    return job.results()


def _train(job: Job, console: Console) -> list[Exception]:
    """Build the parts of the experiment, check them, run the tasks, and return what went wrong."""
    from lt_lightning.experiment.parts import Experiment  # slow to import, like all that needs Lightning
    from lt_lightning.experiment.protocols import PROTOCOLS
    from lt_lightning.experiment.run.device_processes import run_tasks
    from lt_lightning.experiment.run.setup import show_setup

    for task in job.tasks:
        tidy(task.folder)
    experiment = Experiment.from_config(job.config)
    for protocol in PROTOCOLS:
        protocol.check(experiment)
    console.print(
        f"{job.config.labels.data} with {job.config.labels.model}, seed {job.config.seed}: {_content(job.config)}.\n"
        f"Everything is written under {job.config.paths.root}.",
        markup=False, highlight=False,
    )  # fmt: skip
    show_setup(experiment, console)
    return list(run_tasks(experiment, job, console).values())


def _content(config: DictConfig) -> str:
    pruned = f"the dense network and {rounds_of(config)} rounds of pruning"
    if not (rounds := retrained_rounds(config)):
        return pruned
    names = ", ".join(config.structure) or "no structure"
    which = "every round" if len(rounds) == rounds_of(config) else f"round {', '.join(map(str, rounds))}"
    return f"{pruned}; {names} for {which}"


def _show(job: Job, console: Console) -> None:
    """Print the table of the results, what protocols have to say, and where everything is."""
    root, search = Path(job.config.paths.root), job.tasks[0].folder
    if results := job.results():
        console.print(results_table(results, job.title))
        for note in job.notes():
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        print_comparison(job.config, results, job.title, console)
        if _is_outdated(root / SUMMARY, job):
            write_summary(root)
    written = {"Tickets": search, "Table": root / SUMMARY}
    if "wandb" in job.config.logger:
        written["W&B"] = root / "wandb"
    for what, where in written.items():
        if where.exists():
            console.print(f"{what + ':':9}{where}", markup=False, highlight=False, soft_wrap=True)


def _is_outdated(path: Path, job: Job) -> bool:
    """Whether a result is newer than a file, since a job was killed right after it had written the result."""
    files = (part / FILE for task in job.tasks if results_of(task) is not None for part in task.parts)
    newest = max((file.stat().st_mtime_ns for file in files), default=0)
    return not path.is_file() or path.stat().st_mtime_ns < newest
