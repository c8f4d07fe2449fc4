"""The sections of the report: origin, overview, accuracy, trade, stability, costs, learning, layers, masks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.files import read_json
from lt_lightning.report import ticket_tables as tables
from lt_lightning.report.comparisons import SHOWN, comparisons_of, series_of
from lt_lightning.report.contents import (
    Found,
    Group,
    Search,
    card_of,
    environment_of,
    layer_times_of,
    metrics_of,
    name_of,
)
from lt_lightning.report.curves import (
    dense_row,
    density_curves,
    flops_saved,
    kinds_of,
    structures_of,
    time_saved,
    trade_points,
    training_time_saved,
)
from lt_lightning.report.figures import (
    density_figure,
    learning_figure,
    mask_figure,
    published_figure,
    stability_figure,
    time_figure,
    trade_figure,
)
from lt_lightning.report.layers import WHOLE, LayerRow, costs_of, layer_rows
from lt_lightning.report.mask_pictures import MEANING, PALETTE, REORDERED, Picture, pictures_of
from lt_lightning.report.page import Page, bullets, chooser, heading, paragraph, side_by_side, table
from lt_lightning.results.aggregate import Row
from lt_lightning.results.extremes import extremes, verdict_lines, verdicts_of
from lt_lightning.results.published_figures import Comparison
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import Rule
from lt_lightning.tables import number
from lt_lightning.ticket_names import UNSTRUCTURED
from lt_lightning.tickets.ticket import Ticket

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
            "Controls are like their tickets, but with other values or masks, or a smaller dense network."
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


# Accuracy over density, and beside what was published.

Marks = dict[str, tuple[int | None, int | None]]


def add_accuracy(page: Page, found: Found, groups: Sequence[Group], rule: Rule) -> None:
    """Adds the part."""
    blocks = [paragraph(
        "Bars and the band: 95 % interval of the mean over seeds, cut at 100 %; with one seed there is none. A ring "
        "marks the sparsest ticket that is on average at least as accurate as dense, a star the sparsest shown to be "
        "by the interval of the difference. Hollow marks on broken lines are controls. Where there are "
        "bars, tickets of one round stand beside each other; their exact density is told on pointing at them."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        if (dense := dense_row(group.rows)) is None:
            blocks.append(paragraph("The dense network's result is missing: there is no band."))
        blocks.append(page.figure(density_figure(density_curves(group.rows, marks_of(group.rows, rule)), dense)))
        blocks += _beside_published(page, comparisons_of(found, group), structures_of(kinds_of(group.rows)))
    page.add("accuracy", "Accuracy over density", *blocks)


def marks_of(rows: Sequence[Row], rule: Rule) -> Marks:
    """Rounds of the extreme tickets of each structure: by the mean, and shown by the interval."""
    return {each.structure: (each.round_by_mean, each.round_shown) for each in extremes(rows, rule)}


def _beside_published(page: Page, comparisons: Sequence[Comparison], structures: Sequence[str]) -> list[str]:
    if not comparisons:
        return []
    blocks = [heading("Published, and ours"), paragraph(
        "Remaining: per cent of the prunable weights, for both by the paper's count, which for its refill is the share "
        "of filters, not what is executed. Each published figure stands beside our ticket that is nearest, if it is "
        "within half a round; where it does not tell what remains, beside our extreme ticket."
    )]  # fmt: skip
    for quantity, label in SHOWN.items():
        if series := series_of(comparisons, quantity):
            blocks.append(page.figure(published_figure(series, label, structures)))
    blocks.append(table(
        ("published", "ticket", "remaining %", "value %", "ours: remaining %", "value %", "difference", "seeds"),
        [(
            each.figure.quantity.replace("_", " "), each.figure.ticket, _told_accuracy(each.figure.remaining),
            f"{each.figure.value:.2f}", _told_accuracy(each.remaining), f"{each.value:.2f}", f"{each.difference:+.2f}",
            str(each.seeds),
        ) for each in comparisons],
        left=(0, 1),
    ))  # fmt: skip
    return blocks


def _told_accuracy(remaining: float | None) -> str:
    return "" if remaining is None else f"{remaining:.1f}"


# Accuracy over what a ticket saves: the trade that a user decides on.

SAVED = {
    "time of inference saved in %, measured": time_saved,
    "time of a training step saved in %, measured": training_time_saved,
    "multiply-adds saved in %": flops_saved,
}


def add_trade(page: Page, groups: Sequence[Group]) -> None:
    """Adds the part."""
    blocks = [paragraph(
        "The dotted line is the Pareto front: no ticket is above it, which is both more accurate and saves more; its "
        "corners are told by their density. Hollow marks are controls, which stand on no front. Time of "
        "the whole network, against the dense one's."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        dense = dense_row(group.rows)
        places = []
        for label, saved in SAVED.items():
            points = trade_points(group.rows, saved)
            if any(x for x, _ in points):
                places.append(page.figure(trade_figure(points, dense, label)))
            else:
                told = "no ticket saves any: all run whole" if points else "no ticket has a figure"
                places.append(paragraph(f"{label[0].upper()}{label[1:].partition(' in %')[0]}: {told}."))
        blocks.append(side_by_side(*places))
    page.add("trade", "Accuracy over savings", *blocks)


# Learning curves of all rounds, and of the tickets retrained alone.

CURVES = (("val/accuracy", "validation accuracy in %", 100.0), ("train/loss", "training loss", 1.0))
Rows = list[dict[str, float]]


def add_learning(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part, if there are curves."""
    choices = {
        f"{search.folder.name}, {kind}": side_by_side(*_figures(page, trainings))
        for search in searches
        for kind, trainings in _trainings(search).items()
    }
    if choices:
        about = "A line for each round, the lighter the later. Tickets are trained from the rewind point on."
        page.add("learning", "Learning curves", paragraph(about), chooser("learning-choice", "Trainings", choices))


def _trainings(search: Search) -> dict[str, dict[str, Rows]]:
    """Rows of every training, by kind of it and by round: the rounds of the search, and tickets retrained alone."""
    found: dict[str, dict[str, Rows]] = {}
    for row in metrics_of(search.folder):
        if "round" in row:
            number = int(row["round"])
            name = "dense (round 0)" if number == 0 else f"round {number}"
            found.setdefault("the search's rounds", {}).setdefault(name, []).append(row)
    names = {search.place_of(result): name_of(result) for result in search.results}
    for folder in sorted(search.folder.glob("round_*/*")):
        if rows := metrics_of(folder):
            kind = names.get(folder, f"{re.sub('-[0-9a-f]{8}$', '', folder.name)}, not finished")
            found.setdefault(kind, {})[f"round {int(folder.parent.name.rpartition('_')[2])}"] = rows
    return found


def _figures(page: Page, trainings: dict[str, Rows]) -> list[str]:
    places = []
    for key, label, unit in CURVES:
        lines = {
            name: [(index + 1.0, unit * row[key]) for index, row in enumerate(rows) if key in row]
            for name, rows in trainings.items()
        }
        if lines := {name: points for name, points in lines.items() if points}:
            places.append(page.figure(learning_figure(lines, label)))
    return places


# Every layer of every ticket: densities, multiply-adds and time before and after, and what fell back to dense.

HEADINGS_OF_LAYERS = (
    "layer", "form", "asked %", "achieved %", "multiply-adds, dense", "by the plan", "ratio", "ms, dense", "ms, ticket",
    "ratio", "note",
)  # fmt: skip


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
    return paragraph(told) + table(
        HEADINGS_OF_LAYERS, [*map(_cells_layers, rows), _sum(rows)], (0, 1, 10), marked, [len(rows)]
    )


def _names(rows: Sequence[LayerRow]) -> str:
    return ", ".join(row.layer for row in rows if row.fell_back)


def _cells_layers(row: LayerRow) -> tuple[str, ...]:
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


# The masks as pictures: before, after each structure, and in the order of what is executed.

LAYERS = 6  # shown of a network, evenly spaced: pictures are large
OTHER_MASKS = ("shuffle", "random")  # controls that keep other weights than their tickets


Pictures = dict[str, dict[str, list[Picture]]]
"""By search and round, then by layer."""


def mask_pictures(searches: Sequence[Search]) -> tuple[Pictures, list[str]]:
    """Of every data set, network and setting the first search whose tickets can be read; and what could not be read."""
    pictures: Pictures = {}
    problems: list[str] = []
    shown: set[tuple[tuple[str, str], str]] = set()
    for search in searches:
        if (search.kind, search.setting) in shown:
            continue
        try:
            number, drawn = _masks_of(search)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{search.folder.name}: {error}")
            continue
        if drawn:
            shown.add((search.kind, search.setting))
            pictures[f"{search.folder.name}, round {number}"] = drawn
    return pictures, problems


def add_masks(page: Page, pictures: Mapping[str, Mapping[str, Sequence[Picture]]], problems: Sequence[str]) -> None:
    """Adds the part."""
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    blocks = [paragraph(
        "A layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: rows and columns in "
        "the order of the blocks that are executed. Tickets first; then controls that keep other weights, against the "
        "same mask of the search. Drag to zoom, double-click to go back."
    ), f'<p class="key">{key}</p>']  # fmt: skip
    blocks += map(paragraph, problems)
    choices = {
        f"{name}: {layer}": "".join(
            side_by_side(*(page.figure(mask_figure(picture)) for picture in each)) for each in _by_ticket(drawn)
        )
        for name, layers in pictures.items()
        for layer, drawn in layers.items()
    }
    blocks.append(chooser("mask-choice", "Layer", choices) if choices else paragraph("No pruned ticket is there yet."))
    page.add("masks", "Masks", *blocks)


def _by_ticket(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """What stands beside each other: a ticket's mask as it is, and reordered."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        if picture.title.endswith(REORDERED):
            rows[-1].append(picture)
        else:
            rows.append([picture])
    return rows


def _masks_of(search: Search) -> tuple[int, dict[str, list[Picture]]]:
    """The last round, and pictures of it by layer: it is the sparsest, and best seen with all its structures."""
    pruned = [result for result in search.results if result.round > 0]
    structured = [result for result in pruned if result.structure != UNSTRUCTURED]
    number = max((result.round for result in structured or pruned), default=0)
    places = {name_of(result): search.place_of(result) for result in _shown(pruned) if result.round == number}
    if not places:
        return number, {}
    tickets = {name: Ticket.load(place / "ticket") for name, place in places.items()}
    before = tickets.get(UNSTRUCTURED) or next(iter(tickets.values()))  # a search may go on from a structure
    after = [ticket for name, ticket in tickets.items() if name != UNSTRUCTURED]
    layers = [name for name in before.card.get("prunable", ()) if f"{name}.weight" in before.masks]
    step = max(1, math.ceil(len(layers) / LAYERS))
    return number, {layer: pictures_of(layer, before, after) for layer in layers[::-step][::-1]}


def _shown(results: Sequence[Result]) -> list[Result]:
    """Tickets, then the controls whose masks are their own."""
    return [each for each in results if not each.control] + [each for each in results if each.control in OTHER_MASKS]


# Where the time of the search went, and what it cost in dense trainings.


def add_costs(page: Page, searches: Sequence[Search]) -> None:
    """Adds the part, if anything was trained."""
    costs = {search.folder.name: found for search in searches if (found := costs_of(search))}
    if not costs:
        return
    about = (
        "Wall time of the trainings, without tests and measurements; a dense training is that of round 0. The paper "
        "counts trainings, whatever each takes: one a round, the dense one included, and one a ticket; those that are "
        "rewound are shorter, and those of smaller networks faster."
    )
    lines = [
        (name, cost.part, str(cost.trainings), f"{cost.seconds:.1f}", number(cost.in_dense, ".2f"))
        for name, found in costs.items()
        for cost in found
    ]
    parts = {name: {cost.part: cost.seconds for cost in found if cost.part != WHOLE} for name, found in costs.items()}
    headings = ("search", "part", "trainings, the paper's count", "seconds", "in dense trainings")
    marked = [index for index, line in enumerate(lines) if line[1] == WHOLE]
    first = int(len(costs) == 1)  # column: a single search needs none
    page.add(
        "costs", "Time", paragraph(about), page.figure(time_figure(parts)),
        table(headings[first:], [line[first:] for line in lines], left=range(2 - first), bold=marked),
    )  # fmt: skip


# Stability to the noise of the data order, where it was measured.

HEADINGS_OF_STABILITY = ("network", "rewind", "error at the ends %", "largest %", "barrier, points", "stable")


def add_stability(page: Page, root: Path) -> None:
    """Adds the part, if the report is of a root with measurements."""
    blocks = [block for file in sorted(root.glob("stability/*/stability-*.json")) for block in _measurement(page, file)]
    if blocks:
        about = (
            "Two trainings part at a point and see the data in other orders. Barrier: the largest test error on the "
            "line between their ends less the mean of its ends; the point is stable if it is below the threshold "
            "(Frankle et al. 2020)."
        )
        page.add("stability", "Stability", paragraph(about), *blocks)


def _measurement(page: Page, file: Path) -> Iterator[str]:
    try:
        record: Any = read_json(file)
        lines = {f"{each['network']}, {each['rewind']}": [float(e) for e in each["errors"]] for each in record["lines"]}
        threshold = float(record["options"]["threshold"])
        rows = [_cells_stability(each, threshold) for each in record["lines"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        yield paragraph(f"{file.parent.name}/{file.name} cannot be read.")
        return
    yield heading(f"{file.parent.name}, stable below {100 * threshold:g} points")
    yield page.figure(stability_figure(lines))
    yield table(HEADINGS_OF_STABILITY, rows, left=(0, 1, 5))


def _cells_stability(line: Mapping[str, Any], threshold: float) -> tuple[str, ...]:
    errors, barrier = [100 * float(each) for each in line["errors"]], float(line["barrier"])
    return (
        Path(line["network"]).name if "/" in line["network"] else line["network"], line["rewind"],
        f"{errors[0]:.2f}, {errors[-1]:.2f}", f"{max(errors):.2f}", f"{100 * barrier:.2f}",
        "yes" if barrier < threshold else "no",
    )  # fmt: skip


# Where it all came from: commands, hardware, versions, seeds, configuration.


def add_origin(page: Page, found: Found) -> None:
    """Adds the part."""
    blocks = [heading("Made again by")]
    if found.asked:
        commands = dict.fromkeys(asked.command for asked in found.asked)
        blocks.append(f"<pre>{escape(chr(10).join(commands))}</pre>")
    else:
        blocks.append(paragraph("The commands were not kept: no record of jobs lies beside the searches."))
    blocks.append(heading("Hardware and versions"))
    blocks += [_environment(names, facts) for names, facts in _environments(found)]
    blocks.append(heading("Configuration"))
    for search in found.searches:
        shown = OmegaConf.to_yaml(OmegaConf.create(dict(search.config))) if search.config else "cannot be read"
        blocks.append(
            f"<details><summary>{escape(search.folder.name)}, seed {search.seed}</summary>"
            f"<pre>{escape(shown)}</pre></details>"
        )
    page.add("origin", "Origin", *blocks)


def _environments(found: Found) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Names of searches, and what they ran with; those that ran with the same stand together."""
    together: list[tuple[list[str], Mapping[str, Any]]] = []
    for search in found.searches:
        facts = environment_of(search.folder)
        names = next((names for names, others in together if others == facts), None)
        if names is None:
            together.append((names := [], facts))
        names.append(search.folder.name)
    return together


def _environment(names: Sequence[str], facts: Mapping[str, Any]) -> str:
    if not facts:
        return paragraph(f"{', '.join(names)}: not recorded.")
    what = f"<summary>{escape(', '.join(names))}</summary>"
    told = table(("what", "value"), [(key, _told_origin(value)) for key, value in facts.items()], left=(0, 1))
    return f"<details open>{what}{told}</details>"


def _told_origin(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)
