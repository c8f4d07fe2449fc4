"""Accuracy over density, and beside what was published."""

from __future__ import annotations

from collections.abc import Sequence

from lt_lightning.report.curves import dense_row, density_curves, kinds_of, structures_of
from lt_lightning.report.figures import density_figure, published_figure
from lt_lightning.report.found import Found, Group
from lt_lightning.report.page import Page, heading, paragraph, table
from lt_lightning.report.published import SHOWN, comparisons_of, series_of
from lt_lightning.study.aggregate import Row
from lt_lightning.study.extremes import extremes
from lt_lightning.study.published import Comparison
from lt_lightning.study.verdict import Rule

Marks = dict[str, tuple[int | None, int | None]]


def add_accuracy(page: Page, found: Found, groups: Sequence[Group], rule: Rule) -> None:
    """Adds the part."""
    blocks = [paragraph(
        "Bars and the band: 95 % interval of the mean over seeds, cut at 100 %; with one seed there is none. A ring "
        "marks the sparsest ticket that is on average at least as accurate as dense, a star the sparsest shown to be "
        "by the interval of the difference. Hollow marks on broken lines: twins, which are controls. Where there are "
        "bars, tickets of one round stand beside each other; their exact density is told on pointing at them."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        if (dense := dense_row(group.rows)) is None:
            blocks.append(paragraph("The dense network's result is missing: there is no band."))
        blocks.append(page.figure(density_figure(density_curves(group.rows, marks_of(group.rows, rule)), dense)))
        blocks += _beside_published(page, comparisons_of(found, group), structures_of(kinds_of(group.rows)))
    page.add("accuracy", "Accuracy over density", *blocks)


def marks_of(rows: Sequence[Row], rule: Rule) -> Marks:
    """Rounds of the extreme tickets of each structure: by the mean, and shown by the interval."""
    return {each.structure: (each.round_by_mean, each.round_shown) for each in extremes(rows, rule)}


def _beside_published(page: Page, comparisons: Sequence[Comparison], structures: Sequence[str]) -> list[str]:
    if not comparisons:
        return []
    blocks = [heading("Published, and ours"), paragraph(
        "Remaining: per cent of the prunable weights, for both by the paper's count, which for its refill is the share "
        "of filters, not what is executed. Each published figure stands beside our ticket that is nearest, if it is "
        "within half a round; where it does not tell what remains, beside our extreme ticket."
    )]  # fmt: skip
    for quantity, label in SHOWN.items():
        if series := series_of(comparisons, quantity):
            blocks.append(page.figure(published_figure(series, label, structures)))
    blocks.append(table(
        ("published", "ticket", "remaining %", "value %", "ours: remaining %", "value %", "difference", "seeds"),
        [(
            each.figure.quantity.replace("_", " "), each.figure.ticket, _told(each.figure.remaining),
            f"{each.figure.value:.2f}", _told(each.remaining), f"{each.value:.2f}", f"{each.difference:+.2f}",
            str(each.seeds),
        ) for each in comparisons],
        left=(0, 1),
    ))  # fmt: skip
    return blocks


def _told(remaining: float | None) -> str:
    return "" if remaining is None else f"{remaining:.1f}"
