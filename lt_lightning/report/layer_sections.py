"""The part of the page on layers: density asked and executed, multiply-adds and time, by layer and round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lt_lightning.report.contents import Search, card_of, layer_times_of
from lt_lightning.report.page import Page, chooser, first_of, folded, heat_table, paragraph, table
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.records import Result
from lt_lightning.results.tables import number
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

SERIES = 12  # tickets of all rounds of one kind in one search that are shown


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

    @property
    def time_ratio(self) -> float | None:
        """Time of inference over that in the dense network; None if not measured."""
        return self.seconds_after / self.seconds_before if self.seconds_before and self.seconds_after else None


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
    """Add the part with the layers of each kind of ticket by round, as a picture and as tables."""
    series = [
        (f"{search.folder.name}, {kind}", search, results)
        for search in searches
        for kind, results in _by_kind(search).items()
    ]
    drawn, rest = first_of(series, SERIES, "kinds of tickets", "the layers of the others are in their ticket.json")
    choices = {name: block for name, search, results in drawn if (block := _series(page, search, results))}
    if not choices:
        return
    about = (
        "Asked is the share of the layer's weights that the round's unstructured mask keeps; executed, the share that "
        "the ticket executes (an unstructured one: keeps). Time is that of the layer in inference, over its time in "
        "the dense network; an unstructured ticket runs whole and is not timed. All are in per cent, the darker the "
        "more; † marks layers that run dense although they were to be structured. Of seeds the first is shown."
    )
    page.add("layers", "Layers", paragraph(about), *rest, chooser("layer-choice", "Tickets", choices))


def _by_kind(search: Search) -> dict[TicketKind, list[Result]]:
    """Return the pruned tickets of each kind in the order of rounds; controls come last."""
    kinds: dict[TicketKind, list[Result]] = defaultdict(list)
    for result in sorted(search.results, key=lambda result: (bool(result.control), result.kind, result.round)):
        if result.round > 0:
            kinds[result.kind].append(result)
    return kinds


def _series(page: Page, search: Search, results: Sequence[Result]) -> str:
    """Return the layers of tickets of one kind; empty if none can be read."""
    folders = [(result.round, search.folder_of(result)) for result in results]
    facts = [(number, folder, layer_facts(card_of(folder), layer_times_of(folder))) for number, folder in folders]
    facts = [each for each in facts if each[2]]
    if not facts:
        return ""
    tables = [
        folded(f"Round {number}: all figures", _layer_table(page, folder, rows)) for number, folder, rows in facts
    ]
    return heat_of({number: rows for number, _, rows in facts}) + "".join(tables)


def heat_of(rounds: Mapping[int, Sequence[LayerFacts]]) -> str:
    """Return the picture of layers by round: density asked and executed, and time."""
    layers = list(dict.fromkeys(row.layer for rows in rounds.values() for row in rows))
    found = {number: {row.layer: row for row in rows} for number, rows in rounds.items()}

    def column(cell: Callable[[LayerFacts], tuple[float | None, str]]) -> dict[str, list[tuple[float | None, str]]]:
        return {
            f"{number}": [cell(rows[layer]) if layer in rows else (None, "") for layer in layers]
            for number, rows in found.items()
        }

    groups: dict[str, Mapping[str, Sequence[tuple[float | None, str]]]] = {
        "layer": {"layer": [(None, layer) for layer in layers]},
        "asked, by round": column(lambda row: (row.target_density, f"{100 * row.target_density:.0f}")),
        "executed": column(lambda row: (row.density, f"{100 * row.density:.0f}{'†' if row.fell_back else ''}")),
    }
    if any(row.time_ratio is not None for rows in rounds.values() for row in rows):
        groups["time"] = column(lambda row: (row.time_ratio, number(row.time_ratio and 100 * row.time_ratio, ".0f")))
    return heat_table("layer", groups)


def _layer_table(page: Page, folder: Path, rows: Sequence[LayerFacts]) -> str:
    marked = [index for index, row in enumerate(rows) if row.fell_back]
    fallen = ", ".join(row.layer for row in rows if row.fell_back)
    text = f"Fell back to dense: {fallen}." if marked else "No layer fell back to dense."
    files = f"<p>{escape(text)} {page.link(folder, 'Folder of the ticket')}</p>"
    return files + table(LAYER_HEADINGS, list(map(_layer_cells, rows)), (0, 1, 10), marked, _sum_cells(rows))


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
