"""Learning curves of all rounds, and of the tickets retrained alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lt_lightning.report.facts import metrics_of
from lt_lightning.report.figures import learning_figure
from lt_lightning.report.found import Search, name_of
from lt_lightning.report.page import Page, chooser, paragraph, side_by_side

CURVES = (("val/accuracy", "validation accuracy in %", 100.0), ("train/loss", "training loss", 1.0))
Rows = list[dict[str, float]]


def add_learning(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part, if there are curves."""
    choices = {
        f"{search.folder.name}, {kind}": side_by_side(*_figures(page, trainings))
        for search in searches
        for kind, trainings in _trainings(search).items()
    }
    if choices:
        about = "A line for each round, the lighter the later. Tickets are trained from the rewind point on."
        page.add("learning", "Learning curves", paragraph(about), chooser("learning-choice", "Trainings", choices))


def _trainings(search: Search) -> dict[str, dict[str, Rows]]:
    """Rows of every training, by kind of it and by round: the rounds of the search, and tickets retrained alone."""
    found: dict[str, dict[str, Rows]] = {}
    for row in metrics_of(search.folder):
        if "round" in row:
            number = int(row["round"])
            name = "dense (round 0)" if number == 0 else f"round {number}"
            found.setdefault("the search's rounds", {}).setdefault(name, []).append(row)
    names = {search.place_of(result): name_of(result) for result in search.results}
    for folder in sorted(search.folder.glob("round_*/*")):
        if rows := metrics_of(folder):
            kind = names.get(folder, f"{re.sub('-[0-9a-f]{8}$', '', folder.name)}, not finished")
            found.setdefault(kind, {})[f"round {int(folder.parent.name.rpartition('_')[2])}"] = rows
    return found


def _figures(page: Page, trainings: dict[str, Rows]) -> list[str]:
    places = []
    for key, label, unit in CURVES:
        lines = {
            name: [(index + 1.0, unit * row[key]) for index, row in enumerate(rows) if key in row]
            for name, rows in trainings.items()
        }
        if lines := {name: points for name, points in lines.items() if points}:
            places.append(page.figure(learning_figure(lines, label)))
    return places
