"""Accuracy over what a ticket saves: the trade that a user decides on."""

from __future__ import annotations

from collections.abc import Sequence

from lt_lightning.report.curves import dense_row, flops_saved, time_saved, trade_points, training_time_saved
from lt_lightning.report.figures import trade_figure
from lt_lightning.report.found import Group
from lt_lightning.report.page import Page, heading, paragraph, side_by_side

SAVED = {
    "time of inference saved in %, measured": time_saved,
    "time of a training step saved in %, measured": training_time_saved,
    "multiply-adds saved in %": flops_saved,
}


def add_trade(page: Page, groups: Sequence[Group]) -> None:
    """Adds the part."""
    blocks = [paragraph(
        "The dotted line is the Pareto front: no ticket is above it, which is both more accurate and saves more; its "
        "corners are told by their density. Hollow marks are twins, which are controls and stand on no front. Time of "
        "the whole network, against the dense one's."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        dense = dense_row(group.rows)
        places = []
        for label, saved in SAVED.items():
            points = trade_points(group.rows, saved)
            if any(x for x, _ in points):
                places.append(page.figure(trade_figure(points, dense, label)))
            else:
                told = "no ticket saves any: all run whole" if points else "no ticket has a figure"
                places.append(paragraph(f"{label[0].upper()}{label[1:].partition(' in %')[0]}: {told}."))
        blocks.append(side_by_side(*places))
    page.add("trade", "Accuracy over savings", *blocks)
