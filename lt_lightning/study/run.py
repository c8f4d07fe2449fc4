"""The main job: search, structure, retrain, test, and show what came out."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from lt_lightning.study.cells import run_cell
from lt_lightning.study.plots import plot_accuracy
from lt_lightning.study.progress import JobProgress
from lt_lightning.study.results import Result, write_summary
from lt_lightning.study.search import run_search, search_results
from lt_lightning.study.study import Study
from lt_lightning.study.table import results_table


def run(config: DictConfig) -> list[Result]:
    """Runs what the configuration asks for, as far as it is not there yet.

    Returns:
        a result for the dense network, every round's unstructured ticket and every structured one.

    Raises:
        ValueError: before anything is trained, if the configuration asks for something impossible.
    """
    study = Study.from_config(config)
    console = Console()
    _announce(study, console)
    with JobProgress(_epochs_left(study), console) as job:
        results = run_search(study, job)
        write_summary(study.root)
        for number, structure in study.cells():
            results.append(run_cell(study, number, structure, results[0].accuracy, job))
            write_summary(study.root)
    _show(study, results, console)
    return results


def _epochs_left(study: Study) -> int:
    """Epochs of all trainings that are not finished."""
    lengths = study.expected_lengths()
    cells = [number for number, name in study.cells() if Result.load(study.cell_folder(number, name)) is None]
    return (sum(lengths) if search_results(study) is None else 0) + sum(lengths[number] for number in cells)


def _announce(study: Study, console: Console) -> None:
    names = ", ".join(study.structures) or "no structure"
    console.print(
        f"{study.labels['data']} with {study.labels['model']}, seed {study.labels['seed']}: the dense network and "
        f"{study.rounds} rounds of pruning; {names} for every round.\nEverything is written under {study.root}.",
        markup=False,
        highlight=False,
    )


def _show(study: Study, results: list[Result], console: Console) -> None:
    title = f"{study.labels['data']}, {study.labels['model']}, seed {study.labels['seed']}"
    picture = study.search_folder / "accuracy.png"
    plot_accuracy(results, picture, title)
    console.print(results_table(results, title))
    written = {"Tickets": study.search_folder, "Table": study.root / "summary.csv", "Plot": picture}
    if "wandb" in study.config.logger:
        written["W&B"] = study.root / "wandb"
    for what, where in written.items():
        console.print(f"{what + ':':9}{where}", markup=False, highlight=False)
