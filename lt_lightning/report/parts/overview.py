"""What is there and what is missing, the verdicts, and the table of all tickets."""

from __future__ import annotations

from collections.abc import Sequence

from lt_lightning.report import tables
from lt_lightning.report.found import Found
from lt_lightning.report.page import Page, bullets, heading, paragraph, table
from lt_lightning.study.aggregate import Row
from lt_lightning.study.extremes import extremes, verdict_lines, verdicts_of
from lt_lightning.study.verdict import Rule

ALIKE = ("data", "network", "setting")  # the group's title
LEFT = (*ALIKE, "ticket")


def add_overview(page: Page, found: Found, rows: Sequence[Row], rule: Rule) -> None:
    """Adds the part."""
    blocks = [_missing(found.missing)]
    if rows:
        told = list(verdict_lines(sparsest := extremes(rows, rule)))
        blocks += map(paragraph, told[:1])
        if len(told) > 1:
            blocks.append(table(("ticket", "extreme ticket sparsity"), verdicts_of(sparsest), (0, 1)))
        blocks.append(heading("All tickets"))
        blocks.append(_table(rows))
        blocks.append(paragraph(
            "Density: share of the prunable weights that a ticket executes (an unstructured one: keeps). "
            "± 95 %: half of Student's interval of the mean over seeds. vs dense: points of accuracy, paired by seed. "
            f"Wins: {rule}. FLOPs and measured times of inference and of a training step: whole network, dense = 1. "
            "Twins are controls: as their tickets, but with other values or masks, or a smaller dense network."
        ))  # fmt: skip
    page.add("overview", "Overview", *blocks)


def _table(rows: Sequence[Row]) -> str:
    """Without the columns of data, network and setting that say the same of all."""
    cells = [tables.cells(row) for row in rows]
    said = [i for i, name in enumerate(tables.HEADINGS) if name not in ALIKE or len({line[i] for line in cells}) > 1]
    headings = [tables.HEADINGS[i] for i in said]
    left = [index for index, name in enumerate(headings) if name in LEFT]
    return table(headings, [[line[i] for i in said] for line in cells], left)


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return paragraph("Everything that was asked for is finished.")
    return f'<div class="missing"><strong>Not there</strong> ({len(lines)}){bullets(lines)}</div>'
