"""Parts of the page on results: accuracy over density, beside what was published, and over savings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lt_lightning.report.contents import Contents, Group, data_and_model, file_name
from lt_lightning.report.page import Page, first_of, heading, paragraph, side_by_side, table
from lt_lightning.report.plots import (
    Looks,
    dense_row,
    density_figure,
    flops_saved,
    kinds_of,
    published_figure,
    settings_figure,
    time_saved,
    trade_figure,
    training_time_saved,
)
from lt_lightning.results.aggregate import ExtremeRow, Row, short_setting
from lt_lightning.results.published_figures import Comparison, PublishedFigure, compare, figures_of
from lt_lightning.results.tables import COMPARISON_HEADINGS, comparison_cells
from lt_lightning.storage.layout import DENSE

GROUPS = 12  # data sets, networks and settings that have figures of their own
SETTINGS = 8  # settings that are compared in one figure
IN_TABLE = "all of them are in table.csv"

# Accuracy over density, and beside what was published.

PUBLISHED = {"accuracy": "test accuracy in %", "versus_dense": "accuracy less the dense network's, in points"}


def add_accuracy(
    page: Page, contents: Contents, groups: Sequence[Group], sparsest: Sequence[ExtremeRow], looks: Looks
) -> None:
    """Add the part with accuracy over density, settings in one figure, and published figures."""
    drawn, rest = first_of(groups, GROUPS, "settings", IN_TABLE)
    blocks = [paragraph(
        "Bands show the 95 % interval of the mean over seeds; with one seed there is none. A ring marks the sparsest "
        "ticket that is on average at least as accurate as dense, a star the sparsest that is shown to hold by the "
        "interval of the difference. Hollow marks on broken lines are controls, which a click on the legend shows. "
        "Marks of equally dense tickets stand a few pixels beside each other."
    ), *_compared_settings(page, groups, looks), *rest]  # fmt: skip
    for group in drawn:
        blocks.append(heading(group.title))
        if dense_row(group.rows) is None:
            blocks.append(paragraph("The dense network's result is missing, so there is no band."))
        blocks.append(accuracy_figure(page, group, sparsest, looks))
        blocks += _published(page, comparisons_of(contents, group), group, looks)
    page.add("accuracy", "Accuracy over density", *blocks)


def accuracy_figure(page: Page, group: Group, sparsest: Sequence[ExtremeRow], looks: Looks) -> str:
    """Return the figure of a group."""
    key = (group.rows[0].data, group.rows[0].model, group.rows[0].setting)
    mine = [row for row in sparsest if (row.data, row.model, row.setting) == key]
    figure = density_figure(group.title, group.rows, mine, looks)
    return page.figure(figure, f"accuracy-{group.file_name}", wide=True)


def _compared_settings(page: Page, groups: Sequence[Group], looks: Looks) -> Iterator[str]:
    """Yield figures of each network's settings, one for each kind of ticket, where there are several settings."""
    networks: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        networks[group.rows[0].data, group.rows[0].model].append(group)
    for names, mine in networks.items():
        if len(mine) < 2:
            continue
        drawn, rest = first_of(mine, SETTINGS, "settings", IN_TABLE)
        kinds = dict.fromkeys(kind for group in drawn for kind in kinds_of(group.rows) if not kind.control)
        figures = []
        for kind in kinds:
            rows = {short_setting(group.rows[0].setting): group.rows for group in drawn if kind in kinds_of(group.rows)}
            figure = settings_figure(", ".join(names), kind, rows, looks[kind])
            figures.append(heading(str(kind)) + page.figure(figure, f"settings-{file_name(figure.title)}"))
        yield heading(f"{', '.join(names)}: settings compared")
        yield from (*rest, side_by_side(*figures))


def _published(page: Page, comparisons: Sequence[Comparison], group: Group, looks: Looks) -> list[str]:
    if not comparisons:
        return []
    blocks = [heading("Published, and ours"), paragraph(
        "Remaining is the per cent of the prunable weights, for both by the paper's count, which for its refill is the "
        "share of filters, not what is executed. Each published figure stands beside our ticket that is nearest, if it "
        "is within half a round; where the paper does not say what remains, beside our extreme ticket. Values are in "
        "per cent, differences in points."
    )]  # fmt: skip
    for quantity, label in PUBLISHED.items():
        if figure := published_figure(group.title, comparisons, quantity, label, looks):
            blocks.append(page.figure(figure, f"published-{quantity}-{group.file_name}"))
    blocks.append(table(COMPARISON_HEADINGS, list(map(comparison_cells, comparisons)), left=(0, 1)))
    return blocks


def comparisons_of(contents: Contents, group: Group) -> list[Comparison]:
    """Compare a group with the published figures that any job of its data set and network names.

    Wrong figures are left out.
    """
    configs = [search.config for search in contents.searches] + [command.config for command in contents.commands]
    names = (group.rows[0].data, group.rows[0].model)
    configs = [config for config in configs if config.get("published") and data_and_model(config) == names]
    structures: dict[str, Mapping[str, Any]] = {}
    figures: dict[PublishedFigure, None] = {}
    for config in configs:
        structures |= config.get("structure") or {}
        try:
            figures |= dict.fromkeys(figures_of(config["published"]))
        except (ValueError, TypeError, AttributeError):
            continue
    return compare(figures, group.results, structures)


# Accuracy over what a ticket saves: the trade that a user decides on.

SAVED: dict[str, tuple[str, Callable[[Row], float]]] = {
    "inference": ("time of inference saved in %, measured", time_saved),
    "training": ("time of a training step saved in %, measured", training_time_saved),
    "flops": ("multiply-adds saved in %", flops_saved),
}


def add_trade(page: Page, groups: Sequence[Group], looks: Looks) -> None:
    """Add the part with accuracy over savings."""
    drawn, rest = first_of(groups, GROUPS, "settings", IN_TABLE)
    blocks = [paragraph(
        "The dotted line is the Pareto front: no ticket is above it, which would be more accurate and save more. Its "
        "corners are labelled with their density. Hollow marks are controls, which stand on no front. Times are those "
        "of the whole network, compared with the dense one."
    ), *rest]  # fmt: skip
    for group in drawn:
        blocks.append(heading(group.title))
        blocks.append(side_by_side(*(_savings(page, group, what, looks) for what in SAVED)))
    page.add("trade", "Accuracy over savings", *blocks)


def _savings(page: Page, group: Group, what: str, looks: Looks) -> str:
    label, saved = SAVED[what]
    savings = [saved(row) for row in group.rows if row.structure != DENSE]
    known = [each for each in savings if not math.isnan(each)]
    if any(known):
        figure = trade_figure(group.title, group.rows, saved, label, looks)
        return page.figure(figure, f"saved-{what}-{group.file_name}")
    why = "no ticket saves any, since all run whole" if len(known) == len(savings) > 0 else "not measured"
    return paragraph(f"{label[0].upper()}{label[1:].partition(' in %')[0]}: {why}.")
