"""Where the time of the search went, and what it cost in dense trainings."""

from __future__ import annotations

from collections.abc import Sequence

from lt_lightning.report.costs import WHOLE, costs_of
from lt_lightning.report.figures import time_figure
from lt_lightning.report.found import Search
from lt_lightning.report.page import Page, paragraph, table
from lt_lightning.tables import number


def add_costs(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part, if anything was trained."""
    costs = {search.folder.name: found for search in searches if (found := costs_of(search))}
    if not costs:
        return
    about = (
        "Wall time of the trainings, without tests and measurements; a dense training is that of round 0. The paper "
        "counts trainings, whatever each takes: one a round, the dense one included, and one a ticket; those that are "
        "rewound are shorter, and those of smaller networks faster."
    )
    lines = [
        (name, cost.part, str(cost.trainings), f"{cost.seconds:.1f}", number(cost.in_dense, ".2f"))
        for name, found in costs.items()
        for cost in found
    ]
    parts = {name: {cost.part: cost.seconds for cost in found if cost.part != WHOLE} for name, found in costs.items()}
    headings = ("search", "part", "trainings, the paper's count", "seconds", "in dense trainings")
    marked = [index for index, line in enumerate(lines) if line[1] == WHOLE]
    first = int(len(costs) == 1)  # column: a single search needs none
    page.add(
        "costs", "Time", paragraph(about), page.figure(time_figure(parts)),
        table(headings[first:], [line[first:] for line in lines], left=range(2 - first), bold=marked),
    )  # fmt: skip
