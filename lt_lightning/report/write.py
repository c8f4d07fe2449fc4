"""The report: one HTML file, PNGs and tables, of what has been run under a folder."""

from __future__ import annotations

import re
from pathlib import Path

from lt_lightning.files import replacing
from lt_lightning.report import FILE, FOLDER, tables
from lt_lightning.report.collect import collect
from lt_lightning.report.curves import dense_row, density_curves, kinds_of, structures_of, trade_points
from lt_lightning.report.found import Found, Group, groups_of
from lt_lightning.report.page import Page
from lt_lightning.report.parts.accuracy import add_accuracy, marks_of
from lt_lightning.report.parts.costs import add_costs
from lt_lightning.report.parts.layers import add_layers
from lt_lightning.report.parts.learning import add_learning
from lt_lightning.report.parts.masks import add_masks, mask_pictures
from lt_lightning.report.parts.origin import add_origin
from lt_lightning.report.parts.overview import add_overview
from lt_lightning.report.parts.stability import add_stability
from lt_lightning.report.parts.trade import SAVED, add_trade
from lt_lightning.report.pngs import draw_density, draw_masks, draw_published, draw_trade
from lt_lightning.report.published import SHOWN, comparisons_of, series_of
from lt_lightning.study.aggregate import aggregate
from lt_lightning.study.places import hash_of
from lt_lightning.study.verdict import STANDARD, Rule


def write_report(path: Path, output: Path | None = None) -> Path:
    """Writes the report of a search, a sweep or everything under a root.

    Args:
        path: folder of a search, of a sweep's jobs, or root of both.
        output: folder to write to; `report` under `path` if None.

    Returns:
        the HTML file.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    found = collect(path)
    output = output or path / FOLDER
    rule = _rule(found)
    rows = aggregate(found.results, rule)
    groups = groups_of(found, rows)
    page = Page(f"Report of {found.path.name}", _summary(found))
    add_overview(page, found, rows, rule)
    for group in groups:
        _write_pngs(output, found, group, rule)
    if rows:
        add_accuracy(page, found, groups, rule)
        add_trade(page, groups)
        with_results = [search for search in found.searches if search.results]
        add_layers(page, with_results)
        pictures, problems = mask_pictures(with_results)
        add_masks(page, pictures, problems)
        for name, layers in pictures.items():
            layer = list(layers)[len(layers) // 2]
            draw_masks(output / f"masks-{_file_name(name)}.png", f"{name}: {layer}", layers[layer])
    add_learning(page, found.searches)
    add_costs(page, found.searches)
    add_stability(page, found.path)
    add_origin(page, found)
    tables.write_tables(output, rows)
    with replacing(output / FILE) as partial:
        partial.write_text(page.html(), encoding="utf-8")
    return output / FILE


def _rule(found: Found) -> Rule:
    for search in found.searches:
        try:
            return Rule(**search.config["verdict"])
        except (KeyError, TypeError, ValueError):
            continue
    return STANDARD


def _summary(found: Found) -> str:
    kinds = sorted({", ".join(search.kind) for search in found.searches})
    seeds = sorted({search.seed for search in found.searches if search.seed is not None})
    tickets = [result for search in found.searches for result in search.results]
    twins = sum(bool(result.twin) for result in tickets)
    told = f"{_count(len(found.searches), 'search', 'searches')}, {_count(len(tickets) - twins, 'finished ticket')}"
    if twins:
        told += f", {_count(twins, 'twin')}"
    if kinds:
        told += f"; {'; '.join(kinds)}"
    if seeds:
        told += f"; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return told + "."


def _count(number: int, one: str, several: str = "") -> str:
    """For people.

    >>> _count(1, "ticket"), _count(2, "ticket"), _count(0, "search", "searches")
    ('1 ticket', '2 tickets', '0 searches')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def _write_pngs(output: Path, found: Found, group: Group, rule: Rule) -> None:
    name = _file_name(group.title)
    dense = dense_row(group.rows)
    curves = density_curves(group.rows, marks_of(group.rows, rule))
    draw_density(output / f"accuracy-{name}.png", group.title, curves, dense)
    for what, (label, saved) in zip(("inference", "training", "flops"), SAVED.items(), strict=True):
        points = trade_points(group.rows, saved)
        if any(x for x, _ in points):
            draw_trade(output / f"saved-{what}-{name}.png", group.title, points, dense, label)
    comparisons, structures = comparisons_of(found, group), structures_of(kinds_of(group.rows))
    for quantity, label in SHOWN.items():
        if series := series_of(comparisons, quantity):
            draw_published(output / f"published-{quantity}-{name}.png", group.title, series, label, structures)


def _file_name(title: str) -> str:
    """Of a group, no longer than file systems bear."""
    name = re.sub(r"[^\w.=-]+", "_", title)
    return name if len(name) <= 80 else f"{name[:71]}-{hash_of({'title': name})}"
