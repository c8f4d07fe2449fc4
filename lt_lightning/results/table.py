"""The table that a job ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lt_lightning.results.aggregate import name_of
from lt_lightning.results.records import Result
from lt_lightning.tables import number


def results_table(results: Sequence[Result], title: str) -> Table:
    """One row per ticket, its controls below it, ordered by round.

    Accuracies are in per cent, differences to the dense network in points.
    """
    table = Table(title=title, caption=_caption(results), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("round", "ticket", "density", "accuracy", "vs dense", "params", "FLOPs", "infer", "train"):
        table.add_column(heading, justify="left" if heading == "ticket" else "right", no_wrap=True)
    structures = list(dict.fromkeys(result.structure for result in results))
    ordered = sorted(results, key=lambda r: (r.round, structures.index(r.structure), bool(r.control)))
    for index, result in enumerate(ordered):
        last_of_round = index + 1 == len(ordered) or ordered[index + 1].round != result.round
        table.add_row(*_row(result), end_section=last_of_round)
    return table


def _row(result: Result) -> list[str]:
    points = 100 * (result.accuracy - result.dense_accuracy)
    return [
        str(result.round),
        name_of(result),
        f"{result.density:.1%}",
        f"{result.accuracy:.2%}",
        "" if result.round == 0 else f"{points:+.2f}",
        f"{result.params_ratio:.2f}",
        f"{result.flops_ratio:.2f}",
        number(result.time_ratio_inference, ".2f"),
        number(result.time_ratio_training, ".2f"),
    ]


def _caption(results: Sequence[Result]) -> str:
    seeds = len({result.seed for result in results})
    verdict = "One seed: no verdict. " if seeds == 1 else ""
    return (
        f"{verdict}Density: share of the prunable weights that the ticket executes (an unstructured one keeps them but "
        "runs whole). Parameters, FLOPs, measured time of inference and of a training step: whole network, dense = 1."
    )
