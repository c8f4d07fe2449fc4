"""The report: one HTML file, figures as SVG, masks as PNG and tables of what has been run under a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console

from lt_lightning.report.contents import Contents, collect, data_digest_of, groups_of
from lt_lightning.report.layer_sections import add_layers
from lt_lightning.report.mask_pictures import add_masks
from lt_lightning.report.overview import add_overview
from lt_lightning.report.page import Page
from lt_lightning.report.plots import kinds_of, looks_of
from lt_lightning.report.results_sections import add_accuracy, add_trade
from lt_lightning.report.search_sections import add_costs, add_learning, add_origin, add_stability, training_costs
from lt_lightning.results.aggregate import Row, aggregate, extremes
from lt_lightning.results.failures import FILE as FAILURE
from lt_lightning.results.job_record import format_duration
from lt_lightning.results.records import FILE as RESULT
from lt_lightning.results.tables import write_tables
from lt_lightning.results.verdict import STANDARD, Rule
from lt_lightning.storage.files import replacing
from lt_lightning.storage.layout import UNSTRUCTURED
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
    output = (output or path / FOLDER).resolve()
    clear_litter(output)
    rule = _rule(contents)
    rows = aggregate(contents.results, rule)
    groups, sparsest, looks = groups_of(contents, rows), extremes(rows, rule), looks_of(kinds_of(rows))
    page = Page(output, _title(contents, rows), _summary(contents))
    add_overview(page, contents, rows, groups, sparsest, rule, looks)
    if rows:
        add_accuracy(page, contents, groups, sparsest, looks)
        add_trade(page, groups, looks)
        add_layers(page, contents.shown)
        add_masks(page, contents.shown)
    add_learning(page, contents.shown or contents.searches, looks)
    add_costs(page, contents.searches)
    add_stability(page, contents.path)
    add_origin(page, contents)
    write_tables(output, rows)
    with replacing(output / FILE) as partial:
        partial.write_text(page.html(), encoding="utf-8")
    return output / FILE


def _rule(contents: Contents) -> Rule:
    """Return the rule of the first search that has a valid one."""
    for search in contents.searches:
        try:
            return Rule(**search.config["verdict"])
        except (KeyError, TypeError, ValueError):
            continue
    return STANDARD


def _title(contents: Contents, rows: Sequence[Row]) -> str:
    """Return what the report is of.

    It reads like `refill and regroup of resnet8 on digits, 2 seeds`.
    """
    pairs = {search.data_and_model for search in contents.searches}
    if not pairs:
        return f"Report of {contents.path.name}"
    data, models = (
        _some(sorted({pair[place] for pair in pairs}), what) for place, what in enumerate(("data sets", "networks"))
    )
    structures = dict.fromkeys(kind.structure for kind in kinds_of(rows) if kind.structure != UNSTRUCTURED)
    seeds = {search.seed for search in contents.searches}
    what = _some(list(structures), "structures") or "Search"
    return f"{what} of {models} on {data}, {_count(len(seeds), 'seed', 'seeds')}"


def _some(names: Sequence[str], what: str) -> str:
    """Return names for people, or their number if there are many.

    >>> _some(["a", "b", "c"], "networks"), _some(["a"], "networks"), _some(list("abcde"), "networks")
    ('a, b and c', 'a', '5 networks')
    """
    if len(names) > 4:
        return f"{len(names)} {what}"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _summary(contents: Contents) -> str:
    """Return HTML on what the report is of, when it was made, how long it took, and with which data."""
    seeds = sorted({search.seed for search in contents.searches if search.seed is not None})
    results = [result for _, result in contents.results]
    controls = sum(bool(result.control) for result in results)
    counts = [_count(len(contents.searches), "search", "searches")]
    counts.append(_count(len(results) - controls, "finished ticket", "finished tickets"))
    if controls:
        counts.append(_count(controls, "control", "controls"))
    parts = [f"Folder {contents.path.name}: {', '.join(counts)}"]
    if seeds:
        parts.append(f"seed{'s' * (len(seeds) > 1)} {_first(list(map(str, seeds)), 10)}")
    if recipes := sorted({recipe for each in contents.commands if (recipe := each.config.get("recipe"))}):
        parts.append(f"recipe {' and '.join(recipes)}")
    if times := [(contents.root / result.place / RESULT).stat().st_mtime for result in results]:
        first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(each)) for each in (min(times), max(times)))
        parts.append(f"files of results dated {first}" + (f" to {last}" if first != last else ""))
    costs = [costs[-1].seconds for search in contents.searches if (costs := training_costs(search))]
    if costs:
        parts.append(f"{format_duration(sum(costs))} of training")
    digests = sorted({digest[:12] for search in contents.searches if (digest := data_digest_of(search.folder))})
    if digests:
        parts.append(f"data digest{'s' * (len(digests) > 1)} {_first(digests, 3)}")
    return escape("; ".join(parts) + ".")


def _first(names: Sequence[str], most: int) -> str:
    """Return the first names, and how many more there are.

    >>> _first(["a", "b"], 2), _first(list("abcd"), 2)
    ('a, b', 'a, b and 2 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
