"""Parts of the page on results: overview, accuracy over density and over savings, and every layer of every ticket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lt_lightning.report.contents import Contents, Group, Search, card_of, data_and_model, layer_times_of
from lt_lightning.report.page import Page, bullets, chooser, heading, paragraph, side_by_side, table
from lt_lightning.report.plots import (
    dense_row,
    density_figure,
    flops_saved,
    published_figure,
    time_saved,
    trade_figure,
    training_time_saved,
)
from lt_lightning.results.aggregate import Row, extremes, named_verdicts, verdict_lines
from lt_lightning.results.published_figures import Comparison, PublishedFigure, compare, figures_of
from lt_lightning.results.tables import COMPARISON_HEADINGS, HEADINGS, comparison_cells, number, row_cells
from lt_lightning.results.verdict import Rule
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

ALIKE = ("data", "network", "setting")  # the group's title
LEFT = (*ALIKE, "ticket")


def add_overview(page: Page, contents: Contents, rows: Sequence[Row], rule: Rule) -> None:
    """Add the part with what is missing, the verdicts and a table of all tickets."""
    blocks = [_missing(contents.missing)]
    if rows:
        lines = list(verdict_lines(sparsest := extremes(rows, rule)))
        blocks += map(paragraph, lines[:1])
        if len(lines) > 1:
            blocks.append(table(("ticket", "extreme ticket sparsity"), named_verdicts(sparsest), (0, 1)))
            blocks += map(paragraph, lines[1 + len(sparsest) :])
        blocks.append(heading("All tickets"))
        blocks.append(_ticket_table(rows))
        blocks.append(paragraph(
            "Density is the share of the prunable weights that a ticket executes (an unstructured one: keeps); ± 95 %, "
            "half of Student's interval of the mean over seeds; vs dense, points of accuracy, paired by seed. A ticket "
            f"wins by this rule: {rule}. FLOPs and measured times of inference and of a training step are those of the "
            "whole network, dense = 1. Controls are like their tickets, but with other values or masks, or a smaller "
            "dense network."
        ))  # fmt: skip
    page.add("overview", "Overview", *blocks)


def _ticket_table(rows: Sequence[Row]) -> str:
    """Return the table without the columns of data, network and setting that are the same in all rows."""
    cells = [row_cells(row) for row in rows]
    shown = [i for i, name in enumerate(HEADINGS) if name not in ALIKE or len({line[i] for line in cells}) > 1]
    left = [index for index, i in enumerate(shown) if HEADINGS[i] in LEFT]
    return table([HEADINGS[i] for i in shown], [[line[i] for i in shown] for line in cells], left)


def _missing(lines: Sequence[str]) -> str:
    if not lines:
        return paragraph("Everything that was asked for is finished.")
    return f'<div class="missing"><strong>Not there</strong> ({len(lines)}){bullets(lines)}</div>'


# Accuracy over density, and beside what was published.

PUBLISHED = {"accuracy": "test accuracy in %", "versus_dense": "accuracy less the dense network's, in points"}


def add_accuracy(page: Page, contents: Contents, groups: Sequence[Group], rule: Rule) -> None:
    """Add the part with accuracy over density, and with published figures."""
    blocks = [paragraph(
        "Bars and the band show the 95 % interval of the mean over seeds, cut at 100 %; with one seed there is none. A "
        "ring marks the sparsest ticket that is on average at least as accurate as dense, a star the sparsest that is "
        "shown to be so by the interval of the difference. Hollow marks on broken lines are controls. Where there are "
        "bars, tickets of one round are drawn beside each other; point at them to read their exact density."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        if dense_row(group.rows) is None:
            blocks.append(paragraph("The dense network's result is missing, so there is no band."))
        figure = density_figure(group.title, group.rows, extremes(group.rows, rule))
        blocks.append(page.figure(figure, f"accuracy-{group.file_name}.png"))
        blocks += _published(page, comparisons_of(contents, group), group)
    page.add("accuracy", "Accuracy over density", *blocks)


def _published(page: Page, comparisons: Sequence[Comparison], group: Group) -> list[str]:
    if not comparisons:
        return []
    blocks = [heading("Published, and ours"), paragraph(
        "Remaining is the per cent of the prunable weights, for both by the paper's count, which for its refill is the "
        "share of filters, not what is executed. Each published figure stands beside our ticket that is nearest, if it "
        "is within half a round; where the paper does not say what remains, beside our extreme ticket. Values are in "
        "per cent, differences in points."
    )]  # fmt: skip
    for quantity, label in PUBLISHED.items():
        if figure := published_figure(group.title, comparisons, quantity, label, group.rows):
            blocks.append(page.figure(figure, f"published-{quantity}-{group.file_name}.png"))
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


def add_trade(page: Page, groups: Sequence[Group]) -> None:
    """Add the part with accuracy over savings."""
    blocks = [paragraph(
        "The dotted line is the Pareto front: no ticket is above it, which would be more accurate and save more. Its "
        "corners are labelled with their density. Hollow marks are controls, which stand on no front. Times are those "
        "of the whole network, compared with the dense one."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        blocks.append(side_by_side(*(_savings(page, group, what) for what in SAVED)))
    page.add("trade", "Accuracy over savings", *blocks)


def _savings(page: Page, group: Group, what: str) -> str:
    label, saved = SAVED[what]
    savings = [each for row in group.rows if row.structure != DENSE and (each := saved(row)) == each]
    if any(savings):
        return page.figure(trade_figure(group.title, group.rows, saved, label), f"saved-{what}-{group.file_name}.png")
    why = "no ticket saves any, since all run whole" if savings else "not known of any ticket"
    return paragraph(f"{label[0].upper()}{label[1:].partition(' in %')[0]}: {why}.")


# Every layer of every ticket: densities, multiply-adds and time before and after, and what fell back to dense.


@dataclass(frozen=True)
class LayerFacts:
    """A layer of one ticket.

    Attributes:
        layer: name of the layer.
        form: how the layer is executed.
        target_density: share of its weights that the round's unstructured mask keeps.
        density: share that the ticket executes (an unstructured one: keeps).
        flops_before: multiply-adds of one sample, dense.
        flops_after: multiply-adds of one sample by the plan; an unstructured layer runs whole.
        seconds_before: time of inference in the dense network; None if not measured.
        seconds_after: time of inference in the network that executes the ticket; None if not measured.
        fell_back: whether the layer was to be structured, but runs dense.
        note: why it does, or what else is particular about it.
    """

    layer: str
    form: str
    target_density: float
    density: float
    flops_before: int
    flops_after: int
    seconds_before: float | None
    seconds_after: float | None
    fell_back: bool
    note: str


def layer_facts(card: Mapping[str, Any], times: Mapping[str, Any]) -> list[LayerFacts]:
    """Return the layers of a ticket; what cannot be read is left out.

    Args:
        card: card of the ticket.
        times: times of its layers; empty if they were not measured.
    """
    layers = card.get("layers")
    if not isinstance(layers, Mapping):
        return []
    structured = card.get("structure") not in (DENSE, UNSTRUCTURED)
    prunable, left = set(card.get("prunable") or ()), set(card.get("left_dense") or ())
    choice, seconds = (_mapping(times.get(key)) for key in ("choice", "seconds"))
    rows = []
    for name, report in layers.items():
        try:
            form, size, positions = report["form"], report["size"], report["positions"]
            dense_in_training, dense_in_inference = name in left, choice.get(name) == "dense"
            timed = _mapping(seconds.get(name))
            rows.append(LayerFacts(
                name, form, report["target"] / size,
                (report["kept"] if form == "unstructured" else report["executed"]) / size,
                size * positions, report["executed"] * positions,
                _number(timed.get("dense")), _number(timed.get("ticket")),
                structured and name in prunable and (form == "dense" or dense_in_training or dense_in_inference),
                report["note"] or _dense_note(dense_in_training, dense_in_inference),
            ))  # fmt: skip
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    return rows


def _dense_note(training: bool, inference: bool) -> str:
    where = [what for what, dense in (("training", training), ("inference", inference)) if dense]
    return f"computed dense in {' and '.join(where)}: faster so at this batch size" if where else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


LAYER_HEADINGS = (
    "layer", "form", "target density %", "density %", "multiply-adds, dense", "by the plan", "ratio", "ms, dense",
    "ms, ticket", "ratio", "note",
)  # fmt: skip


def add_layers(page: Page, searches: Sequence[Search]) -> None:
    """Add the part with a table of layers for each ticket."""
    tickets = {name: rows for search in searches for name, rows in _layers_of_tickets(search)}
    fell = [f"{name}: {_fallen(rows)}" for name, rows in tickets.items() if any(row.fell_back for row in rows)]
    blocks = [paragraph(
        "Target density is the share of the layer's weights that the round's unstructured mask keeps; density, the "
        "share that the ticket executes (an unstructured one: keeps). Multiply-adds are those of one sample, by the "
        "plan. Times are those of the layer in inference at the batch size of the measurement, within the dense "
        "network and within the one that executes the ticket; an unstructured ticket runs whole and is not timed. Rows "
        "in colour are layers that run dense."
    )]  # fmt: skip
    if fell:
        summary = f"<summary>Fell back to dense, in {len(fell)} of {len(tickets)} tickets</summary>"
        blocks.append(f"<details>{summary}{bullets(fell)}</details>")
    else:
        blocks.append(paragraph("No layer of any ticket fell back to dense."))
    choices = {name: _layer_table(rows) for name, rows in tickets.items()}
    blocks.append(chooser("layer-choice", "Ticket", choices) if choices else paragraph("No ticket is there yet."))
    page.add("layers", "Layers", *blocks)


def _layers_of_tickets(search: Search) -> Iterator[tuple[str, list[LayerFacts]]]:
    """Yield each pruned ticket's name and layers."""
    for result in search.results:
        folder = search.folder_of(result)
        if result.round > 0 and (rows := layer_facts(card_of(folder), layer_times_of(folder))):
            yield f"{search.folder.name}, round {result.round}, {result.kind}", rows


def _layer_table(rows: Sequence[LayerFacts]) -> str:
    marked = [index for index, row in enumerate(rows) if row.fell_back]
    text = f"Fell back to dense: {_fallen(rows)}." if marked else "No layer fell back to dense."
    cells = [*map(_layer_cells, rows), _sum_cells(rows)]
    return paragraph(text) + table(LAYER_HEADINGS, cells, (0, 1, 10), marked, [len(rows)])


def _fallen(rows: Sequence[LayerFacts]) -> str:
    return ", ".join(row.layer for row in rows if row.fell_back)


def _layer_cells(row: LayerFacts) -> tuple[str, ...]:
    return (
        row.layer, row.form, f"{100 * row.target_density:.1f}", f"{100 * row.density:.1f}",
        f"{row.flops_before:,}", f"{row.flops_after:,}", _ratio(row.flops_after, row.flops_before),
        _milliseconds(row.seconds_before), _milliseconds(row.seconds_after),
        _ratio(row.seconds_after, row.seconds_before), row.note,
    )  # fmt: skip


def _sum_cells(rows: Sequence[LayerFacts]) -> tuple[str, ...]:
    before, after = sum(row.flops_before for row in rows), sum(row.flops_after for row in rows)
    timed = [(row.seconds_before, row.seconds_after) for row in rows if row.seconds_before and row.seconds_after]
    seconds = [sum(pair[index] for pair in timed) if timed else None for index in (0, 1)]
    return (
        "all", "", "", "", f"{before:,}", f"{after:,}", _ratio(after, before), *map(_milliseconds, seconds),
        _ratio(seconds[1], seconds[0]), "",
    )  # fmt: skip


def _milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else 1e3 * seconds, ".3f")


def _ratio(after: float | None, before: float | None) -> str:
    return "" if after is None or not before else f"{after / before:.3f}"
