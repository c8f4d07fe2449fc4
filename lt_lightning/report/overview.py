"""The first part of the page: each network's best structured ticket, what is missing, verdicts, and all tickets."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape

from lt_lightning.report.contents import Contents, Group, data_and_model
from lt_lightning.report.page import Html, Page, bullets, first_of, folded, heading, paragraph, table
from lt_lightning.report.plots import Looks, dense_row
from lt_lightning.report.results_sections import accuracy_figure
from lt_lightning.results.aggregate import ExtremeRow, Row, named_verdicts, short_setting, verdict_lines
from lt_lightning.results.records import SUMMARY
from lt_lightning.results.tables import EPOCHS, HEADINGS, percent, row_cells
from lt_lightning.results.verdict import Rule, half_width, not_below
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

NETWORKS = 6  # networks with a headline of their own
ROWS = 1000  # rows of the table of tickets
LINES = 100  # lines on what is missing
SEEDS = "seed=0,1,2,3,4"  # enough for a verdict on a margin of half a point
ALIKE = ("data", "network", "setting")  # columns that are left out where all rows are alike in them
LEFT = (*ALIKE, "ticket")


def add_overview(
    page: Page,
    contents: Contents,
    rows: Sequence[Row],
    groups: Sequence[Group],
    sparsest: Sequence[ExtremeRow],
    rule: Rule,
    looks: Looks,
) -> None:
    """Add the part with headlines, what is missing, the verdicts and a table of all tickets."""
    if not rows:
        page.add("overview", "Overview", _missing(contents.missing))
        return
    networks: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        networks[group.rows[0].data, group.rows[0].model].append(group)
    drawn, rest = first_of(list(networks.values()), NETWORKS, "networks", "the others are in the tables")
    blocks = [_headline(page, contents, mine, sparsest, rule, looks) for mine in drawn]
    blocks += [*rest, _missing(contents.missing)]
    lines = list(verdict_lines(sparsest))
    if len(lines) > 1:
        verdicts, others = first_of(named_verdicts(sparsest), ROWS, "verdicts", "the others are in the sweep's tables")
        blocks += [
            heading("Verdicts"),
            paragraph(lines[0]),
            table(("ticket", "extreme ticket sparsity"), verdicts, (0, 1)),
        ]
        blocks += others
    page.add("overview", "Overview", *blocks, heading("All tickets"), *_tickets(page, contents, rows, rule))


# The headline of one network.


def best_of(rows: Sequence[Row], sparsest: Sequence[ExtremeRow]) -> tuple[Row | None, bool]:
    """Return the best structured ticket of one network, and whether it is shown to hold.

    It is the sparsest that is shown to hold by the interval; without any, the sparsest that is not below the dense
    network on average; without any, the most accurate. With one seed nothing is shown.

    Args:
        rows: rows of the network in all settings.
        sparsest: extreme tickets of these and of other rows.
    """
    tickets = [
        row for row in rows if row.structure not in (DENSE, UNSTRUCTURED) and not row.control and row.sparsity > 0
    ]
    shown = {
        (each.data, each.model, each.setting, each.kind, each.round_shown) for each in sparsest if each.sparsity_shown
    }
    held = [row for row in tickets if (row.data, row.model, row.setting, row.kind, row.round) in shown]
    if held:
        return max(held, key=lambda row: row.sparsity), True
    seeds = max((row.seeds for row in tickets), default=0)
    complete = [row for row in tickets if row.seeds == seeds]
    even = [row for row in complete if not_below(row.difference)]
    if even:
        return max(even, key=lambda row: row.sparsity), False
    return max(complete, key=lambda row: row.accuracy, default=None), False


def _headline(
    page: Page, contents: Contents, groups: Sequence[Group], sparsest: Sequence[ExtremeRow], rule: Rule, looks: Looks
) -> str:
    row, holds = best_of([row for group in groups for row in group.rows], sparsest)
    group = next((group for group in groups if row in group.rows), groups[0])
    name = ", ".join((group.rows[0].model, group.rows[0].data))
    said = "There is no ticket yet whose structure is executed."
    blocks: list[str] = []
    if row is not None:
        said = f"{_subject(row)} {_sentence(row, holds, rule)}"
        blocks.append(_tiles(row, dense_row(group.rows), rule))
        if row.seeds < 2:
            blocks.append(paragraph("A verdict takes several seeds. This trains what is missing of five:"))
            blocks.append(f"<pre>{escape(more_seeds(contents, (group.rows[0].data, group.rows[0].model)))}</pre>")
        folders = [
            page.link(contents.root / result.place, f"seed {result.seed}")
            for result in group.results
            if (result.kind, result.round) == (row.kind, row.round)
        ]
        blocks.append(paragraph(Html(f"Folders of the ticket: {', '.join(folders)}.")))
    figure = accuracy_figure(page, group, sparsest, looks)
    parts = (heading(name) + paragraph(said), figure, "".join(blocks))
    return f'<div class="headline">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _subject(row: Row) -> str:
    setting = f" with {short_setting(row.setting)}" if row.setting else ""
    return f"{row.kind}{setting}, round {row.round},"


def _sentence(row: Row, holds: bool, rule: Rule) -> str:
    if row.seeds < 2:
        how = "is not below the dense network" if not_below(row.difference) else "is below the dense network"
        return f"{how} by the test accuracy of its one seed, which is no verdict."
    seeds = f"{row.seeds} seeds, {rule}"
    if holds:
        chosen = " It is the best of several settings: confirm it on other seeds." if row.setting else ""
        return f"is the sparsest structured ticket that is shown to hold ({seeds}).{chosen}"
    if not_below(row.difference):
        return f"is the sparsest structured ticket that is not below dense on average; none is shown to hold ({seeds})."
    return f"is the most accurate structured ticket; all are below dense on average, none is shown to hold ({seeds})."


def _tiles(row: Row, dense: Row | None, rule: Rule) -> str:
    lower = "" if row.lower is None else f"above {100 * row.lower:+.2f}, {100 * rule.confidence:g} % one-sided"
    tiles = [
        (
            "Density",
            percent(row.density, 1),
            f"of the prunable weights; {percent(row.params_ratio, 1)} of all parameters",
        ),
        ("Multiply-adds", percent(row.flops_ratio, 1), "of the dense network's"),
        ("Time saved", *_time_saved(row)),
        ("Accuracy", _interval(row), "" if dense is None else f"dense {_interval(dense)}"),
        ("Against dense", f"{100 * row.difference:+.2f} points", lower),
    ]
    cells = (
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _time_saved(row: Row) -> tuple[str, str]:
    """Return the share of the time that is saved in inference, and a note on training."""
    if math.isnan(row.time_ratio_inference) and math.isnan(row.time_ratio_training):
        return "unknown", "not measured"
    return _saved(row.time_ratio_inference), f"in inference; {_saved(row.time_ratio_training)} of a step"


def _saved(ratio: float) -> str:
    """Return the share of the dense network's time that is saved, in whole per cent; a loss is negative."""
    return "not measured" if math.isnan(ratio) else f"{round(100 * (1 - ratio))} %"


def _interval(row: Row) -> str:
    half = half_width(row.accuracy_sd, row.seeds)
    return f"{100 * row.accuracy:.2f}{'' if half is None else f' ± {100 * half:.2f}'} %"


def more_seeds(contents: Contents, names: tuple[str, str]) -> str:
    """Return the command that runs the same with several seeds, given the names of data set and network."""
    fitting = [command for command in contents.commands if data_and_model(command.config) == names]
    if not fitting:
        return f"lt-lightning run -m {SEEDS} ... and the options of this run"
    words = shlex.split(fitting[0].text)
    kept = [
        word
        for word in words[2:]
        if word not in ("-m", "--multirun") and word.partition("=")[0] not in ("seed", "+seed")
    ]
    return shlex.join([*words[:2], "-m", SEEDS, *kept])


# What is missing, and all tickets.


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return paragraph("Everything that was asked for is finished.")
    drawn, rest = first_of(lines, LINES, "lines", "lt-lightning status names the others")
    return f'<div class="missing">{folded(f"Not there: {len(lines)}", bullets(drawn), *rest)}</div>'


def _tickets(page: Page, contents: Contents, rows: Sequence[Row], rule: Rule) -> Iterator[str]:
    names = ("table.csv", "table.md", "table.tex")
    files = [page.link(page.folder / name, name) for name in names]
    files += [page.link(file, SUMMARY) for file in (contents.root / SUMMARY,) if file.is_file()]
    yield paragraph(
        Html(f"The same as files: {', '.join(files)}. Folder: {page.link(contents.root, contents.root.name)}.")
    )
    drawn, rest = first_of(rows, ROWS, "rows", "all of them are in table.csv")
    cells = [row_cells(row) for row in drawn]
    shown = [i for i, name in enumerate(HEADINGS) if name not in ALIKE or len({line[i] for line in cells}) > 1]
    left = [index for index, i in enumerate(shown) if HEADINGS[i] in LEFT]
    yield from rest
    yield table([HEADINGS[i] for i in shown], [[line[i] for i in shown] for line in cells], left)
    yield paragraph(
        "Density is the share of the prunable weights that a ticket executes (an unstructured one: keeps); ± 95 %, "
        "half of Student's interval of the mean over seeds; vs dense, points of accuracy, paired by seed. A ticket "
        f"wins by this rule: {rule}. Parameters, FLOPs and measured times of inference and of a training step are "
        f"those of the whole network, dense = 1. {EPOCHS} Controls are like their tickets, but with other values or "
        "masks, or a smaller dense network."
    )
