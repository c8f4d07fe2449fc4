"""The report: one HTML file, PNGs and tables of what has been run under a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lt_lightning.report.contents import Contents, Group, collect, file_name, groups_of
from lt_lightning.report.figures import write_png
from lt_lightning.report.mask_pictures import add_masks, mask_pictures, write_masks_png
from lt_lightning.report.page import Page
from lt_lightning.report.results_sections import add_accuracy, add_layers, add_overview, add_trade
from lt_lightning.report.search_sections import add_costs, add_learning, add_origin, add_stability
from lt_lightning.results.aggregate import aggregate
from lt_lightning.results.failures import FILE as FAILURE
from lt_lightning.results.records import FILE as RESULT
from lt_lightning.results.tables import write_tables
from lt_lightning.results.verdict import STANDARD, Rule
from lt_lightning.storage.files import replacing
from lt_lightning.storage.litter import clear_litter

FOLDER, FILE = "report", "report.html"


def write_report(path: Path, output: Path | None = None) -> Path:
    """Write the report of a search, a sweep or everything under a root.

    Args:
        path: folder of a search, of a sweep's jobs, or root of both.
        output: folder to write to; `report` under `path` if None.

    Returns:
        the HTML file.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    contents = collect(path)
    output = output or path / FOLDER
    clear_litter(output)
    rule = _rule(contents)
    rows = aggregate(contents.results, rule)
    groups = groups_of(contents, rows)
    page = Page(f"Report of {contents.path.name}", _summary(contents))
    add_overview(page, contents, rows, rule)
    if rows:
        _add_results(page, contents, groups, rule, output)
    add_learning(page, contents.searches)
    add_costs(page, contents.searches)
    add_stability(page, contents.path)
    add_origin(page, contents)
    for name, figure in page.pngs.items():
        write_png(output / name, figure)
    write_tables(output, rows)
    with replacing(output / FILE) as partial:
        partial.write_text(page.html(), encoding="utf-8")
    return output / FILE


def _add_results(page: Page, contents: Contents, groups: Sequence[Group], rule: Rule, output: Path) -> None:
    add_accuracy(page, contents, groups, rule)
    add_trade(page, groups)
    with_results = [search for search in contents.searches if search.results]
    add_layers(page, with_results)
    pictures, problems = mask_pictures(with_results)
    add_masks(page, pictures, problems)
    for name, layers in pictures.items():
        layer = list(layers)[len(layers) // 2]
        write_masks_png(output / f"masks-{file_name(name)}.png", f"{name}: {layer}", layers[layer])


def _rule(contents: Contents) -> Rule:
    """Return the rule of the first search that has a valid one."""
    for search in contents.searches:
        try:
            return Rule(**search.config["verdict"])
        except (KeyError, TypeError, ValueError):
            continue
    return STANDARD


def _summary(contents: Contents) -> str:
    """Return a line on what the report is of.

    It reads like `2 searches, 8 finished tickets, 4 controls; digits, resnet8; seeds 0, 1.`
    """
    names = sorted({", ".join(search.data_and_model) for search in contents.searches})
    seeds = sorted({search.seed for search in contents.searches if search.seed is not None})
    results = [result for _, result in contents.results]
    controls = sum(bool(result.control) for result in results)
    counts = [_count(len(contents.searches), "search", "searches")]
    counts.append(_count(len(results) - controls, "finished ticket", "finished tickets"))
    if controls:
        counts.append(_count(controls, "control", "controls"))
    parts = [", ".join(counts), *(["; ".join(names)] if names else [])]
    if seeds:
        parts.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    return "; ".join(parts) + "."


def _count(number: int, one: str, several: str) -> str:
    """Return a number of things.

    >>> _count(1, "ticket", "tickets"), _count(0, "search", "searches")
    ('1 ticket', '0 searches')
    """
    return f"{number} {one if number == 1 else several}"


# The report at the end of a run or a sweep: it costs seconds, and never fails what it reports of.


def report_at_end(folder: Path, console: Console) -> None:
    """Write the report of a search or of a sweep's jobs, unless the one that is there is as new as its results.

    Args:
        folder: folder of the search, or of the jobs; without it nothing was run, and nothing happens.
        console: console for a line that says where the report is, or why it could not be written.
    """
    if not folder.is_dir():
        return
    text = str(file := folder / FOLDER / FILE)
    try:
        if not _is_current(file, folder):
            write_report(folder)
    except Exception as error:  # whatever it is, the results are there
        text = f"not written: {type(error).__name__}: {error}".splitlines()[0]
    console.print(f"{'Report:':9}{text}", markup=False, highlight=False, soft_wrap=True)


def _is_current(report: Path, search: Path) -> bool:
    """Whether nothing of a search has finished or failed since its report was written; of jobs that is not known."""
    if not report.is_file() or not (search / "config.yaml").is_file():
        return False
    changing = [search / "config.yaml", *search.glob("*.json")]
    changing += [file for name in (RESULT, FAILURE) for file in search.glob(f"round_*/*/{name}")]
    return all(file.stat().st_mtime_ns < report.stat().st_mtime_ns for file in changing)
