"""Every layer of every ticket: densities, multiply-adds and time before and after, and what fell back to dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lt_lightning.report.facts import card_of, layer_times_of
from lt_lightning.report.found import Search, name_of
from lt_lightning.report.layers import LayerRow, layer_rows
from lt_lightning.report.page import Page, bullets, chooser, paragraph, table

HEADINGS = ("layer", "form", "asked %", "achieved %", "multiply-adds, dense", "by the plan", "ratio", "ms, dense",
            "ms, ticket", "ratio", "note")  # fmt: skip


def add_layers(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part."""
    tickets = {told: rows for search in searches for told, rows in _tickets(search)}
    fell = [f"{told}: {_names(rows)}" for told, rows in tickets.items() if any(row.fell_back for row in rows)]
    blocks = [paragraph(
        "Asked: share of the layer's weights that the round's unstructured mask keeps. Achieved: share that the ticket "
        "executes (an unstructured one: keeps). Multiply-adds of one sample, by the plan. Time: of the layer in "
        "inference at the batch size of the measurement, within the dense network and within the one that executes "
        "the ticket; an unstructured ticket runs whole and is not timed. Rows in colour: layers that run dense."
    )]  # fmt: skip
    if fell:
        what = f"<summary>Fell back to dense, in {len(fell)} of {len(tickets)} tickets</summary>"
        blocks.append(f"<details>{what}{bullets(fell)}</details>")
    else:
        blocks.append(paragraph("No layer of any ticket fell back to dense."))
    choices = {told: _ticket(rows) for told, rows in tickets.items()}
    blocks.append(chooser("layer-choice", "Ticket", choices) if choices else paragraph("No ticket is there yet."))
    page.add("layers", "Layers", *blocks)


def _tickets(search: Search) -> Iterator[tuple[str, list[LayerRow]]]:
    """The sparsest last, structured ones before what they are made from."""
    for result in search.results:
        place = search.place_of(result)
        if result.round > 0 and (rows := layer_rows(card_of(place), layer_times_of(place))):
            yield f"{search.folder.name}, round {result.round}, {name_of(result)}", rows


def _ticket(rows: Sequence[LayerRow]) -> str:
    marked = [index for index, row in enumerate(rows) if row.fell_back]
    told = f"Fell back to dense: {_names(rows)}." if marked else "No layer fell back to dense."
    return paragraph(told) + table(HEADINGS, [*map(_cells, rows), _sum(rows)], (0, 1, 10), marked, [len(rows)])


def _names(rows: Sequence[LayerRow]) -> str:
    return ", ".join(row.layer for row in rows if row.fell_back)


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.layer, row.form, f"{100 * row.asked:.1f}", f"{100 * row.achieved:.1f}",
        f"{row.flops_before:,}", f"{row.flops_after:,}", _ratio(row.flops_after, row.flops_before),
        _milliseconds(row.seconds_before), _milliseconds(row.seconds_after),
        _ratio(row.seconds_after, row.seconds_before), row.why,
    )  # fmt: skip


def _sum(rows: Sequence[LayerRow]) -> tuple[str, ...]:
    before, after = sum(row.flops_before for row in rows), sum(row.flops_after for row in rows)
    timed = [(row.seconds_before, row.seconds_after) for row in rows if row.seconds_before and row.seconds_after]
    seconds = [sum(pair[index] for pair in timed) if timed else None for index in (0, 1)]
    return (
        "all", "", "", "", f"{before:,}", f"{after:,}", _ratio(after, before), *map(_milliseconds, seconds),
        _ratio(seconds[1], seconds[0]), "",
    )  # fmt: skip


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"


def _ratio(after: float | None, before: float | None) -> str:
    return "" if after is None or not before else f"{after / before:.3f}"
