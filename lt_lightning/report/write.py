"""The report: one HTML file, PNGs and tables, of what has been run under a folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.files import replacing
from lt_lightning.report import figures, tables
from lt_lightning.report.collect import TWIN, Found, Search, card_of, collect, environment_of, metrics_of
from lt_lightning.report.curves import (
    dense_row,
    density_curves,
    flops_saved,
    in_dense_trainings,
    time_saved,
    trade_points,
    training_time_saved,
)
from lt_lightning.report.layers import layer_rows
from lt_lightning.report.masks import MEANING, PALETTE, pictures_of
from lt_lightning.report.page import Page, heading, paragraph, table
from lt_lightning.report.pngs import draw_density, draw_trade
from lt_lightning.study.aggregate import Row, aggregate, short
from lt_lightning.study.extremes import extremes, verdict_lines
from lt_lightning.study.places import DENSE, UNSTRUCTURED, hash_of
from lt_lightning.study.verdict import STANDARD, Rule
from lt_lightning.ticket import Ticket

FILE = "report.html"
MASK_LAYERS = 6  # shown of a network, evenly spaced: pictures are large
SAVED = {
    "time of inference saved in %, measured": time_saved,
    "time of a training step saved in %, measured": training_time_saved,
    "multiply-adds saved in %": flops_saved,
}


@dataclass(frozen=True)
class Group:
    """What stands in one figure: a data set, a network and a setting."""

    rows: tuple[Row, ...]
    searches: tuple[Search, ...]

    @property
    def title(self) -> str:
        """For people."""
        row = self.rows[0]
        return ", ".join(filter(None, (row.data, row.model, short(row.setting))))


def write_report(path: Path, output: Path | None = None) -> Path:
    """Writes the report of a search, a sweep or everything under a root.

    Args:
        path: folder of a search, of a sweep's jobs, or root of both.
        output: folder to write to; `report` under `path` if None.

    Returns:
        the HTML file.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: if plotly is not installed.
    """
    found = collect(path)
    output = output or path / "report"
    rule = _rule(found)
    rows = aggregate(found.results, rule)
    groups = _groups(found, rows)
    page = Page(f"Report of {found.path.name}", _summary(found, rows))
    _add_overview(page, found, rows, rule)
    for group in groups:
        _write_pngs(output, group, rule)
    if rows:
        _add_accuracy(page, groups, rule)
        _add_trade(page, groups)
    layered = [search for search in found.searches if search.results]
    if layered:
        _add_layers(page, layered)
        _add_masks(page, layered)
    if curves := list(_learning(page, found.searches)):
        page.add("learning", "Learning curves", *curves)
    if costs := list(_costs(page, found.searches)):
        page.add("costs", "Time", *costs)
    _add_origin(page, found)
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


def _groups(found: Found, rows: Sequence[Row]) -> list[Group]:
    keys = dict.fromkeys((row.data, row.model, row.setting) for row in rows)
    return [
        Group(
            tuple(row for row in rows if (row.data, row.model, row.setting) == key),
            tuple(search for search in found.searches if (*search.kind, search.setting) == key),
        )
        for key in keys
    ]


def _summary(found: Found, rows: Sequence[Row]) -> str:
    kinds = sorted({", ".join(search.kind) for search in found.searches})
    seeds = sorted({search.seed for search in found.searches if search.seed is not None})
    told = f"{len(found.searches)} searches, {sum(len(search.results) for search in found.searches)} finished tickets"
    if kinds:
        told += f"; {'; '.join(kinds)}"
    if seeds:
        told += f"; seeds {', '.join(map(str, seeds))}"
    return told + "."


def _add_overview(page: Page, found: Found, rows: Sequence[Row], rule: Rule) -> None:
    blocks = []
    if found.missing:
        lines = "".join(f"<li>{_plain(line)}</li>" for line in found.missing)
        blocks.append(f'<div class="missing"><strong>Not there</strong> ({len(found.missing)})<ul>{lines}</ul></div>')
    else:
        blocks.append(paragraph("Everything that was asked for is finished."))
    if rows:
        blocks += map(paragraph, verdict_lines(extremes(_tickets(rows), rule)))
        blocks.append(heading("All tickets"))
        left = [index for index, name in enumerate(tables.HEADINGS) if name in ("data", "network", "setting", "ticket")]
        blocks.append(table(tables.HEADINGS, [tables.cells(row) for row in rows], left))
        blocks.append(paragraph(
            "Density: share of the prunable weights that a ticket executes (an unstructured one: keeps). "
            "± 95 %: half of Student's interval of the mean over seeds. vs dense: points of accuracy, paired by seed. "
            f"Wins: {rule}. FLOPs and measured times of inference and of a training step: whole network, dense = 1."
        ))  # fmt: skip
    page.add("overview", "Overview", *blocks)


def _marks(rows: Sequence[Row], rule: Rule) -> dict[str, tuple[int | None, int | None]]:
    return {each.structure: (each.round_by_mean, each.round_shown) for each in extremes(_tickets(rows), rule)}


def _tickets(rows: Sequence[Row]) -> list[Row]:
    """Without controls, which are no tickets."""
    return [row for row in rows if not row.structure.endswith(TWIN)]


def _add_accuracy(page: Page, groups: Sequence[Group], rule: Rule) -> None:
    blocks = [paragraph(
        "Bars and the band: 95 % interval of the mean over seeds, cut at 100 %; with one seed there is none. A ring "
        "marks the sparsest ticket that is on average at least as accurate as dense, a star the sparsest shown to be "
        "by the interval of the difference."
    )]  # fmt: skip
    for group in groups:
        blocks.append(heading(group.title))
        if (dense := dense_row(group.rows)) is None:
            blocks.append(paragraph("The dense network's result is missing: there is no band."))
        blocks.append(page.figure(figures.density_figure(density_curves(group.rows, _marks(group.rows, rule)), dense)))
    page.add("accuracy", "Accuracy over density", *blocks)


def _add_trade(page: Page, groups: Sequence[Group]) -> None:
    blocks = [paragraph("The dotted line is the Pareto front: no other ticket is both more accurate and saves more.")]
    for group in groups:
        blocks.append(heading(group.title))
        dense = dense_row(group.rows)
        places = []
        for label, saved in SAVED.items():
            if points := trade_points(group.rows, saved):
                places.append(f"<div>{page.figure(figures.trade_figure(points, dense, label))}</div>")
            else:
                places.append(paragraph(f"{label.partition(',')[0]}: no ticket has a figure."))
        blocks.append(f'<div class="pair">{"".join(places)}</div>')
    page.add("trade", "Accuracy over savings", *blocks)


def _add_layers(page: Page, searches: Sequence[Search]) -> None:
    choices = {}
    for search in searches:
        for result in search.results:
            if result.round > 0 and (rows := layer_rows(card_of(search.folder.parent / result.place))):
                told = f"{search.folder.name}, round {result.round}, {result.structure}"
                back = [row for row in rows if row.fell_back]
                fell = f"Fell back to dense: {', '.join(row.layer for row in back)}." if back else ""
                choices[told] = paragraph(fell or "No layer fell back to dense.") + table(
                    ("layer", "form", "asked %", "achieved %", "multiply-adds, dense", "executed", "ratio", "note"),
                    [(
                        row.layer, row.form, f"{100 * row.asked:.1f}", f"{100 * row.achieved:.1f}",
                        f"{row.flops_before:,}",
                        f"{row.flops_after:,}", f"{row.flops_after / row.flops_before:.3f}" if row.flops_before else "",
                        row.why,
                    ) for row in rows],
                    left=(0, 1, 7), marked=[index for index, row in enumerate(rows) if row.fell_back],
                )  # fmt: skip
    about = paragraph(
        "Asked: share of the layer's weights that the round's unstructured mask keeps. Achieved: share that the ticket "
        "executes (an unstructured one: keeps). Multiply-adds of one sample. Rows in colour: layers that run dense."
    )
    page.add("layers", "Layers", about, _chooser("layer-choice", "Ticket", choices))


def _add_masks(page: Page, searches: Sequence[Search]) -> None:
    blocks = [paragraph(
        "A layer's weights as a matrix: a row is a filter, a column one of its weights. Reordered: rows and columns in "
        "the order of the blocks that are executed. Drag to zoom, double-click to go back."
    )]  # fmt: skip
    key = "".join(
        f'<span style="background:rgb{colour}"></span>{what}' for colour, what in zip(PALETTE, MEANING, strict=True)
    )
    blocks.append(f'<p class="key">{key}</p>')
    choices: dict[str, str] = {}
    shown: set[tuple[tuple[str, str], str]] = set()
    for search in searches:
        if (search.kind, search.setting) in shown:
            continue
        try:
            drawn = _masks_of(page, search)
        except (OSError, ValueError, KeyError) as error:
            blocks.append(paragraph(f"{search.folder.name}: {error}"))
            continue
        if drawn:
            shown.add((search.kind, search.setting))
            choices |= drawn
    blocks.append(_chooser("mask-choice", "Layer", choices) if choices else paragraph("No pruned ticket is there yet."))
    page.add("masks", "Masks", *blocks)


def _masks_of(page: Page, search: Search) -> dict[str, str]:
    """Pictures of the last round, by layer: that one is the sparsest, and best seen with all its structures."""
    pruned = [result for result in search.results if result.round > 0]
    structured = [result for result in pruned if result.structure != UNSTRUCTURED]
    number = max((result.round for result in structured or pruned), default=0)
    places = {result.structure: search.folder.parent / result.place for result in pruned if result.round == number}
    if UNSTRUCTURED not in places:
        return {}
    before = Ticket.load(places.pop(UNSTRUCTURED) / "ticket")
    after = [Ticket.load(place / "ticket") for place in places.values()]
    layers = [name for name in before.card.get("prunable", ()) if f"{name}.weight" in before.masks]
    step = max(1, math.ceil(len(layers) / MASK_LAYERS))
    drawn = {}
    for layer in layers[::-step][::-1]:
        pictures = pictures_of(layer, before, after)
        places_ = "".join(f"<div>{page.figure(figures.mask_figure(picture))}</div>" for picture in pictures)
        drawn[f"{search.folder.name}, round {number}: {layer}"] = f'<div class="pair">{places_}</div>'
    return drawn


def _learning(page: Page, searches: Sequence[Search]) -> Iterator[str]:
    for search in searches:
        trainings = _curves_of(search)
        if not trainings:
            continue
        yield heading(search.folder.name)
        places = []
        for key, label in (("val/accuracy", "validation accuracy"), ("train/loss", "training loss")):
            lines = {
                name: [(index + 1.0, row[key]) for index, row in enumerate(rows) if key in row]
                for name, rows in trainings.items()
            }
            if lines := {name: points for name, points in lines.items() if points}:
                places.append(f"<div>{page.figure(figures.learning_figure(lines, label))}</div>")
        yield f'<div class="pair">{"".join(places)}</div>'


def _curves_of(search: Search) -> dict[str, list[dict[str, float]]]:
    """Rows of every training: the rounds of the search, and the tickets retrained alone."""
    trainings: dict[str, list[dict[str, float]]] = {}
    for row in metrics_of(search.folder):
        if "round" in row:
            trainings.setdefault(f"round {row['round']:.0f}, search", []).append(row)
    for folder in sorted(search.folder.glob("round_*/*")):
        if rows := metrics_of(folder):
            number = int(folder.parent.name.rpartition("_")[2])
            trainings[f"round {number}, {re.sub('-[0-9a-f]{8}$', '', folder.name)}"] = rows
    return trainings


def _costs(page: Page, searches: Sequence[Search]) -> Iterator[str]:
    parts: dict[str, dict[str, float]] = {}
    lines: list[tuple[str, ...]] = []
    for search in searches:
        rounds = {
            f"round {each['round']}, search": float(each["train_seconds"]) for each in search.rounds if _is_timed(each)
        }
        cells = {
            f"round {result.round}, {result.structure}": result.train_seconds
            for result in search.results
            if not any(result.structure == known for known in (DENSE, UNSTRUCTURED)) or not rounds
        }
        if not rounds and not cells:
            continue
        parts[search.folder.name] = rounds | cells
        dense = in_dense_trainings(list(rounds.values()))
        whole = in_dense_trainings([*rounds.values(), *cells.values()]) if rounds else math.nan
        searching, retraining = (f"{sum(each.values()):.1f}" for each in (rounds, cells))
        lines.append((search.folder.name, searching, _number(dense), retraining, _number(whole)))
    if parts:
        yield paragraph(
            "Wall time of the trainings, without tests and measurements; a dense training is that of round 0."
        )
        yield table(
            ("search", "search, s", "in dense trainings", "retraining, s", "both in dense trainings"), lines, left=(0,)
        )
        yield page.figure(figures.time_figure(parts))


def _is_timed(facts: Mapping[str, Any]) -> bool:
    return isinstance(facts.get("round"), int) and isinstance(facts.get("train_seconds"), (int, float))


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _add_origin(page: Page, found: Found) -> None:
    blocks = [heading("Made again by")]
    if found.commands:
        blocks.append(f"<pre>{_plain(chr(10).join(found.commands))}</pre>")
    else:
        blocks.append(paragraph("The commands were not kept: no record of jobs lies beside the searches."))
    blocks.append(heading("Hardware and versions"))
    for search in found.searches:
        if facts := environment_of(search.folder):
            what = f"<summary>{_plain(search.folder.name)}</summary>"
            told = table(("what", "value"), [(key, _told(value)) for key, value in facts.items()], left=(0, 1))
            blocks.append(f"<details open>{what}{told}</details>")
        else:
            blocks.append(paragraph(f"{search.folder.name}: not recorded."))
    blocks.append(heading("Configuration"))
    for search in found.searches:
        shown = OmegaConf.to_yaml(OmegaConf.create(dict(search.config))) if search.config else "cannot be read"
        blocks.append(
            f"<details><summary>{_plain(search.folder.name)}, seed {search.seed}</summary>"
            f"<pre>{_plain(shown)}</pre></details>"
        )
    page.add("origin", "Origin", *blocks)


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)


def _chooser(name: str, label: str, choices: Mapping[str, str]) -> str:
    """Blocks of which one is seen at a time."""
    entries = "".join(f'<option value="{index}">{_plain(choice)}</option>' for index, choice in enumerate(choices))
    blocks = "".join(
        f'<div class="{name}" data-choice="{index}"{" hidden" if index else ""}>{block}</div>'
        for index, block in enumerate(choices.values())
    )
    return f'<p><label>{label}: <select data-chooses="{name}">{entries}</select></label></p>{blocks}'


def _write_pngs(output: Path, group: Group, rule: Rule) -> None:
    name = re.sub(r"[^\w.=-]+", "_", group.title)
    if len(name) > 80:
        name = f"{name[:71]}-{hash_of({'title': name})}"
    dense = dense_row(group.rows)
    draw_density(
        output / f"accuracy-{name}.png", group.title, density_curves(group.rows, _marks(group.rows, rule)), dense
    )
    for what, (label, saved) in zip(("inference", "training", "flops"), SAVED.items(), strict=True):
        if points := trade_points(group.rows, saved):
            draw_trade(output / f"saved-{what}-{name}.png", group.title, points, dense, label)


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
