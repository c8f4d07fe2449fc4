"""The report at the end of a run or a sweep: it costs seconds, and never fails what it reports of."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from lt_lightning.experiment.config.fingerprint import hash_of
from lt_lightning.files import replacing
from lt_lightning.report import FILE, FOLDER
from lt_lightning.report import ticket_tables as tables
from lt_lightning.report.comparisons import SHOWN, comparisons_of, series_of
from lt_lightning.report.contents import Found, Group, collect, groups_of
from lt_lightning.report.curves import dense_row, density_curves, kinds_of, structures_of, trade_points
from lt_lightning.report.page import Page
from lt_lightning.report.pngs import draw_density, draw_masks, draw_published, draw_trade
from lt_lightning.report.sections import (
    SAVED,
    add_accuracy,
    add_costs,
    add_layers,
    add_learning,
    add_masks,
    add_origin,
    add_overview,
    add_stability,
    add_trade,
    marks_of,
    mask_pictures,
)
from lt_lightning.results.aggregate import aggregate
from lt_lightning.results.failures import FILE as FAILURE
from lt_lightning.results.records import FILE as RESULT
from lt_lightning.results.verdict import STANDARD, Rule

# The report: one HTML file, PNGs and tables, of what has been run under a folder.


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
    controls = sum(bool(result.control) for result in tickets)
    told = f"{_count(len(found.searches), 'search', 'searches')}, {_count(len(tickets) - controls, 'finished ticket')}"
    if controls:
        told += f", {_count(controls, 'control')}"
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


# The report at the end of a run or a sweep: it costs seconds, and never fails what it reports of.


def report_at_end(folder: Path, console: Console) -> None:
    """Writes the report of a search or of a sweep's jobs, unless the one that is there is as new as its results.

    Args:
        folder: of the search, or of the jobs; nothing happens if there is none, as nothing was run then.
        console: to tell where it is, or in one line why it could not be written.
    """
    if not folder.is_dir():
        return
    told = str(file := folder / FOLDER / FILE)
    try:
        if not _is_current(file, folder):
            write_report(folder)
    except Exception as error:  # whatever it is, the results are there
        told = f"not written: {type(error).__name__}: {error}".splitlines()[0]
    console.print(f"{'Report:':9}{told}", markup=False, highlight=False, soft_wrap=True)


def _is_current(report: Path, search: Path) -> bool:
    """Whether nothing of a search has finished or failed since its report was written; of jobs that is not known."""
    if not report.is_file() or not (search / "config.yaml").is_file():
        return False
    changing = [search / "config.yaml", *search.glob("*.json")]
    changing += [file for name in (RESULT, FAILURE) for file in search.glob(f"round_*/*/{name}")]
    return all(file.stat().st_mtime_ns < report.stat().st_mtime_ns for file in changing)
