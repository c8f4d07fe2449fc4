"""The main job: search, structure, retrain, test, and show what came out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.experiment.config.checks import check_options
from lt_lightning.experiment.config.tasks import CONFIRM, retrained_rounds, retrainings_of, rounds_of, tasks_of
from lt_lightning.experiment.protocols.bisection import EXPLAINED, asked, bisects, bracket_lines
from lt_lightning.experiment.protocols.screening import explained, screens
from lt_lightning.experiment.protocols.stages import Stage, stages_of
from lt_lightning.results.locks import tidy
from lt_lightning.results.paths import Task, unconfirmed
from lt_lightning.results.published_figures import figures_of, print_comparison
from lt_lightning.results.records import FILE, SUMMARY, Result, results_of, write_summary
from lt_lightning.results.table import results_table


def run(config: DictConfig) -> list[Result]:
    """Runs what the configuration asks for, as far as it is not there yet.

    Several processes may be given the same: they share the work, and each returns when all of it is done.

    Returns:
        a result for the dense network, every round's unstructured ticket and every structured one; of a job that
        screens those of its screening, and then the fully trained dense network and the confirmed tickets.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible.
        Exception: what a search or the training of a ticket raised, after all others are finished; an
            `ExceptionGroup` if several did.
    """
    figures_of(config)  # to be known wrong before anything is trained
    results: list[Result] = []
    failed: list[Exception] = []
    count = 0
    for stage in stages_of(config):
        if stage.confirms == 0:
            break  # there is nothing to go on with
        tasks, errors = _run(stage, config)
        failed += errors
        count += len(asked(tasks, bisects(stage.config)))
        if stage.own:
            results += [result for task in tasks for result in results_of(task) or ()]
        elif errors:
            break
    if screens(config):
        Console().print(explained(config), highlight=False, soft_wrap=True)
    if failed:
        raise _summed_up(failed, count)
    return results


def _run(stage: Stage, whole: DictConfig) -> tuple[list[Task], list[Exception]]:
    """Runs one stage of the whole job, shows what came out, and returns its tasks and what they raised."""
    config = stage.config
    tasks = tasks_of(config)
    for task in tasks:
        tidy(task.folder)
    failed: Mapping[Task, Exception] = {}
    if any(results_of(task) is None for task in asked(tasks, bisects(config))):
        from lt_lightning.experiment.run.device_processes import needs_processes, work_in_processes
        from lt_lightning.experiment.run.experiment import Experiment
        from lt_lightning.training.lightning_internals import quieten

        quieten()
        check_options(config)
        if not stage.own:
            Experiment.from_config(whole)  # what is wrong with it is told before another's search is trained for it
        if stage.told:
            Console().print(f"[bold]{stage.told}[/]:", highlight=False, soft_wrap=True)
        failed = (work_in_processes if needs_processes(config) else work)(config, tasks)
    _show(config, tasks, ": ".join(filter(None, (title_of(config), stage.told))))
    return tasks, list(failed.values())


def title_of(config: DictConfig) -> str:
    """Of a job, for people."""
    return f"{config.labels.data}, {config.labels.model}, seed {config.seed}"


def work(config: DictConfig, tasks: Sequence[Task], given_up: Collection[Task] = ()) -> Mapping[Task, Exception]:
    """Does what is open, but for what is given up, and returns what failed."""
    from lt_lightning.execution.timing import keep_freed_memory
    from lt_lightning.experiment.run.experiment import Experiment
    from lt_lightning.experiment.run.progress import JobProgress
    from lt_lightning.experiment.run.scheduler import Work
    from lt_lightning.experiment.run.setup import show_setup
    from lt_lightning.experiment.run.stopping import stoppable
    from lt_lightning.experiment.sweep.multirun import Multirun

    keep_freed_memory()
    experiment = Experiment.from_config(config)
    console = Console()
    if not given_up:
        _announce(config, console)
        show_setup(experiment, console)
    with stoppable(), JobProgress(0, console, Multirun.of(config)) as job:
        doing = Work(experiment, tasks, job, given_up)
        doing.run()
    return doing.failed


def _summed_up(errors: list[Exception], count: int) -> Exception:
    return errors[0] if len(errors) == 1 else ExceptionGroup(f"{len(errors)} of {count} tasks failed", errors)


def _announce(config: DictConfig, console: Console) -> None:
    console.print(
        f"{config.labels.data} with {config.labels.model}, seed {config.seed}: {_content(config)}.\n"
        f"Everything is written under {config.paths.root}.",
        markup=False,
        highlight=False,
    )


def _content(config: DictConfig) -> str:
    if CONFIRM in config:
        count = len(retrainings_of(config))
        return f"the dense network and {count} screened tickets for {config.trainer.max_epochs} epochs"
    pruned = f"the dense network and {rounds_of(config)} rounds of pruning"
    if not (rounds := retrained_rounds(config)):
        return pruned
    names = ", ".join(config.structure) or "no structure"
    which = "every round" if len(rounds) == rounds_of(config) else f"round {', '.join(map(str, rounds))}"
    which += ", bisected" * bisects(config)
    return f"{pruned}; {names} for {which}"


def _show(config: DictConfig, tasks: Sequence[Task], title: str) -> None:
    console = Console()
    found = [result for task in tasks for result in results_of(task) or ()]
    results = [replace(result, structure=unconfirmed(result.structure)) for result in found]  # the title tells
    root, search = Path(config.paths.root), tasks[0].folder
    if results:
        console.print(results_table(results, title))
        if bisects(config):
            for line in (EXPLAINED, *bracket_lines(tasks)):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        print_comparison(config, results, title, console)
        if _outdated(root / SUMMARY, tasks):
            write_summary(root)
    picture = search / "accuracy.png"
    if any(result.round == 0 for result in results) and _outdated(picture, tasks):
        from lt_lightning.report.pngs import draw_results

        draw_results(picture, title, results)
    written = {"Tickets": search, "Table": root / SUMMARY, "Plot": picture}
    if "wandb" in config.logger:
        written["W&B"] = root / "wandb"
    for what, where in written.items():
        if where.exists():
            console.print(f"{what + ':':9}{where}", markup=False, highlight=False, soft_wrap=True)


def _outdated(path: Path, tasks: Sequence[Task]) -> bool:
    """Whether a result is newer, since a job was killed right after writing that."""
    results = (part / FILE for task in tasks for part in task.parts)
    newest = max((result.stat().st_mtime_ns for result in results if result.is_file()), default=0)
    return not path.is_file() or path.stat().st_mtime_ns < newest
