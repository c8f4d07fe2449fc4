"""What is there and what is missing, the verdicts, and the table of all tickets."""

from __future__ import annotations

from collections.abc import Sequence

from lt_lightning.report import tables
from lt_lightning.report.found import Found
from lt_lightning.report.page import Page, bullets, heading, paragraph, table
from lt_lightning.study.aggregate import Row
from lt_lightning.study.extremes import extremes, verdict_lines
from lt_lightning.study.verdict import Rule

LEFT = [index for index, name in enumerate(tables.HEADINGS) if name in ("data", "network", "setting", "ticket")]


def add_overview(page: Page, found: Found, rows: Sequence[Row], rule: Rule) -> None:
    """Adds the part."""
    blocks = [_missing(found.missing)]
    if rows:
        blocks += map(paragraph, verdict_lines(extremes(rows, rule)))
        blocks.append(heading("All tickets"))
        blocks.append(table(tables.HEADINGS, [tables.cells(row) for row in rows], LEFT))
        blocks.append(paragraph(
            "Density: share of the prunable weights that a ticket executes (an unstructured one: keeps). "
            "± 95 %: half of Student's interval of the mean over seeds. vs dense: points of accuracy, paired by seed. "
            f"Wins: {rule}. FLOPs and measured times of inference and of a training step: whole network, dense = 1. "
            "Twins are controls: as their tickets, but with other values or masks, or a smaller dense network."
        ))  # fmt: skip
    page.add("overview", "Overview", *blocks)


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return paragraph("Everything that was asked for is finished.")
    return f'<div class="missing"><strong>Not there</strong> ({len(lines)}){bullets(lines)}</div>'
